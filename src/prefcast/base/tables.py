"""Results as tables: in a notebook, as Markdown, and as a pandas data frame."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from prefcast.errors import UsageError, printable

if TYPE_CHECKING:
    import pandas

__all__ = ["ShownTable", "Tables"]

# Rows of a table in a notebook; the other forms have all of them.
_SHOWN = 100
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


@dataclass(frozen=True)
class ShownTable:
    """A table of a result. A cell is a text, a number, None, or a figure: something with `value`, `low` and `high`."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


class Tables(ABC):
    """A result that can be shown as tables. Names and texts in them are untrusted and are escaped."""

    @abstractmethod
    def tables(self) -> list[ShownTable]:
        """The tables of the result, the most important one first."""

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        parts = []
        for table in self.tables():
            head = "| " + " | ".join(map(_marked, table.columns)) + " |"
            rule = "|" + " --- |" * len(table.columns)
            rows = ["| " + " | ".join(_marked(_text(cell)) for cell in row) + " |" for row in table.rows]
            parts.append("\n".join([f"**{_marked(table.title)}**", "", head, rule, *rows]))
        return "\n\n".join(parts) + "\n"

    def to_pandas(self, title: str | None = None) -> pandas.DataFrame:
        """A table as a data frame: the first one, or the one with that title. A figure is three columns: `name`, `name low` and
        `name high`. Raises UsageError if there is no such table."""
        import pandas

        found = {table.title: table for table in self.tables()}
        table = next(iter(found.values())) if title is None else found.get(title)
        if table is None:
            raise UsageError(f"there is no table {title!r}; there are {', '.join(map(repr, found))}")
        data: dict[str, list[Any]] = {}
        for number, name in enumerate(table.columns):
            cells = [row[number] for row in table.rows]
            if any(map(_is_figure, cells)):
                for part, ending in (("value", ""), ("low", " low"), ("high", " high")):
                    data[f"{name}{ending}"] = [getattr(cell, part, None) for cell in cells]
            else:
                data[name] = cells
        return pandas.DataFrame(data)

    def _repr_html_(self) -> str:
        parts = []
        for table in self.tables():
            head = "".join(f"<th>{_escaped(name)}</th>" for name in table.columns)
            shown = table.rows[:_SHOWN]
            rows = "".join(f"<tr>{''.join(f'<td>{_escaped(_text(cell))}</td>' for cell in row)}</tr>" for row in shown)
            left = len(table.rows) - len(shown)
            more = f"<p>{left} more rows</p>" if left else ""
            parts.append(f"<table><caption>{_escaped(table.title)}</caption><tr>{head}</tr>{rows}</table>{more}")
        return "".join(parts)


def _is_figure(cell: object) -> bool:
    return all(hasattr(cell, part) for part in ("value", "low", "high"))


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def _escaped(text: str) -> str:
    return escape(printable(text))


def _marked(text: str) -> str:
    """A text as it is, in Markdown: figures such as -0.0123 [-0.02, 0.01] need no escapes."""
    shown = printable(text)
    return shown if re.fullmatch(r"[-0-9.,%\[\] ]*", shown) else _MARKS.sub(r"\\\1", shown)
