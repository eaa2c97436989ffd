"""The verb about the evidence store: store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from prefcast.cli.shared import app
from prefcast.cli.verbs import verb
from prefcast.errors import UsageError, excerpt, shown_path

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LEAST, _MOST = 100_000, 10**15


@verb(app)
def store(
    file: Annotated[
        Path | None,
        typer.Option("--store", help="The evidence store.  [default: in the user's cache folder]", metavar="FILE"),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="Bound its size from now on; the oldest entries go first.", metavar="BYTES")
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option("--copy-to", help="Copy everything into a new file, for another machine.", metavar="FILE"),
    ] = None,
    move_to: Annotated[
        Path | None, typer.Option("--move-to", help="Move everything into a new file.", metavar="FILE")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Forget everything that was kept.")] = False,
) -> None:
    """Show, bound, copy, move or empty the evidence store.

    The store is one SQLite file. It keeps what every verb scored, by a hash of the scorer and the pair: hashes and numbers
    only, never texts. Deleting the file is safe; what it kept is then scored again.

    \b
    Examples:
      prefcast store
      prefcast store --limit 5GB
      prefcast store --move-to /data/evidence.sqlite
    """
    from prefcast.report.descriptions import store_text
    from prefcast.scorers.store import EvidenceStore, default_path

    size = None if limit is None else _bytes(limit)
    path = default_path() if file is None else file
    if not path.exists() and (copy_to is not None or move_to is not None):
        raise UsageError(f"{shown_path(path)}: there is no evidence store yet")
    with EvidenceStore(path, strict=True) as opened:
        for target in (copy_to, move_to):
            if target is not None:
                opened.copy(target)
        if empty or move_to is not None:
            opened.empty()
        if size is not None:
            opened.bound(size)
        print(store_text(opened.held()))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)b?", text.strip().lower())
    size = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not _LEAST <= size <= _MOST:
        raise UsageError(
            f"--limit: {excerpt(text)} is not a size; expected for example 500MB or 2GB, at least 100kB, at most 1000TB"
        )
    return int(size)
