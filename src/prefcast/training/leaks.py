"""What any two files of a training share: the same pair, the same first prompt, or one that is nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.forecasts.fitted_rows import row_key
from prefcast.pairs import Pair
from prefcast.training.prompts import PromptGroups

__all__ = ["Leak", "leak_lines", "leaks_between"]

Ints = NDArray[np.int64]

# More lines than these nobody reads; the card has them all.
_SHOWN = 20


@dataclass(frozen=True)
class Leak:
    """How many rows of `file` the file `other` has too (names as they are shown). A row counts once, as the closest kind: the same pair (perhaps with A and B
    exchanged), the same first prompt, or a first prompt of the same group."""

    file: str
    other: str
    same_pair: int
    same_prompt: int
    near_prompt: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def leaks_between(pairs: Sequence[Pair], file: Ints, files: Sequence[str], groups: PromptGroups) -> list[Leak]:
    """What any two of the files share. `file` (n,) indexes `files`; the rows of the earlier file are counted."""
    keys = np.array([row_key(pair) for pair in pairs], dtype=np.uint64)
    rows = [np.flatnonzero(file == number) for number in range(len(files))]
    kinds = (keys, groups.prompt, groups.group)
    known = [[np.unique(values[mine]) for values in kinds] for mine in rows]
    found = []
    for one, mine in enumerate(rows):
        for other in range(one + 1, len(rows)):
            pair, prompt, near = (
                np.isin(values[mine], there) for values, there in zip(kinds, known[other], strict=True)
            )
            if (pair | near).any():
                counts = int(pair.sum()), int((prompt & ~pair).sum()), int((near & ~prompt & ~pair).sum())
                found.append(Leak(files[one], files[other], *counts))
    return found


def leak_lines(leaks: Sequence[Leak]) -> list[str]:
    """A short table; nothing if there are no leaks."""
    if not leaks:
        return []
    shown = [(f"{leak.file} in {leak.other}", leak) for leak in leaks[:_SHOWN]]
    width = max(len("rows of one file in another"), *(len(name) for name, _ in shown))
    lines = [f"{'rows of one file in another':<{width}}  same pair  same prompt  nearly the same prompt"]
    for name, leak in shown:
        lines.append(f"{name:<{width}}  {leak.same_pair:>9,}  {leak.same_prompt:>11,}  {leak.near_prompt:>22,}")
    if len(leaks) > _SHOWN:
        lines.append(f"and {len(leaks) - _SHOWN:,} more pairs of files (all are in the card)")
    lines.append("rows whose first prompt is held out are not learned; other rows that share a prompt stay on one side")
    return lines
