"""Which groups of token sequences are scored together. Only their sizes decide it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(
    sizes: Sequence[int], most_tokens: int, *, padded: Sequence[tuple[int, int]] | None = None
) -> list[list[int]]:
    """Batches of positions, the longest groups first. A batch is over `most_tokens` only if it is a single group.

    `sizes` (n,) are the groups' tokens. `padded` gives (longest sequence, number of sequences) of each group: every
    sequence of a batch then counts as many tokens as the longest one. The plan depends on the sizes and their order
    alone: another number of devices, a retry or a resumed run forms the same batches.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-(padded[index][0] if padded else sizes[index]), index))
    batches: list[list[int]] = []
    used = longest = 0
    for index in order:
        cost = longest * padded[index][1] if padded else sizes[index]
        if not batches or used + cost > most_tokens:
            batches.append([])
            used = 0
            if padded:
                # The groups come longest first: no later one of this batch is longer.
                longest, sequences = padded[index]
                cost = longest * sequences
        batches[-1].append(index)
        used += cost
    return batches
