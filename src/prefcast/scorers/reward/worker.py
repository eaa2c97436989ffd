"""A process with one replica of a model: reads batches from standard input, answers on standard output.

Frames are 8 bytes of length, a JSON header, and the arrays it describes; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

import numpy as np

from prefcast.errors import PrefcastError
from prefcast.scorers.reward.engine import Group, Recipe, Scores

__all__ = ["read_groups", "read_scores", "write_groups", "write_scores"]

_HEAD = struct.Struct("<QQ")


def _send(pipe: IO[bytes], header: object, arrays: Sequence[np.ndarray] = ()) -> None:
    head = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in arrays)
    pipe.write(_HEAD.pack(len(head), len(body)) + head + body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, object], bytes]:
    """A frame; EOFError at the end of the pipe."""
    head_size, body_size = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    header = json.loads(_exactly(pipe, head_size))
    return header, _exactly(pipe, body_size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data


def write_groups(pipe: IO[bytes], groups: Sequence[Group]) -> None:
    """Send a batch to a worker."""
    typed = [group.types is not None for group in groups]
    arrays = [part for group in groups for part in (*group.ids, *(group.types or ()))]
    _send(pipe, {"lengths": [[len(ids) for ids in group.ids] for group in groups], "typed": typed}, arrays)


def read_groups(pipe: IO[bytes]) -> list[Group]:
    """Receive a batch."""
    header, body = _receive(pipe)
    flat, at = np.frombuffer(body, dtype=np.int32), 0
    groups = []
    lengths: list[list[int]] = header["lengths"]  # type: ignore[assignment]
    typed: list[bool] = header["typed"]  # type: ignore[assignment]
    for sizes, has_types in zip(lengths, typed, strict=True):
        cuts = np.cumsum([0, *sizes, *(sizes if has_types else ())]) + at
        parts = tuple(flat[start:stop] for start, stop in pairwise(cuts.tolist()))
        at = int(cuts[-1])
        groups.append(Group(parts[: len(sizes)], parts[len(sizes) :] if has_types else None))
    return groups


def write_scores(pipe: IO[bytes], scores: Sequence[Scores | None]) -> None:
    """Answer with the outputs of a batch."""
    _send(
        pipe,
        {"shapes": [None if each is None else each.shape for each in scores]},
        [each for each in scores if each is not None],
    )


def read_scores(pipe: IO[bytes]) -> list[Scores | None]:
    """Receive an answer; EOFError if the worker is gone, PrefcastError if it says that it cannot go on."""
    header, body = _receive(pipe)
    if "fault" in header:
        raise PrefcastError(str(header["fault"]))
    flat, at = np.frombuffer(body, dtype=np.float64), 0
    found: list[Scores | None] = []
    shapes: list[list[int] | None] = header.get("shapes", [])  # type: ignore[assignment]
    for shape in shapes:
        if shape is None:
            found.append(None)
        else:
            found.append(flat[at : at + shape[0] * shape[1]].reshape(shape))
            at += shape[0] * shape[1]
    return found


def main() -> None:
    """Serve until standard input ends."""
    # The answers go where standard output was; whatever prints goes to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # An interrupt is the parent's affair: it ends the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        _send(answers, {"fault": str(error)})


if __name__ == "__main__":
    main()
