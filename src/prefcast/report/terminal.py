"""Text and tables for a terminal or a pipe: the only place that knows rich.

Everything that is printed through this module is escaped here: texts of files are untrusted. A pipe gets plain text
without colour, and no line of it is wrapped or cut.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from prefcast.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["counts_said", "rendered", "short", "table"]

_PIPE_WIDTH = 100_000


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = (), first_width: int = 0
) -> Table:
    """A table with these column names; there is no header if all names are empty.

    The columns with the numbers `right` are aligned to the right; the first column is at least `first_width` wide.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for number, name in enumerate(columns):
        made.add_column(
            Text(name),
            justify="right" if number in right else "left",
            min_width=0 if number else first_width,
            # A terminal that is too narrow wraps figures; the default would cut them.
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def rendered(*parts: str | Table) -> str:
    """Lines of text and tables as one text for standard output, as wide as the terminal."""
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    out = io.StringIO()
    console = Console(
        file=out,
        width=None if terminal else _PIPE_WIDTH,
        force_terminal=terminal,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    for part in parts:
        console.print(Text(printable(part)) if isinstance(part, str) else part)
    return "\n".join(line.rstrip() for line in out.getvalue().removesuffix("\n").split("\n"))


def counts_said(*counts: tuple[int, str]) -> str:
    """The counts that are not 0, as the end of a list."""
    return "".join(f", {count} {what}" for count, what in counts if count)


def short(text: str, width: int, *, pad: bool = False) -> str:
    """Untrusted text on one line, escaped and cut to `width` columns of a terminal; `pad` fills up what is left."""
    from rich.text import Text

    # Cut first: the text may be long, and no more than this can be shown.
    shown = Text(printable(text[: 4 * width]))
    shown.truncate(width, overflow="ellipsis", pad=pad)
    return shown.plain
