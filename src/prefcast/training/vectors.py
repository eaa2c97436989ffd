"""The encoder's vectors of many pairs, kept as they come: a training that was killed reads on where it was.

A folder of parts of some hundred pairs each, and a key that says of what they are. The key covers texts, encoder and
tokenizer, so a part is never taken for another.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, shown_path
from prefcast.scorers.embedded.encoder import Encoder
from prefcast.scorers.embedded.texts import PairTexts

__all__ = ["Step", "read_vectors"]

PART = 256
_KEY = "key.json"


@dataclass(frozen=True)
class Step:
    """How far it is: pairs `done` of `of`, pairs a second of this call, seconds left."""

    done: int
    of: int
    rate: float
    left: float


def read_vectors(
    texts: Sequence[PairTexts],
    encoder: Encoder,
    encoder_sha256: str,
    room: Path,
    say: Callable[[str], None],
    progress: Callable[[Step], None] | None,
) -> NDArray[np.float32]:
    """The vectors (n, 3, h) of prompt, A and B; parts lie in `room` until it is removed.

    Raises UsageError if `room` holds the parts of something else.
    """
    digest = hashlib.sha256(encoder_sha256.encode())
    for pair in texts:
        for ids in pair:
            digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    key = {"pairs": len(texts), "part": PART, "sha256": digest.hexdigest()}
    room.mkdir(parents=True, exist_ok=True)
    begun = _read_key(room / _KEY)
    if begun is None:
        _write(room / _KEY, json.dumps(key).encode())
    elif begun != key:
        raise UsageError(
            f"{shown_path(room)}: a training on other pairs or with another encoder was begun here; finish it with the same "
            "command, or start over with --fresh"
        )
    found = np.zeros((len(texts), 3, encoder.width), dtype=np.float32)
    began, done, read = time.monotonic(), 0, 0
    for start in range(0, len(texts), PART):
        part, path = texts[start : start + PART], room / f"part-{start // PART:06}.f32"
        if path.exists() and path.stat().st_size == found[start : start + len(part)].nbytes:
            found[start : start + len(part)] = np.fromfile(path, dtype="<f4").reshape(len(part), 3, encoder.width)
            done += len(part)
            continue
        if done and not read:
            say(f"going on after {done} of {len(texts)} pairs")
        for row, vectors in enumerate(encoder.vectors(part), start):
            found[row] = vectors
            done, read = done + 1, read + 1
            if progress is not None:
                rate = read / max(time.monotonic() - began, 1e-9)
                progress(Step(done, len(texts), rate, (len(texts) - done) / rate))
        _write(path, found[start : start + len(part)].astype("<f4").tobytes())
    return found


def _read_key(path: Path) -> object:
    """What a folder of parts is of; None if there is none yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)


def _write(path: Path, data: bytes) -> None:
    """A part is there whole or not at all."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)
