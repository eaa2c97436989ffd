"""The network: conversations -> vectors -> margin and tie evidence, by ONNX Runtime.

One conversation a run, on one thread each, as many runs at a time as there are processors: nothing is padded, and a
vector does not depend on what else is scored, to the last bit. int8 activations are scaled by a run's own largest
value, so a batch would leak from one conversation into another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError
from prefcast.scorers.embedded.conversations import Conversation

__all__ = ["ENCODER", "HEAD", "Network", "processors"]

ENCODER, HEAD = "encoder.onnx", "head.onnx"

Floats = NDArray[np.float64]


class Network:
    """The encoder and the head in `folder`.

    Raises ForecasterError if they cannot be read.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.threads = threads or processors()
        self._encoder = _session(folder / ENCODER, {"ids", "types"}, {"vector"})
        self._head = _session(folder / HEAD, {"a", "b"}, {"margin", "tie"})
        self._pool: ThreadPoolExecutor | None = None

    def evidence(
        self, pairs: Sequence[tuple[Conversation, Conversation]], on_progress: Callable[[int], None] | None = None
    ) -> tuple[Floats, Floats]:
        """Margin and tie evidence (n,) of each pair of conversations."""
        margin, tie = np.zeros(len(pairs)), np.zeros(len(pairs))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="prefcast-encoder")
        # Closing it cancels what has not begun, so that an interrupt does not wait for all the rest.
        with closing(cast("Generator[Any, None, None]", self._pool.map(self._vectors, pairs))) as vectors:
            for row, (a, b) in enumerate(vectors):
                found = self._head.run(["margin", "tie"], {"a": a, "b": b})
                margin[row], tie[row] = float(found[0][0]), float(found[1][0])
                if on_progress:
                    on_progress(row + 1)
        return margin, tie

    def _vectors(self, pair: tuple[Conversation, Conversation]) -> tuple[NDArray[Any], NDArray[Any]]:
        a, b = pair
        of_a = self._vector(a)
        same = np.array_equal(a.ids, b.ids) and np.array_equal(a.types, b.types)
        return of_a, of_a if same else self._vector(b)

    def _vector(self, conversation: Conversation) -> NDArray[Any]:
        vector: NDArray[Any] = self._encoder.run(
            ["vector"], {"ids": conversation.ids[None], "types": conversation.types[None]}
        )[0]
        return vector

    def close(self) -> None:
        """Let the threads go; the next call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _session(path: Path, inputs: set[str], outputs: set[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Conversations have every length: a memory pattern for each would only grow.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no common base but this
        raise ForecasterError(f"{path}: not a network that ONNX Runtime reads: {str(error)[:200]}") from None
    found = {each.name for each in session.get_inputs()}, {each.name for each in session.get_outputs()}
    if found != (inputs, outputs):
        raise ForecasterError(f"{path}: not an embedded model's network: its inputs are {sorted(found[0])}")
    return session
