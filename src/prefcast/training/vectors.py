"""The encoder's vectors of many pairs. The evidence store keeps them for a training that is started again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcast.scorers.embedded.encoder import Encoder
from prefcast.scorers.embedded.texts import PairTexts
from prefcast.scorers.store import EvidenceStore

__all__ = ["Step", "keys_of", "read_vectors"]

PART = 256


@dataclass(frozen=True)
class Step:
    """The progress: pairs `done` of `of`, pairs per second of this call, seconds left."""

    done: int
    of: int
    rate: float
    left: float


def read_vectors(
    texts: Sequence[PairTexts],
    encoder: Encoder,
    encoder_sha256: str,
    store: EvidenceStore | None,
    *,
    fresh: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> NDArray[np.float32]:
    """The vectors (n, 3, h) of prompt, A and B. Those in `store` are not computed again, unless `fresh`. New ones are kept there."""
    found = np.zeros((len(texts), 3, encoder.width), dtype=np.float32)
    began, done, read = time.monotonic(), 0, 0
    for start in range(0, len(texts), PART):
        keys = keys_of(texts[start : start + PART], encoder_sha256)
        known = {} if store is None or fresh else store.get(keys)
        new = []
        for row, key in enumerate(keys, start):
            if len(known.get(key, b"")) == found[row].nbytes:
                found[row] = np.frombuffer(known[key], dtype="<f4").reshape(3, encoder.width)
                done += 1
            else:
                new.append(row)
        for row, vectors in zip(new, encoder.vectors([texts[row] for row in new]), strict=True):
            found[row] = vectors
            done, read = done + 1, read + 1
            if progress is not None:
                rate = read / max(time.monotonic() - began, 1e-9)
                progress(Step(done, len(texts), rate, (len(texts) - done) / rate))
        if store is not None:
            store.put((keys[row - start], found[row].astype("<f4").tobytes()) for row in new)
    return found


def keys_of(texts: Sequence[PairTexts], encoder_sha256: str) -> list[bytes]:
    """The key of each pair's vectors in the store."""
    space = hashlib.sha256(f"vectors {encoder_sha256}".encode()).digest()
    keys = []
    for pair in texts:
        digest = hashlib.blake2b(digest_size=16, key=space)
        for ids in pair:
            digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        keys.append(digest.digest())
    return keys
