"""Files of votes and forecasts -> sums over who beat whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError, UsageError, excerpt
from prefcast.measuring.ranking.cells import FORECAST, FURTHER, GUESS, VOTE, Sums, Votes
from prefcast.measuring.ranking.given import Beside
from prefcast.measuring.ranking.looks import LookRows, Styles, look_of
from prefcast.pairs import Outcome, clean, group_key
from prefcast.pairs.formats.fields import Fault, Record, absent, number
from prefcast.pairs.formats.labels import LABEL_FIELDS, WINNERS, Labels, are_forecasts, normalised, three_numbers
from prefcast.pairs.formats.shapes import SHAPES
from prefcast.pairs.formats.table import Table

__all__ = ["MOST_CATEGORIES", "SOURCES", "Asked", "Found", "read_board_votes"]

SOURCES = ("votes", "forecasts", "both")
MOST_CATEGORIES = 100
# The smallest probability with which a row can have been drawn.
_RAREST = 1e-9
_TEXTS = tuple(dict.fromkeys(name for shape in SHAPES.values() if shape.labelled for name in shape.needs))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is read of a source. `of` is one of SOURCES, or None: votes and forecasts, whichever there are.

    `columns` maps our names to the file's. `where` keeps the rows whose columns, under their names in the file, have these
    values as text, whatever the case; `by` names a column whose values are categories. `styled` asks for what the texts look
    like, too.
    """

    of: str | None = None
    columns: Mapping[str, str] | None = None
    label_values: Mapping[str, str] | None = None
    max_row: int = MAX_ROW
    where: Mapping[str, str] | None = None
    by: str | None = None
    styled: bool = False
    cells: str = "json"


@dataclass(frozen=True)
class Found:
    """What was read: the votes of all rows, and of each category (None where it has none); their styles where those were asked
    for."""

    votes: Votes
    styles: Styles | None = None
    categories: dict[str, Found | None] = field(default_factory=dict)


def read_board_votes(source: Any, asked: Asked | None = None, beside: Beside | None = None) -> Found:
    """The votes and forecasts of a file (`-` is standard input), a folder, a table, or records in memory.

    Rows need `model_a` and `model_b`, and one of: the columns winner_model_a, winner_model_b and winner_tie (a vote:
    one 1, two 0; or a forecast: probabilities that sum to 1 within 0.001); `winner` (model_a, model_b, tie,
    tie (bothbad), both_bad); `label` (0: A, 1: B, 2: tie). The first row that has the three columns decides whether they are
    forecasts; then `winner` and `label` are votes. Rows may have an `inclusion_probability`, with which they were drawn to be
    voted on. Where there is a `prompt`, rows with the same first prompt are a group; otherwise rows with the same id.

    Raises FileError where the file or all its rows cannot be used, UsageError for a call that is wrong.
    """
    asked, beside = asked or Asked(), beside or Beside()
    if asked.of is not None and asked.of not in SOURCES:
        raise UsageError(f"unknown source {asked.of!r}; there are {', '.join(SOURCES)}")
    with _Reader(source, asked) as reader:
        reader.choose(asked, beside)
        return reader.read()


class _Collected:
    """What is collected of some rows."""

    def __init__(self, *, styled: bool) -> None:
        self.sums = Sums()
        self.styles = LookRows() if styled else None
        self.rows = self.voted = self.forecasts = self.failed = self.unlabelled = self.faults = self.left_out = 0
        # The sum of the weights of rows with votes, and the same divided by the inclusion probabilities.
        self.weight = self.expanded = 0.0
        self.first_fault: RowError | None = None

    def fault(self, fault: RowError) -> None:
        self.first_fault = self.first_fault or fault
        self.faults += 1

    def source(self, of: str | None) -> str:
        """What these rows are, where a person did not say."""
        if of is not None:
            return of
        if not self.forecasts or self.voted == self.rows:
            return "votes" if self.voted or not self.forecasts else "forecasts"
        return "both" if self.voted else "forecasts"


class _Reader(Table):
    fields = ("id", "model_a", "model_b", *LABEL_FIELDS, "prompt", "error", "margin", "inclusion_probability")

    def __init__(self, source: Any, asked: Asked) -> None:
        fields = dict.fromkeys((*self.fields, *_TEXTS)) if asked.styled else self.fields
        super().__init__(source, asked.columns, asked.cells, fields=tuple(fields), max_row=asked.max_row)

    def _find(self) -> None:
        self.need("model_a", "model_b", otherwise="a leaderboard needs model_a and model_b")
        self._three = bool(self.names & set(WINNERS))
        if self._three:
            self.need(*WINNERS, otherwise="the three winner columns go together")

    def choose(self, asked: Asked, beside: Beside) -> None:
        """Say what is counted. Raises FileError where the file has none."""
        ours = {theirs: ours for ours, theirs in self._mapping.items()}
        for name, why in (
            *((name, "chooses the rows") for name in asked.where or ()),
            (asked.by, "names the categories"),
        ):
            if name is not None and name not in self.columns:
                raise FileError(self.name, f"column {excerpt(name)}, which {why}, is missing; {self.found}")
        self.read_too(*(asked.where or ()), *filter(None, [asked.by]))
        self._wanted = [(ours.get(name, name), value.strip().lower()) for name, value in (asked.where or {}).items()]
        self._by = None if asked.by is None else ours.get(asked.by, asked.by)
        self._beside, self._labels = beside, Labels(asked.label_values)
        if beside.needs_ids:
            self.need("id", otherwise="votes and weights belong to rows by their id")
        labelled = bool(self.names & {"winner", "label"}) or beside.votes is not None
        if not self._three and (asked.of in ("forecasts", "both") or not labelled):
            expected = ", ".join(WINNERS) if asked.of == "forecasts" else f"{', '.join(WINNERS)}; or winner; or label"
            raise FileError(self.name, f"has no column that says who won; expected {expected}")
        self._asked = asked.of
        # Whether the three columns are forecasts; None: the first row that has them decides.
        self._forecasts: bool | None = None
        if not self._three:
            self._forecasts = False
        elif are_forecasts(self.names) or asked.of in ("forecasts", "both"):
            self._forecasts = True
        elif asked.of == "votes":
            # A label tells the votes, so the three columns may be a forecast.
            self._forecasts = "label" in self.names or beside.votes is not None
        self._by_prompt, self._by_id = "prompt" in self.names, "id" in self.names
        self._shape = next(
            (shape for shape in SHAPES.values() if shape.labelled and self.names >= set(shape.needs)), None
        )
        if asked.styled and self._shape is None:
            raise FileError(
                self.name,
                "has no texts, and style is read from the texts; expected prompt, response_a, response_b (or conversation_a, "
                "conversation_b) beside the votes",
            )
        self._styled = asked.styled

    def read(self) -> Found:
        numbers: dict[str, int] = {}
        whole = _Collected(styled=self._styled)
        parts: dict[str, _Collected] = {}
        for row, record in self.rows():
            if isinstance(record, RowError):
                whole.fault(record)
                continue
            if any(_as_text(record.get(name)) != value for name, value in self._wanted):
                whole.left_out += 1
                continue
            into = [whole]
            if self._by is not None:
                into.append(self._part(record, parts))
            try:
                self._add(row, record, numbers, into)
            except Fault as fault:
                for each in into:
                    each.fault(self.row_error(row, fault))
        found = self._found(whole, numbers)
        return replace(
            found,
            categories={
                name: None if self._empty(part) else self._found(part, numbers) for name, part in sorted(parts.items())
            },
        )

    def _part(self, record: Record, parts: dict[str, _Collected]) -> _Collected:
        value = record.get(self._by or "")
        name = "(none)" if absent(value) or not str(value).strip() else clean(str(value)).strip()
        if name not in parts and len(parts) == MOST_CATEGORIES:
            raise FileError(
                self.name,
                f"column {excerpt(self._by)} has more than {MOST_CATEGORIES} values; categories are few, and each has many rows",
            )
        return parts.setdefault(name, _Collected(styled=self._styled))

    def _add(self, row: int, record: Record, numbers: dict[str, int], into: Sequence[_Collected]) -> None:
        """Add a row to what is collected."""
        if not absent(record.get("error")):
            for each in into:
                each.failed += 1
            return
        id = str(self.id_of(record, row)) if self._beside.needs_ids else ""
        forecast = self._forecast(record)
        counts = self._counts(record, id)
        if (forecast if self._forecasts and self._asked != "votes" else counts) is None:
            for each in into:
                each.unlabelled += 1
            return
        left, right = (_model(record, name, numbers) for name in ("model_a", "model_b"))
        if left == right:
            raise Fault("model_b", f"is {excerpt(record['model_b'])} as model_a is; expected another model")
        group, weight = self._group(record, row), self._beside.weight(id)
        inclusion = 1.0 if counts is None else self._inclusion(record, id)
        look = look_of(self._shape, record, plain=self.plain) if self._styled and self._shape and counts else None
        for each in into:
            each.rows += 1
            if forecast is not None:
                each.forecasts += 1
                each.sums.add_row(group, left, right, forecast, weight, FORECAST)
            if counts is None:
                continue
            votes = sum(counts)
            shares = tuple(count / votes for count in counts)
            each.voted += 1
            each.weight += weight
            each.expanded += weight / inclusion
            each.sums.add_row(group, left, right, shares, weight / inclusion, VOTE)
            if votes != 1:
                each.sums.add_row(group, left, right, shares, (votes - 1) * weight / inclusion, FURTHER)
            if forecast is not None:
                each.sums.add_row(group, left, right, forecast, weight / inclusion, GUESS)
            if each.styles is not None and look is not None:
                each.styles.add(group, (left, right), [count * weight / inclusion for count in counts], look)

    def _forecast(self, record: Record) -> tuple[float, ...] | None:
        """The forecast of a row, or None where it has none or none is wanted."""
        if self._asked == "votes" or self._forecasts is False:
            return None
        numbers = three_numbers(record)
        if numbers is None:
            return None
        if self._forecasts is None:
            self._forecasts = sorted(numbers) != [0, 0, 1]
        return normalised(numbers) if self._forecasts else None

    def _counts(self, record: Record, id: str) -> tuple[float, ...] | None:
        """How many people said A, B and tie of a row, or None where nobody did or no votes are wanted."""
        if self._asked == "forecasts":
            return None
        if self._beside.votes is not None:
            return self._beside.of(id)
        try:
            vote = self._labels.of(record, forecasts=bool(self._forecasts) or not self._three)
        except Fault as fault:
            hint = " (forecasts: --from forecasts)" if fault.field == ",".join(WINNERS) else ""
            raise Fault(fault.field, fault.problem + hint) from None
        return None if vote is None else tuple(float(outcome is vote) for outcome in Outcome)

    def _inclusion(self, record: Record, id: str) -> float:
        """With which probability a row was drawn to be voted on."""
        found = self._beside.inclusion.get(id)
        if found is None and absent(record.get("inclusion_probability")):
            return 1.0
        found = number(record, "inclusion_probability") if found is None else found
        if not _RAREST <= found <= 1:
            raise Fault(
                "inclusion_probability", f"is {found:g}; expected a number above 0 (1e-9 or more) and at most 1"
            )
        return found

    def _empty(self, part: _Collected) -> bool:
        return not part.rows or (self._asked == "both" and not part.voted)

    def _found(self, part: _Collected, numbers: dict[str, int]) -> Found:
        """What was collected. Raises FileError where there is nothing in it."""
        source = part.source(self._asked)
        if self._empty(part):
            first = part.first_fault
            why = f"; the first, row {first.row}, {first.field}: {first.problem}" if first else ""
            what = {"forecasts": "a forecast", "votes": "a vote", "both": "both a forecast and a vote"}[source]
            raise FileError(
                self.name,
                f"no row has {what} between two models: "
                f"{part.failed} failed, {part.unlabelled} without a vote, {part.faults} at fault"
                f"{f', {part.left_out} not of the chosen rows' if self._wanted else ''}{why}",
            )
        found = part.sums.votes(
            numbers,
            # Votes of a planned sample, too, count 1 on average.
            part.weight / part.expanded if part.expanded else 1.0,
            resampled="prompts" if self._by_prompt else "rows",
            source=source,
            failed=part.failed,
            unlabelled=part.unlabelled if source != "both" else part.unlabelled + part.rows - part.voted,
            faults=part.faults,
            first_fault=part.first_fault,
            unused=part.forecasts if source == "votes" else 0,
            unmatched=self._beside.unmatched,
        )
        if self._by_id and not self._by_prompt and found.groups < part.rows:
            found = replace(found, resampled="ids")
        return Found(found, None if part.styles is None else part.styles.in_order(numbers))

    def _group(self, record: Record, row: int) -> int:
        """The key of the rows that are resampled together. It has 64 bits: among a billion prompts the odds that two share a key
        are 3 %; the two would be one group."""
        if self._by_prompt and not absent(prompt := record.get("prompt")):
            return group_key(f"prompt {_first_turn(prompt)}")
        if self._by_id and not self._by_prompt and not absent(id := record.get("id")):
            return group_key(f"id {id}")
        return group_key(f"row {row}")


def _as_text(value: Any) -> str:
    return "" if absent(value) else str(value).strip().lower()


def _model(record: Record, field: str, numbers: dict[str, int]) -> int:
    value = record.get(field)
    if absent(value) or not str(value).strip():
        raise Fault(field, "is missing; expected the model's name")
    return numbers.setdefault(clean(str(value)), len(numbers))


def _first_turn(prompt: Any) -> str:
    """The first turn of a prompt: of a list, of the JSON text of a list, or the text itself."""
    if isinstance(prompt, str) and prompt.lstrip().startswith("["):
        try:
            prompt = json.loads(prompt)
        except (ValueError, RecursionError):
            return clean(prompt)  # A text that begins with a bracket is a text.
    turn = prompt[0] if isinstance(prompt, list) and prompt else prompt
    return clean(turn) if isinstance(turn, str) else repr(turn)
