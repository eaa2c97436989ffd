"""Files of several answers to each prompt: a row a prompt (`responses`, or lists in `chosen` and `rejected`), or a row an
answer (`response`), those of one prompt after one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from prefcast.errors import FileError, RowError
from prefcast.pairs.formats.datasets import CANDIDATES, dataset_of
from prefcast.pairs.formats.fields import Fault, Record, absent, as_number, cell, kind, present, text_list
from prefcast.pairs.formats.messages import TRANSCRIPT, are_messages, content, conversation, transcript
from prefcast.pairs.formats.shapes import BESIDE, texts_beside
from prefcast.pairs.formats.table import Table

__all__ = ["CandidateFile", "Candidates"]

_MOST = 256
_LISTS = ("chosen", "rejected")
# Where an answer that is an object has its text: Nectar, UltraFeedback, messages.
_TEXTS = ("answer", "response", "text", "content", "value")
_Identified = tuple[int, str | int, Record | RowError]


@dataclass(frozen=True)
class Candidates:
    """A prompt's turns and the turns of n answers to it; `row` is the first row that has them. `right` are the positions
    of the answers that people found best; empty where the file does not say."""

    id: str | int
    prompt: tuple[str, ...]
    responses: tuple[tuple[str, ...], ...]
    row: int
    right: frozenset[int] = frozenset()
    system: str = ""
    reference: str | None = None


class CandidateFile(Table):
    """The candidates of one file: iterate, once, for Candidates or, where a row is at fault, RowError.

    `mapping` maps our names to the file's. In a CSV a text cell holds a JSON array unless `cells` is `text`; `responses`
    always does. A prompt may be a list of messages, or a transcript as HH-RLHF writes it. An answer of `responses` may be
    an object with a text and perhaps a `rank`, 1 for the best. Raises FileError.
    """

    fields = ("id", "prompt", "responses", "response", *_LISTS, *BESIDE)

    def _known(self, given: dict[str, str]) -> dict[str, str]:
        found = dataset_of(CANDIDATES, self.columns, given)
        return given if found is None else found[1]

    def _find(self) -> None:
        self._lists = self.names >= set(_LISTS) and "responses" not in self.names
        self._wide = self._lists or "responses" in self.names
        if "prompt" not in self.names or not (self._wide or "response" in self.names):
            raise FileError(
                self.name,
                f"holds no answers; {self.found}; expected prompt and responses (a list), or prompt with lists in chosen "
                "and rejected, or a row an answer with prompt and response, and perhaps id (--columns maps your own names)",
            )

    def __iter__(self) -> Iterator[Candidates | RowError]:
        def key(item: _Identified) -> str | int:
            _, id, record = item
            if self._wide or self.has_id or isinstance(record, RowError):
                return str(id) if self.has_id else id
            return repr(record.get("prompt"))

        for _, group in groupby(self.identified(runs=not self._wide), key):
            row, id, record = next(group)
            if isinstance(record, RowError):
                yield record
            else:
                yield self._gathered(row, str(id) if self.has_id else id, chain([(row, id, record)], group))  # noqa: B031

    def _gathered(self, first: int, id: str | int, rows: Iterable[_Identified]) -> Candidates | RowError:
        """The answers of the rows of one prompt. A fault of one answer is a fault of the choice between them."""
        row, prompt, earlier = first, list[str](), list[str]()
        responses: list[list[str]] = []
        beside: tuple[str, str | None] = "", None
        right: frozenset[int] = frozenset()
        try:
            for row, _, record in rows:
                assert not isinstance(record, RowError)  # noqa: S101
                texts, earlier, system = self._prompt(record)
                if row != first and texts != prompt:
                    raise Fault("prompt", f"is another than in row {first}, which has the same id")
                prompt = texts
                said = texts_beside(record, system, self.plain)
                if row != first and said != beside:
                    field = BESIDE[0] if said[0] != beside[0] else BESIDE[1]
                    raise Fault(field, f"is another than in row {first}, which has the same id")
                beside = said
                if self._wide:
                    responses, right = self._answers(record)
                elif len(responses) <= _MOST:
                    responses.append(self.texts(record, "response"))
            row = first
            responses = [[*earlier, *each] for each in responses]
            self._check(prompt, responses)
        except Fault as fault:
            return self.row_error(row, fault, id)
        return Candidates(id, tuple(prompt), tuple(map(tuple, responses)), first, right, *beside)

    def _check(self, prompt: list[str], responses: list[list[str]]) -> None:
        if not prompt:
            raise Fault("prompt", "has no turn; expected at least one")
        field = "chosen,rejected" if self._lists else "responses" if self._wide else "response"
        if not 2 <= len(responses) <= _MOST:
            found = f"{len(responses)}" if len(responses) <= _MOST else f"more than {_MOST}"
            raise Fault(field, f"has {found} answers to its prompt; expected 2 to {_MOST}")
        for number, turns in enumerate(responses, 1):
            if len(turns) != len(prompt):
                problem = f"answer {number} has {len(turns)} turns where prompt has {len(prompt)}; they must be equal"
                raise Fault(field, problem)

    def _prompt(self, record: Record) -> tuple[list[str], list[str], str]:
        """The turns of the prompt, the answers to all but the last of them that every response shares, and the system
        message."""
        value = record.get("prompt")
        messages: Any = None
        if isinstance(value, str) and TRANSCRIPT.match(value):
            messages = transcript(value)
        elif isinstance(value, str) and not (self.textual and not self.plain):
            return self.texts(record, "prompt"), [], ""
        elif are_messages(value := cell(record, "prompt")):
            messages = value
        if messages is None:
            return self.texts(record, "prompt"), [], ""
        if messages[-1] == {"role": "assistant", "content": ""}:
            messages = messages[:-1]  # Nectar's prompts end with the mark of the answer
        turns, system, _ = conversation([*messages, {"role": "assistant", "content": ""}], "prompt")
        return [prompt for prompt, _ in turns], [answer for _, answer in turns[:-1]], system

    def _answers(self, record: Record) -> tuple[list[list[str]], frozenset[int]]:
        """The answers of a row, and the positions of those that people found best."""
        if self._lists:
            chosen, rejected = (self._list(record, field) for field in _LISTS)
            answers = [
                _answer(each, field) for field, part in zip(_LISTS, (chosen, rejected), strict=True) for each in part
            ]
            return answers, frozenset(range(len(chosen))) if rejected else frozenset()
        found = self._list(record, "responses")
        ranks = [as_number(each.get("rank")) if isinstance(each, dict) else None for each in found]
        known = [rank for rank in ranks if rank is not None and not absent(rank)]
        best = min(known) if known and len(known) == len(found) and min(known) < max(known) else None
        right = frozenset(position for position, rank in enumerate(ranks) if best is not None and rank == best)
        return [_answer(each, "responses") for each in found], right

    def _list(self, record: Record, field: str) -> list[Any]:
        value = cell(record, field) if self.textual else present(record, field)
        if not isinstance(value, list):
            raise Fault(field, f"is {kind(value)}; expected a list of answers")
        return value


def _answer(value: Any, field: str) -> list[str]:
    """The turns of one answer: a text, a list of texts, or an object with a text."""
    if isinstance(value, dict):
        name = next((name for name in _TEXTS if value.get(name) is not None), None)
        if name is None:
            raise Fault(field, f"an answer is an object without a text; expected one of {', '.join(_TEXTS)} in it")
        return [content(value[name], field, 1)]
    return text_list(value, field)
