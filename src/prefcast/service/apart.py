"""Reads a client's file in a process of its own, so that no file can take the memory or the time of the server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from prefcast.service.refusals import Refusal

__all__ = ["Apart", "RowsAsked", "rows_asked"]

# Files that are read at the same time. Further ones are refused, and the client asks again.
_AT_ONCE = 2
_ENDING = re.compile(r"(\.[a-z0-9]{1,12}){0,2}")
_ROW = re.compile(r"[1-9][0-9]{0,8}")
_REFUSED = 3
# Threads of numerical libraries take memory for nothing here.
_QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


@dataclass(frozen=True)
class RowsAsked:
    """The end of the file's name, the first row that is asked for, and how the cells are to be read ("": find out)."""

    ending: str = ""
    first: int = 1
    cells: str = ""


def rows_asked(query: Mapping[str, str]) -> RowsAsked:
    """What the query of a request asks for. Raises Refusal."""
    if unknown := next((name for name in query if name not in RowsAsked.__dataclass_fields__), None):
        raise Refusal("invalid", "is not a parameter here; the parameters are ending, first, cells", unknown[:60])
    ending, first, cells = query.get("ending", "").lower(), query.get("first", "1"), query.get("cells")
    if not _ENDING.fullmatch(ending):
        raise Refusal("invalid", "expected the end of a file's name, such as .csv or .parquet or .jsonl.gz", "ending")
    if not _ROW.fullmatch(first):
        raise Refusal("invalid", "expected the number of a row, counted from 1", "first")
    if cells not in (None, "json", "text"):
        raise Refusal("invalid", "expected json or text", "cells")
    return RowsAsked(ending, int(first), cells or "")


class Apart:
    """The processes that read files. Each has `seconds` of time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = math.ceil(seconds)
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def read(self, data: bytes, asked: RowsAsked) -> bytes:
        """The answer about a file, as JSON. If this is cancelled, the process ends. Raises Refusal."""
        if self._room.locked():
            raise Refusal("too_busy", "other files are being read", headers={"Retry-After": "1"})
        async with self._room:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "prefcast.service.rows"),
                *(asked.ending, str(asked.first), asked.cells, str(self._seconds)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**{name: value for name, value in os.environ.items() if name != "PREFCAST_TOKEN"}, **_QUIET},
                # A signal from the keyboard is for the server, which answers what it has accepted.
                start_new_session=True,
            )
            try:
                answer, _ = await process.communicate(data)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode == 0:
            return answer
        if process.returncode == _REFUSED:
            raise Refusal(*json.loads(answer))
        raise Refusal("too_large", "takes more memory or time to read than the server gives a file")
