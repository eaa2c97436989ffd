"""The limits that the command line shows and that readers of files keep."""

from __future__ import annotations

__all__ = ["MAX_ROW"]

# The most megabytes of one row of a file.
MAX_ROW = 32
