"""The verb about the evidence store: store."""

from __future__ import annotations

import re
from pathlib import Path

from prefcast.cli.shared import app
from prefcast.cli.verbs import option, verb
from prefcast.errors import UsageError, excerpt, shown_path

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LEAST, _MOST = 100_000, 10**15


@verb(app)
def store(
    *,
    file: Path | None = option("The evidence store.  [default: in the user's cache folder]", "FILE", "--store"),
    limit: str | None = option(
        "Limit the size of the store from now on; the oldest entries are deleted first.", "BYTES"
    ),
    copy_to: Path | None = option("Copy everything into a new file, for another machine.", "FILE"),
    move_to: Path | None = option("Move everything into a new file.", "FILE"),
    empty: bool = option("Delete everything in the store.", default=False),
) -> None:
    """Show, limit, copy, move or empty the evidence store.

    The store is one SQLite file. It keeps what models computed, under a hash of the model and the pair. It holds hashes
    and numbers, never texts. Deleting the file is safe: the pairs are then scored again.

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
