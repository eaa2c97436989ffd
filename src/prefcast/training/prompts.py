"""Groups of first prompts. Rows of one group stay on one side of every split: what is learned is not measured.

Two first prompts are in one group if they have the same words, or if they are near-duplicates (`prefcast.pairs.duplicates`), or if
others between them are: the groups are connected components. A chain of near-duplicates, or one long template with a short question
in it, may join very many prompts. A group that holds more than a twentieth of the different prompts is parted at a higher
similarity, at last by words alone, so that no group decides a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair
from prefcast.pairs.duplicates import NearGroups
from prefcast.pairs.pair import KEY_LENGTH, prompt_key, words_of

__all__ = ["PromptGroups", "prompt_groups", "prompt_key"]

Ints = NDArray[np.int64]

SIMILARITY = 0.8
# A group that is too large is parted at these similarities in turn, at last by words.
_PARTED_AT = (0.9, 0.95)
# The largest share of the different prompts in one group, and a number of prompts that is never too large.
_MOST, _FEW = 0.05, 20


@dataclass(frozen=True, eq=False)
class PromptGroups:
    """Of n rows: `prompt` (n,) numbers the first prompts by their words, `group` (n,) the groups of prompts, both in the order in
    which they appear. `parted` is the number of prompts in groups that were too large, `similarity` what their prompts must have
    to be together now: 1 means the same words."""

    prompt: Ints
    group: Ints
    parted: int = 0
    similarity: float = SIMILARITY

    def lines(self) -> list[str]:
        """What is to be said of the groups, if anything."""
        prompts, groups = (len(np.unique(each)) for each in (self.prompt, self.group))
        said = []
        if groups < prompts:
            said.append(f"{prompts:,} first prompts in {groups:,} groups: near-duplicates stay on one side of a split")
        if self.parted:
            together = "the same words" if self.similarity == 1 else f"a similarity of {self.similarity:g}"
            said.append(
                f"{self.parted:,} first prompts are near-duplicates in groups of more than {_MOST:.0%} of all; of those only prompts "
                f"with {together} stay on one side"
            )
        return said


def prompt_groups(pairs: Sequence[Pair], *, near: bool = True) -> PromptGroups:
    """The groups of the first prompts of n pairs. Without `near`, a group is the prompts with the same `prompt_key`.

    A different prompt takes about 0.2 ms and, until this returns, up to 6 kB.
    """
    texts: dict[str, int] = {}
    text = np.array([texts.setdefault(pair.prompt[0], len(texts)) for pair in pairs], dtype=np.int64)
    prompts: dict[str, int] = {}
    most_words = None if near else KEY_LENGTH
    prompt = np.array([prompts.setdefault(words_of(each)[:most_words], len(prompts)) for each in texts], dtype=np.int64)
    if not near or not len(pairs):
        return PromptGroups(prompt[text], prompt[text])
    every = NearGroups(texts)
    group, parted, similarity = _joined(prompt, every.at(SIMILARITY)), 0, SIMILARITY
    most = max(_FEW, _MOST * len(prompts))
    for least in (*_PARTED_AT, 1.0):
        sizes = np.bincount(group[np.unique(prompt, return_index=True)[1]])
        large = np.flatnonzero(sizes > most)
        if not len(large):
            break
        parted, similarity = max(parted, int(sizes[large].sum())), least
        for number in large.tolist():
            mine = np.flatnonzero(group == number)
            parts = prompt[mine]
            if least < 1:
                parts = _joined(parts, every.at(least, mine))
            group[mine] = int(group.max()) + 1 + parts
    return PromptGroups(prompt[text], _numbered(group[text]), parted, similarity)


def _joined(left: Ints, right: Ints) -> Ints:
    """The groups (n,) of things that have the same number on the left, or on the right, or are joined by others that have."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = (np.unique(each, return_inverse=True)[1] for each in (left, right))
    size = int(left.max()) + 1
    edges = coo_array((np.ones(len(left), dtype=bool), (left, size + right)), shape=(size + int(right.max()) + 1,) * 2)
    found: Ints = connected_components(edges, directed=False)[1][left].astype(np.int64)
    return found


def _numbered(values: Ints) -> Ints:
    """The values (n,) as numbers from 0 in the order in which they appear."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    found: Ints = rank[inverse]
    return found
