"""A pair as the encoder reads it: two sequences of token ids.

    [CLS] prompt [SEP] response [SEP] prompt [SEP] response [SEP] ...

Prompts are of type 0, responses of type 1. What is too long loses its middle. This module knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError
from prefcast.pairs import Pair

__all__ = ["Conversation", "ConversationReader"]

Ids = NDArray[np.int32]

# The newest turns that are read.
_TURNS = 4
# What prompts may take where the responses need all they can get.
_PROMPT_TOKENS = 96
# Of a text that is cut, one part in so many is its end.
_END = 3
# No text needs more characters than these, from its start and its end, to fill its tokens.
_HEAD_CHARACTERS, _TAIL_CHARACTERS = 6_000, 3_000


@dataclass(frozen=True)
class Conversation:
    """`ids` and `types` (n,), int32; `cut` says whether some text lost its middle or a turn was left out."""

    ids: Ids
    types: Ids
    cut: bool


class ConversationReader:
    """Turns pairs into conversations of at most `limit` tokens, with the tokenizer in a file of the tokenizers library.

    Raises ForecasterError if the file is no tokenizer or lacks [CLS], [SEP] and [MASK].
    """

    def __init__(self, tokenizer: Path, limit: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises bare Exception
            raise ForecasterError(f"{tokenizer}: not a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "[SEP]" in a text is five characters, never the token.
        self._tokenizer.encode_special_tokens = True
        special = (self._tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
        known: list[int] = [number for number in special if number is not None]
        if len(known) < 3:
            raise ForecasterError(f"{tokenizer}: has no [CLS], [SEP] or [MASK]")
        self._start, self._end, self._gap = known
        self.limit = limit

    def read(self, pairs: Sequence[Pair]) -> list[tuple[Conversation, Conversation]]:
        """The conversations with A and with B of each pair."""
        turns = [pair.turns[-_TURNS:] for pair in pairs]
        texts = [
            _shortened(text)
            for pair in turns
            for turn in pair
            for text in (turn.prompt, turn.response_a, turn.response_b)
        ]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        found = []
        for pair, all_turns in zip(pairs, turns, strict=True):
            tokens = [[next(encoded).ids for _ in range(3)] for _ in all_turns]
            prompts = [turn[0] for turn in tokens]
            left_out = len(pair.turns) > len(all_turns)
            a, b = (self._conversation(prompts, [turn[side] for turn in tokens], left_out) for side in (1, 2))
            found.append((a, b))
        return found

    def _conversation(self, prompts: list[list[int]], responses: list[list[int]], left_out: bool) -> Conversation:
        room = self.limit - 1 - 2 * len(prompts)
        of_prompts, of_responses = [len(text) for text in prompts], [len(text) for text in responses]
        for_prompts = _shares(of_prompts, max(min(_PROMPT_TOKENS, room // 3), room - sum(of_responses)))
        for_responses = _shares(of_responses, room - sum(for_prompts))
        ids, types = [self._start], [0]
        for prompt, response, p, r in zip(prompts, responses, for_prompts, for_responses, strict=True):
            for text, size, type_ in ((prompt, p, 0), (response, r, 1)):
                ids += [*self._cut(text, size), self._end]
                types += [type_] * (min(len(text), size) + 1)
        cut = left_out or for_prompts != of_prompts or for_responses != of_responses
        return Conversation(np.array(ids, dtype=np.int32), np.array(types, dtype=np.int32), cut)

    def _cut(self, text: list[int], size: int) -> list[int]:
        """`size` tokens of `text`: all, or its start, a mask token for the gap, and its end."""
        if len(text) <= size:
            return text
        end = (size - 1) // _END
        if end < 1:
            return text[:size]
        return [*text[: size - 1 - end], self._gap, *text[-end:]]


def _shortened(text: str) -> str:
    if len(text) <= _HEAD_CHARACTERS + _TAIL_CHARACTERS:
        return text
    return text[:_HEAD_CHARACTERS] + text[-_TAIL_CHARACTERS:]


def _shares(wants: list[int], total: int) -> list[int]:
    """`total` among `wants`: nobody gets more than it wants, those who want more get equal shares."""
    shares, open_, left = list(wants), sorted(range(len(wants)), key=lambda index: wants[index]), total
    for place, index in enumerate(open_):
        shares[index] = min(wants[index], left // (len(open_) - place))
        left -= shares[index]
    return shares
