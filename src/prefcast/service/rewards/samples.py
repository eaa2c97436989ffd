"""What trainers hand over -> samples: a prompt with one answer. A value that is no sample raises Fault, which says why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.fields import Fault, kind
from prefcast.pairs.formats.messages import conversation

__all__ = ["BEGINS", "ENDS", "Sample", "as_pair", "sample_of", "split_query"]

# Tokens of common tokenizers that a decoded text may begin or end with.
BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "<｜begin▁of▁sentence｜>")
ENDS = (
    *("</s>", "<eos>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"),
    *("<turn|>", "<|return|>", "<pad>", "<|pad|>", "<｜end▁of▁sentence｜>"),
)
# A shorter end of a prompt may stand at the beginning of a query by chance.
_LEAST_OVERLAP = 16


@dataclass(frozen=True)
class Sample:
    """One conversation: `turns` are (prompt, answer), and the last answer is the one that has a reward. `tools` has all messages
    as JSON, if the answer calls tools. `templated` is the whole text in the model's template, if a trainer gives that."""

    turns: tuple[tuple[str, str], ...]
    system: str = ""
    tools: str = ""
    templated: str = ""

    @property
    def answer(self) -> str:
        return self.turns[-1][1]

    @cached_property
    def group(self) -> bytes:
        """A digest of all that stands before the last answer: samples of one prompt have the same."""
        return _digest([self.system, *(text for turn in self.turns for text in turn)][:-1])

    @cached_property
    def order(self) -> bytes:
        """A digest of the sample, which puts samples in an order that does not depend on their places."""
        return _digest([self.group.hex(), self.answer, self.tools])


def _digest(texts: Sequence[str]) -> bytes:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()


def sample_of(prompt: Any, completion: Any, field: str = "completion") -> Sample:
    """A sample of a prompt and a completion, each a text or a list of messages."""
    for name, value in (("prompt", prompt), (field, completion)):
        if not isinstance(value, str | list):
            raise Fault(name, f"is {kind(value)}; expected a text or a list of messages")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Sample(((clean(prompt), clean(completion)),))
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    found = conversation([*before, *after], field, tools=True)
    return Sample(tuple(found.turns), found.system, found.tools)


def as_pair(a: Sample, b: Sample) -> Pair:
    """Two samples of one prompt as a pair."""
    turns = tuple(Turn(prompt, left, right) for (prompt, left), (_, right) in zip(a.turns, b.turns, strict=True))
    tools = (a.tools or _messages(a), b.tools or _messages(b)) if a.tools or b.tools else None
    return Pair(turns, system=a.system, tools=tools)


def _messages(sample: Sample) -> str:
    said = [{"role": "system", "content": sample.system}] if sample.system else []
    for prompt, answer in sample.turns:
        said += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps(said, ensure_ascii=False)


def split_query(query: Any, prompt: Any, ends: Sequence[str] = ENDS) -> str:
    """The answer in a query, which is the prompt and then the answer. The prompt may have lost its beginning there, as trainers
    cut long prompts at the left. Tokens of `ends` at the end of the answer are removed.

    Raises Fault if the query begins neither with the prompt nor with an end of the prompt of at least 16 characters.
    """
    for name, value in (("query", query), ("prompt", prompt)):
        if not isinstance(value, str):
            raise Fault(name, f"is {kind(value)}; expected a text")
    starts = [
        query,
        *(query.removeprefix(token) for token in BEGINS if query.startswith(token)),
        query.lstrip("\ufffd"),
    ]
    answer = next((found for each in starts if (found := _after(each, prompt)) is not None), None)
    if answer is None:
        raise Fault(
            "query",
            f"begins neither with the prompt nor with an end of it of at least {_LEAST_OVERLAP} characters, so the answer in it is unknown",
        )
    while (shorter := _without(answer.rstrip(), ends)) is not None:
        answer = shorter
    return clean(answer)


def _after(query: str, prompt: str) -> str | None:
    if query.startswith(prompt):
        return query[len(prompt) :]
    # The first place of the prompt from which on it stands at the beginning of the query: the longest such end of it.
    place = prompt.find(query[:_LEAST_OVERLAP])
    while 0 <= place <= len(prompt) - _LEAST_OVERLAP:
        if query.startswith(prompt[place:]):
            return query[len(prompt) - place :]
        place = prompt.find(query[:_LEAST_OVERLAP], place + 1)
    return None


def _without(text: str, ends: Sequence[str]) -> str | None:
    """A text without the token at its end, if there is one."""
    return next((text.removesuffix(token) for token in ends if text.endswith(token)), None)
