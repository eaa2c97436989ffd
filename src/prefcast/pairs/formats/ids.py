"""Which ids were seen before, in 16 bytes a row."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["SeenIds"]

# An id is held as 96 bits of its hash, its row (below 2**32) beside them.
_ENTRY = np.dtype([("key", "<u8"), ("rest", "<u4"), ("row", "<u4")])
_RECENT = 4096


class SeenIds:
    """Finds an id's second occurrence and says where the first was.

    An id that occurs twice among the newest is found at once. Older ids are compared each time that their number has
    doubled, and at the end. Ids are compared as text: 1 and "1" are the same id, as they are in a CSV.
    """

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._held = bytearray()
        self._due = _RECENT * _ENTRY.itemsize

    def add(self, id: str | int, row: int) -> tuple[int, int] | None:
        """Remember `id` at `row`; (row, earlier row) if a duplicate was found."""
        digest = hashlib.blake2b(str(id).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        first = self._recent.setdefault(digest, row)
        if first != row:
            return row, first
        return self.settle(self._due) if len(self._recent) >= _RECENT else None

    def settle(self, least: int = 0) -> tuple[int, int] | None:
        """Put the recent ids with the older ones and, if those take `least` bytes, look for a duplicate among all."""
        block = np.empty((len(self._recent), 4), "<u4")
        block[:, :3] = np.frombuffer(b"".join(self._recent), "<u4").reshape(-1, 3)
        block[:, 3] = list(self._recent.values())
        self._held += block.tobytes()
        self._recent.clear()
        if len(self._held) < least:
            return None
        self._due = 2 * len(self._held)
        ids = np.frombuffer(self._held, _ENTRY)
        order = np.argsort(ids["key"], kind="stable")
        keys = ids["key"][order]
        same = np.flatnonzero(keys[1:] == keys[:-1])
        first, second = ids[order[same]], ids[order[same + 1]]
        twice = np.flatnonzero(first["rest"] == second["rest"])
        if not len(twice):
            return None
        index = twice[second["row"][twice].argmin()]
        return int(second["row"][index]), int(first["row"][index])
