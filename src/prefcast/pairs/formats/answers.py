"""Files of one system's answers: prompts with a response each, to be joined with another system's into pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prefcast.errors import FileError, RowError, excerpt
from prefcast.pairs import Pair, Turn, clean
from prefcast.pairs.formats.fields import Fault, Record, absent, cell
from prefcast.pairs.formats.messages import Conversation, conversation
from prefcast.pairs.formats.shapes import BESIDE, texts_beside
from prefcast.pairs.formats.table import Table

__all__ = ["Answer", "AnswerFile", "JoinReport", "joined"]

_MESSAGES = ("messages", "conversation", "conversations")


@dataclass(frozen=True)
class Answer:
    """One conversation: `turns` are (prompt, response)."""

    id: str | None
    turns: tuple[tuple[str, str], ...]
    row: int
    system: str = ""
    reference: str | None = None
    category: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The system message and the prompts."""
        return self.system, *(prompt for prompt, _ in self.turns)


class AnswerFile(Table):
    """The answers of one file: iterate, once, for Answer or, where a row is at fault, RowError.

    A row has `prompt` and `response` (a text, or a list with one a turn) or `messages`, and perhaps `id`; `columns` maps
    our names to the file's. In a CSV a text cell holds a JSON array unless `cells` is `text`. Raises FileError.
    """

    fields = ("id", "prompt", "response", *_MESSAGES, *BESIDE)
    # The column that holds the category of a prompt.
    category: str | None = None

    def by(self, column: str) -> None:
        """Read the categories of prompts in this column of the file. Raises FileError."""
        if column not in self.columns:
            raise FileError(self.name, f"column {excerpt(column)} is missing; {self.found}")
        self.category = column
        self.read_too(column)

    def _find(self) -> None:
        self._messages = next((field for field in _MESSAGES if field in self.names), None)
        if self._messages is None and not {"prompt", "response"} <= self.names:
            raise FileError(
                self.name,
                "holds no answers; expected prompt and response, or messages, and perhaps id (--columns maps your own names)",
            )

    def __iter__(self) -> Iterator[Answer | RowError]:
        for row, id, record in self.identified():
            if isinstance(record, RowError):
                yield record
                continue
            # The other file may hold the same id as a number.
            text = str(id) if self.has_id else None
            try:
                said = self._said(record)
                system, reference = texts_beside(record, said.system, self.plain)
                value = None if self.category is None else record.get(self.category)
                category = "" if absent(value) else clean(str(value))
                yield Answer(text, tuple(said.turns), row, system, reference, category)
            except Fault as fault:
                yield self.row_error(row, fault, text)

    def _said(self, record: Record) -> Conversation:
        if self._messages is not None:
            return conversation(cell(record, self._messages), self._messages)
        prompts, responses = self.texts(record, "prompt"), self.texts(record, "response")
        if len(prompts) != len(responses) or not prompts:
            problem = f"has {len(responses)} turns where prompt has {len(prompts)}; they must be equal, at least one"
            raise Fault("response", problem)
        return Conversation(list(zip(prompts, responses, strict=True)))


@dataclass
class JoinReport:
    """What a join left out: rows of one file alone, and rows at fault with the first of them."""

    by: str = ""
    only_left: int = 0
    only_right: int = 0
    failed: int = 0
    first_error: RowError | None = None
    # id of a pair -> its category, where the right file was read with categories
    categories: dict[str, str] = field(default_factory=dict)

    def fail(self, error: RowError) -> None:
        self.failed += 1
        self.first_error = self.first_error or error


def joined(left: AnswerFile, right: AnswerFile, models: Sequence[str], report: JoinReport) -> Iterator[Pair]:
    """Pairs of the answers to the same prompts, `left` as A, in the order of `right`; `report` fills as they come.

    Rows are joined by id where both files have ids, otherwise by their prompts. Answers of `left` are held in memory.
    Raises FileError where prompts that should join occur twice.
    """
    report.by = "id" if left.has_id and right.has_id else "prompt"
    waiting: dict[object, Answer] = {}
    # A row at fault counts as failed, and the other file's row with its id does not count as alone.
    at_fault: set[object] = set()
    for item in left:
        if isinstance(item, RowError):
            report.fail(item)
            at_fault.add(item.id)
            continue
        key = item.id if report.by == "id" else item.prompts
        if key in waiting:
            raise FileError(left.name, f"has the prompt of row {waiting[key].row} again; give both files ids", item.row)
        waiting[key] = item
    taken: dict[object, int] = {}
    for item in right:
        if isinstance(item, RowError):
            report.fail(item)
            if report.by == "id":
                waiting.pop(item.id, None)
            continue
        key = item.id if report.by == "id" else item.prompts
        if report.by == "prompt" and key in taken:
            raise FileError(right.name, f"has the prompt of row {taken[key]} again; give both files ids", item.row)
        other = waiting.pop(key, None)
        if report.by == "prompt":
            taken[key] = item.row
        if other is None:
            report.only_right += report.by == "prompt" or key not in at_fault
        elif other.prompts != item.prompts:
            problem = f"its prompts are not those of row {other.row} of {left.name}; a pair has the same prompts"
            report.fail(RowError(right.name, item.row, "prompt", problem, item.id))
        else:
            turns = tuple(Turn(prompt, a, b) for (prompt, a), (_, b) in zip(other.turns, item.turns, strict=True))
            id = item.id if item.id is not None else item.row
            reference = other.reference if item.reference is None else item.reference
            if right.category is not None:
                report.categories[str(id)] = item.category
            yield Pair(turns, id, None, models[0], models[1], item.row, item.system, reference)
    report.only_left = len(waiting)
