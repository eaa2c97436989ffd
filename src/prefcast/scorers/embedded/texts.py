"""The token ids that the encoder reads of a pair: its prompts, A's responses and B's responses.

    <s> query: prompt prompt ... </s>        <s> passage: response response ... </s>

A text that is too long loses its middle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, UsageError, shown_path
from prefcast.pairs import Pair
from prefcast.scorers.patience import Patience, growth_problem, patterns_of, silent_stderr, trials

__all__ = ["TOKENIZER", "PairTexts", "PairTokenizer"]

Ids = NDArray[np.int32]

TOKENIZER = "tokenizer.json"
# multilingual-e5 was trained with these words before questions and before answers (Wang et al., 2024).
_PROMPT, _RESPONSE = "query: ", "passage: "
# A third of the tokens of a text that is cut come from its end.
_END = 3
# So many characters of its start and its end fill the tokens of every text.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 4_000, 2_000


class PairTexts(NamedTuple):
    """Token ids (l,), int32, of each text."""

    prompt: Ids
    a: Ids
    b: Ids


class PairTokenizer:
    """Makes token ids of pairs, at most `limit` for each text, <s> and </s> not counted.

    `tokenizer` is a file of the tokenizers library. Raises ForecasterError if it is no tokenizer or lacks <s> and </s>.
    """

    def __init__(self, tokenizer: Path, limit: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises bare Exception
            raise ForecasterError(f"{tokenizer}: not a tokenizer: {error}") from None
        self._patience = Patience()
        self._check(shown_path(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "</s>" in a text is read as four characters, not as the token.
        self._tokenizer.encode_special_tokens = True
        start, end = (self._tokenizer.token_to_id(name) for name in ("<s>", "</s>"))
        if start is None or end is None:
            raise ForecasterError(f"{tokenizer}: has no <s> or no </s>")
        self._start, self._end = start, end
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        self.limit = limit

    def _check(self, shown: str) -> None:
        """Raise ForecasterError for a tokenizer that takes too long or makes too much of a text: a folder may come from a
        stranger."""
        parts = {
            name: json.loads(part.__getstate__())
            for name in ("normalizer", "pre_tokenizer")
            if (part := getattr(self._tokenizer, name)) is not None
        }
        if problem := growth_problem(parts.get("normalizer")):
            raise ForecasterError(f"{shown}: {problem}")
        if patterns := patterns_of(parts):
            texts = trials(patterns)
            try:
                with silent_stderr():
                    self._encoded(texts)
            except UsageError as error:
                raise ForecasterError(f"{shown}: {error}") from None

    def _encoded(self, texts: list[str]) -> list[Any]:
        return self._patience.of(
            sum(map(len, texts)), lambda: self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )

    def read(self, pairs: Sequence[Pair]) -> list[PairTexts]:
        """The token ids of each pair's texts."""
        texts = [
            kind + _shortened("\n".join(turns))
            for pair in pairs
            for kind, turns in (
                (_PROMPT, pair.prompt),
                (_RESPONSE, [turn.response_a for turn in pair.turns]),
                (_RESPONSE, [turn.response_b for turn in pair.turns]),
            )
        ]
        encoded = self._encoded(texts)
        ids = [self._cut(each.ids) for each in encoded]
        return [PairTexts(*ids[at : at + 3]) for at in range(0, len(ids), 3)]

    def _cut(self, ids: list[int]) -> Ids:
        if len(ids) > self.limit:
            end = self.limit // _END
            ids = ids[: self.limit - end] + ids[len(ids) - end :]
        return np.array([self._start, *ids, self._end], dtype=np.int32)


def _shortened(text: str) -> str:
    if len(text) <= _HEAD_CHARACTERS + _TAIL_CHARACTERS:
        return text
    return text[:_HEAD_CHARACTERS] + text[-_TAIL_CHARACTERS:]
