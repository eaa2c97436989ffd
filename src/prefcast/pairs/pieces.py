"""Rows in pieces of bounded size. A piece is formed by position in the input alone: the same input gives the same pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prefcast.errors import RowError
from prefcast.pairs.pair import Pair

__all__ = ["PIECE_CHARACTERS", "PIECE_ROWS", "pieces"]

# A piece ends at whichever limit comes first: a piece with texts of many megabytes has few rows.
PIECE_ROWS = 256
PIECE_CHARACTERS = 4_000_000


def pieces(items: Iterable[Pair | RowError]) -> Iterator[list[Pair | RowError]]:
    """The items in pieces of bounded rows and characters."""
    piece: list[Pair | RowError] = []
    characters = 0
    for item in items:
        piece.append(item)
        characters += item.characters if isinstance(item, Pair) else 0
        if len(piece) >= PIECE_ROWS or characters >= PIECE_CHARACTERS:
            yield piece
            piece, characters = [], 0
    if piece:
        yield piece
