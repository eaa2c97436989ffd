"""A JSON header and the bytes of arrays as one piece, for pipes and files; nothing is pickled.

Knows neither what the header says nor who reads it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

__all__ = ["framed", "receive", "send", "unframed"]

_HEAD = struct.Struct("<QQ")


def framed(header: object, arrays: Sequence[np.ndarray | bytes] = ()) -> bytes:
    """8 bytes each of the header's and the body's length, the header, the body."""
    head = json.dumps(header).encode()
    body = b"".join(array if isinstance(array, bytes) else array.tobytes() for array in arrays)
    return _HEAD.pack(len(head), len(body)) + head + body


def unframed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body; ValueError if `data` is not one whole frame."""
    if len(data) < _HEAD.size:
        raise ValueError("too short")
    head_size, body_size = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + head_size + body_size:
        raise ValueError("of another length than it says")
    start = _HEAD.size + head_size
    return json.loads(data[_HEAD.size : start]), data[start:]


def send(pipe: IO[bytes], header: object, arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a frame and flush it."""
    pipe.write(framed(header, arrays))
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """The next frame; EOFError at the end of the pipe."""
    head_size, body_size = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    header = json.loads(_exactly(pipe, head_size))
    return header, _exactly(pipe, body_size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data
