"""Which outputs of a pair classifier belong to A, to B and to the tie: `id2label` or a person tells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefcast.errors import UsageError, excerpt

__all__ = ["label_columns", "label_count"]

_WORDS = {
    **dict.fromkeys(("a", "first", "left"), 0),
    **dict.fromkeys(("b", "second", "right"), 1),
    **dict.fromkeys(("tie", "draw", "equal", "same", "tied", "bothbad"), 2),
}
_FILLERS = {"winner", "wins", "win", "model", "response", "answer", "assistant", "preferred", "better", "is"}


def label_count(config: Mapping[str, Any]) -> int:
    """How many outputs a classifier has."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and names:
        return len(names)
    count = config.get("num_labels")
    # transformers does not write the number of labels if it is two.
    return count if isinstance(count, int) else 2


def label_columns(config: Mapping[str, Any], said: Sequence[str] | None, name: str) -> tuple[int, ...]:
    """The positions of the outputs: (of A, of B), or (of A, of B, of the tie).

    `said` lists the labels in the order of the outputs, e.g. ("a", "b", "tie"). Without it `id2label` must name them.
    Raises UsageError if the labels do not tell the order.
    """
    count = label_count(config)
    names = config.get("id2label") or {}
    listed = (
        list(said) if said is not None else [str(names.get(str(index), names.get(index, ""))) for index in range(count)]
    )
    meanings = [_meaning(label) for label in listed]
    wanted = range(count)
    if len(listed) == count and set(meanings) == set(wanted):
        return tuple(map(meanings.index, wanted))
    example = "a,b,tie" if count == 3 else "a,b"
    if said is not None:
        raise UsageError(
            f"--labels: {excerpt(','.join(listed))} does not order the {count} outputs of {name}; write for example {example}"
        )
    if not any(listed):
        raise UsageError(
            f"{name}: config.json does not name its {count} labels; say which is A, in the order of the outputs: --labels {example}"
        )
    raise UsageError(
        f"{name}: its labels are called {', '.join(map(excerpt, listed))}, which does not say which one is A; "
        f"say it in the order of the outputs: --labels {example}"
    )


def _meaning(label: str) -> int | None:
    words = [word for word in re.split(r"[^a-z0-9]+", label.lower()) if word and word not in _FILLERS]
    meanings = {_WORDS.get(word) for word in words}
    return meanings.pop() if len(meanings) == 1 else None
