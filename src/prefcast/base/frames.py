"""A JSON header and the bytes of arrays as one piece, for pipes and files; nothing is pickled.

This module knows neither what the header says nor who reads it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

__all__ = ["receive", "send"]

_HEAD = struct.Struct("<QQ")


def send(pipe: IO[bytes], header: object, arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a frame: 8 bytes each for the lengths of header and body, the header, the body."""
    head = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in arrays)
    pipe.write(_HEAD.pack(len(head), len(body)) + head + body)
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
