"""Which groups are scored together. Knows sizes in tokens, not what is in them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(
    sizes: Sequence[int], most_tokens: int, *, padded: Sequence[tuple[int, int]] | None = None
) -> list[list[int]]:
    """Batches of positions, longest first, none over `most_tokens` unless a single group is.

    `sizes` (n,) are the groups' tokens. With `padded`, (longest sequence, sequences) of each group, a batch costs what
    it takes up once every sequence is padded to its longest. The plan follows from the sizes and their order alone, so
    that another number of devices, a retry or a resumed run forms the same batches.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-(padded[index][0] if padded else sizes[index]), index))
    batches: list[list[int]] = []
    batch: list[int] = []
    tokens = longest = sequences = 0
    for index in order:
        if padded:
            wider, more = max(longest, padded[index][0]), sequences + padded[index][1]
            cost = wider * more
        else:
            wider, more = 0, 0
            cost = tokens + sizes[index]
        if batch and cost > most_tokens:
            batches.append(batch)
            batch, wider, more = [], *(padded[index] if padded else (0, 0))
            cost = wider * more if padded else sizes[index]
        batch.append(index)
        tokens, longest, sequences = cost, wider, more
    return [*batches, batch] if batch else batches
