"""Files of several answers to each prompt: a row a prompt (`responses`), or a row an answer (`response`), those of one
prompt after one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from prefcast.errors import FileError, RowError
from prefcast.pairs.formats.fields import Fault, Record, cell, kind, present, text_list
from prefcast.pairs.formats.shapes import BESIDE, texts_beside
from prefcast.pairs.formats.table import Table

__all__ = ["CandidateFile", "Candidates"]

_MOST = 256
_Identified = tuple[int, str | int, Record | RowError]


@dataclass(frozen=True)
class Candidates:
    """A prompt's turns and the turns of n answers to it; `row` is the first row that has them."""

    id: str | int
    prompt: tuple[str, ...]
    responses: tuple[tuple[str, ...], ...]
    row: int
    system: str = ""
    reference: str | None = None


class CandidateFile(Table):
    """The candidates of one file: iterate, once, for Candidates or, where a row is at fault, RowError.

    `mapping` maps our names to the file's. In a CSV a text cell holds a JSON array unless `cells` is `text`; `responses`
    always does. Raises FileError.
    """

    fields = ("id", "prompt", "responses", "response", *BESIDE)

    def _find(self) -> None:
        self._wide = "responses" in self.names
        if "prompt" not in self.names or not self.names & {"responses", "response"}:
            raise FileError(
                self.name,
                "holds no answers; expected prompt and responses (a list), or a row an answer with prompt and response, and "
                "perhaps id (--columns maps your own names)",
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
        row, prompt = first, list[str]()
        responses: list[list[str]] = []
        beside: tuple[str, str | None] = "", None
        try:
            for row, _, record in rows:
                assert not isinstance(record, RowError)  # noqa: S101
                texts = self.texts(record, "prompt")
                if row != first and texts != prompt:
                    raise Fault("prompt", f"is another than in row {first}, which has the same id")
                prompt = texts
                said = texts_beside(record, "", self.plain)
                if row != first and said != beside:
                    field = BESIDE[0] if said[0] != beside[0] else BESIDE[1]
                    raise Fault(field, f"is another than in row {first}, which has the same id")
                beside = said
                if self._wide:
                    responses = self._list(record)
                elif len(responses) <= _MOST:
                    responses.append(self.texts(record, "response"))
            row = first
            self._check(prompt, responses)
        except Fault as fault:
            return self.row_error(row, fault, id)
        return Candidates(id, tuple(prompt), tuple(map(tuple, responses)), first, *beside)

    def _check(self, prompt: list[str], responses: list[list[str]]) -> None:
        if not prompt:
            raise Fault("prompt", "has no turn; expected at least one")
        field = "responses" if self._wide else "response"
        if not 2 <= len(responses) <= _MOST:
            found = f"{len(responses)}" if len(responses) <= _MOST else f"more than {_MOST}"
            raise Fault(field, f"has {found} answers to its prompt; expected 2 to {_MOST}")
        for number, turns in enumerate(responses, 1):
            if len(turns) != len(prompt):
                problem = f"answer {number} has {len(turns)} turns where prompt has {len(prompt)}; they must be equal"
                raise Fault(field, problem)

    def _list(self, record: Record) -> list[list[str]]:
        value = cell(record, "responses") if self.textual else present(record, "responses")
        if not isinstance(value, list):
            raise Fault("responses", f"is {kind(value)}; expected a list of answers")
        return [text_list(each, "responses") for each in value]
