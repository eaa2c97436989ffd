"""The text encoder: from token ids to vectors, with ONNX Runtime.

Each run encodes one text on one thread, and as many runs go on at a time as there are processors. A vector does not
depend on other texts, to the last bit: in a batch, int8 activations would be scaled by the largest value of all texts.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError
from prefcast.scorers.embedded.texts import PairTexts

__all__ = ["ENCODER", "Encoder", "Vectors", "processors"]

ENCODER = "encoder.onnx"

Vector = NDArray[np.float64]


class Vectors(NamedTuple):
    """The vectors (h,) of a pair's prompt and responses."""

    prompt: Vector
    a: Vector
    b: Vector


class Encoder:
    """The encoder in a file; `width` is the length of a vector. Raises ForecasterError if the file cannot be read."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        self.threads = threads or processors()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Off, because ONNX Runtime would keep a memory pattern for every length of text.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions have no common base but this
            raise ForecasterError(f"{path}: not a network that ONNX Runtime reads: {str(error)[:200]}") from None
        names = [each.name for each in (*self._session.get_inputs(), *self._session.get_outputs())]
        if names != ["ids", "vector"]:
            raise ForecasterError(f"{path}: not an encoder: it goes from {names[0]} to {names[-1]}, not ids to vector")
        self.width = int(self._session.get_outputs()[0].shape[1])
        self._pool: ThreadPoolExecutor | None = None

    def use_threads(self, threads: int) -> None:
        """Read so many texts at a time from now on."""
        self.close()
        self.threads = threads

    def vectors(self, pairs: Iterable[PairTexts]) -> Iterator[Vectors]:
        """The vectors of each pair, in order, each as soon as it is there."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="prefcast-encoder")
        # Closing the generator cancels runs that have not begun, so that an interrupt does not wait for them.
        with closing(cast("Generator[Vectors, None, None]", self._pool.map(self._of_pair, pairs))) as found:
            yield from found

    def _of_pair(self, texts: PairTexts) -> Vectors:
        a = self._vector(texts.a)
        return Vectors(self._vector(texts.prompt), a, a if np.array_equal(texts.a, texts.b) else self._vector(texts.b))

    def _vector(self, ids: NDArray[np.int32]) -> Vector:
        found: NDArray[Any] = self._session.run(["vector"], {"ids": ids[None]})[0][0]
        return found.astype(np.float64)

    def close(self) -> None:
        """End the threads. The next call of `vectors` starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
