"""Files of prompts, such as the questions of a benchmark: each is read as a pair with empty answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefcast.base.limits import MAX_ROW
from prefcast.errors import FileError, RowError
from prefcast.pairs import Pair, Turn
from prefcast.pairs.formats import PairFile, open_pairs
from prefcast.pairs.formats.fields import Fault, cell
from prefcast.pairs.formats.messages import are_messages, conversation
from prefcast.pairs.formats.table import Table

__all__ = ["PromptFile", "open_prompts"]

# What benchmarks call their prompts, the likeliest first.
_NAMES = ("prompt", "question", "instruction", "turns", "problem")


class PromptFile(Table):
    """The prompts of a file whose columns hold one: iterate, once, for Pair with empty answers or, where a row is at fault,
    RowError. Raises FileError."""

    fields = ("id", "prompt")

    def _known(self, given: dict[str, str]) -> dict[str, str]:
        name = next((name for name in _NAMES if name in self.columns), "prompt")
        return given if "prompt" in given or name == "prompt" else {"prompt": name, **given}

    def _find(self) -> None:
        if "prompt" not in self.names:
            raise FileError(self.name, f"has no prompts; {self.found}; expected a column {', '.join(_NAMES)}, or pairs")
        self.plain = True

    def __iter__(self) -> Iterator[Pair | RowError]:
        for row, id, record in self.identified():
            if isinstance(record, RowError):
                yield record
                continue
            try:
                turns = tuple(Turn(text, "", "") for text in self._prompts(record))
                if not turns:
                    raise Fault("prompt", "has no turn; expected at least one")
                yield Pair(turns, id, row=row)
            except Fault as fault:
                yield self.row_error(row, fault, id)

    def _prompts(self, record: Mapping[str, Any]) -> list[str]:
        value = record.get("prompt")
        # A cell of a CSV holds a list of turns, or a text as it is.
        if self.textual and isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = cell(record, "prompt")
            except Fault:
                value = record.get("prompt")
        if are_messages(value):
            messages: Any = value
            said = messages if _ends_with_answer(messages) else [*messages, {"role": "assistant", "content": ""}]
            return [prompt for prompt, _ in conversation(said, "prompt").turns]
        return self.texts({"prompt": value}, "prompt")


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1]
    return isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt")


def open_prompts(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    cells: str = "json",
    label_values: Mapping[str, str] | None = None,
    max_row: int = MAX_ROW,
) -> PairFile | PromptFile:
    """Open a file of pairs, of single answers, or of prompts alone, whichever it holds. The arguments are those of `open_pairs`.

    Raises FileError.
    """
    try:
        return open_pairs(source, columns=columns, cells=cells, label_values=label_values, max_row=max_row, single=True)
    except FileError as error:
        try:
            return PromptFile(source, max_row=max_row)
        except FileError:
            raise error from None
