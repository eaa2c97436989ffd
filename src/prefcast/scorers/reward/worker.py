"""A process with one replica of a model: reads batches from standard input, answers on standard output.

The form of both is that of `frames.py`; nothing is pickled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

import numpy as np

from prefcast.base.frames import receive, send
from prefcast.base.processes import answering
from prefcast.errors import PrefcastError
from prefcast.scorers.reward.engine import Group, Recipe, Scores

__all__ = ["read_groups", "read_scores", "write_groups", "write_scores"]


def write_groups(pipe: IO[bytes], groups: Sequence[Group]) -> None:
    """Send a batch to a worker."""
    typed = [group.types is not None for group in groups]
    arrays = [part for group in groups for part in (*group.ids, *(group.types or ()))]
    send(pipe, {"lengths": [[len(ids) for ids in group.ids] for group in groups], "typed": typed}, arrays)


def read_groups(pipe: IO[bytes]) -> list[Group]:
    """Receive a batch."""
    header, body = receive(pipe)
    flat, at = np.frombuffer(body, dtype=np.int32), 0
    groups = []
    lengths: list[list[int]] = header["lengths"]
    typed: list[bool] = header["typed"]
    for sizes, has_types in zip(lengths, typed, strict=True):
        cuts = np.cumsum([0, *sizes, *(sizes if has_types else ())]) + at
        parts = tuple(flat[start:stop] for start, stop in pairwise(cuts.tolist()))
        at = int(cuts[-1])
        groups.append(Group(parts[: len(sizes)], parts[len(sizes) :] if has_types else None))
    return groups


def write_scores(pipe: IO[bytes], scores: Sequence[Scores | None]) -> None:
    """Answer with the outputs of a batch."""
    send(
        pipe,
        {"shapes": [None if each is None else each.shape for each in scores]},
        [each for each in scores if each is not None],
    )


def read_scores(pipe: IO[bytes]) -> list[Scores | None]:
    """Receive an answer; EOFError if the worker is gone, PrefcastError if it says that it cannot go on."""
    header, body = receive(pipe)
    if "fault" in header:
        raise PrefcastError(str(header["fault"]))
    flat, at = np.frombuffer(body, dtype=np.float64), 0
    found: list[Scores | None] = []
    shapes: list[list[int] | None] = header.get("shapes", [])
    for shape in shapes:
        if shape is None:
            found.append(None)
        else:
            found.append(flat[at : at + shape[0] * shape[1]].reshape(shape))
            at += shape[0] * shape[1]
    return found


def main() -> None:
    """Serve until standard input ends."""
    answers = answering()
    try:
        recipe = Recipe.from_json(sys.argv[1])
        engine = recipe.build()
        write_scores(answers, [])
        while True:
            groups = read_groups(sys.stdin.buffer)
            write_scores(answers, engine.run(groups))
    except (EOFError, BrokenPipeError):
        return
    except PrefcastError as error:
        send(answers, {"fault": str(error)})


if __name__ == "__main__":
    main()
