"""InternLM2's tokenizer from its `tokenizer.model`, as a `tokenizers.Tokenizer`.

The published fast tokenizer is Python code inside the checkpoint; this builds the same object without running it:
BPE with byte fallback over the SentencePiece pieces, merges ordered by score, special tokens at the ids that
`tokenizer_config.json` gives them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from prefcast.errors import ModelError, shown_path

__all__ = ["Pieces", "build_tokenizer", "read_pieces"]

_SPACE = "\u2581"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Pieces:
    """What a SentencePiece model file holds: pieces with their scores in id order, the unknown piece, and whether a
    space is put before the text."""

    pieces: list[tuple[str, float]]
    unknown: str
    add_dummy_prefix: bool


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a Protocol Buffers message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            yield number, varint()
            continue
        if kind not in (_FIXED64, _BYTES, _FIXED32):
            raise ValueError(f"field {number} has the unknown wire type {kind}")
        size = varint() if kind == _BYTES else 8 if kind == _FIXED64 else 4
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _messages(fields: Iterator[tuple[int, int | bytes]], number: int) -> Iterator[bytes]:
    return (value for key, value in fields if key == number and isinstance(value, bytes))


def read_pieces(path: Path) -> Pieces:
    """Read a SentencePiece model (ModelProto of sentencepiece_model.proto: 1 pieces, 2 trainer, 3 normalizer).

    Raises ModelError.
    """
    try:
        data = path.read_bytes()
        pieces: list[tuple[str, float]] = []
        for message in _messages(_fields(data), 1):
            text, score = "", 0.0
            for number, value in _fields(message):
                if number == 1 and isinstance(value, bytes):
                    text = value.decode("utf-8")
                elif number == 2 and isinstance(value, bytes):
                    (score,) = struct.unpack("<f", value)
            pieces.append((text, score))
        unknown, dummy_prefix = "<unk>", True
        for message in _messages(_fields(data), 2):
            for number, value in _fields(message):
                if number == 45 and isinstance(value, bytes):
                    unknown = value.decode("utf-8")
        for message in _messages(_fields(data), 3):
            for number, value in _fields(message):
                if number == 3:
                    dummy_prefix = bool(value)
    except OSError as error:
        raise ModelError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{shown_path(path)}: not a SentencePiece model: {error}") from None
    if not pieces:
        raise ModelError(f"{shown_path(path)}: not a SentencePiece model: it has no pieces")
    return Pieces(pieces, unknown, dummy_prefix)


def _merges(pieces: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others: best score first, then the longer left part, then the longer right."""
    scores = dict(pieces)
    found: list[tuple[str, str, float]] = []
    for merged, score in scores.items():
        local = [
            (merged[:cut], merged[cut:], score)
            for cut in range(1, len(merged))
            if merged[:cut] in vocabulary and merged[cut:] in vocabulary
        ]
        local.sort(key=lambda merge: (vocabulary[merge[0]], vocabulary[merge[1]]))
        found += local
    found.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(left, right) for left, right, _ in found]


def build_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the InternLM2 checkpoint in `folder` (`tokenizer.model`, `tokenizer_config.json`).

    Raises ModelError.
    """
    read = read_pieces(folder / "tokenizer.model")
    # The first three ids are the controls, whatever the file calls them.
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *read.pieces[3:]]
    added = _added_tokens(folder / "tokenizer_config.json")
    for index, token in added.items():
        if index < len(pieces):
            pieces[index] = (token.content, pieces[index][1])
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    # A special token is written by its id, never made of its letters.
    special = {token.content for token in added.values()}
    merges = [merge for merge in _merges(pieces, vocabulary) if "".join(merge) not in special]
    for name in ("<|im_start|>", "<|im_end|>"):
        if name not in special:
            raise ModelError(
                f"{shown_path(folder)}: tokenizer_config.json gives no id for {name} (added_tokens_decoder)"
            )
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token=read.unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if read.add_dummy_prefix else spaces
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([token for _, token in sorted(added.items())])
    return tokenizer


def _added_tokens(path: Path) -> dict[int, AddedToken]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found = {
            int(index): AddedToken(
                token["content"],
                lstrip=bool(token.get("lstrip", False)),
                rstrip=bool(token.get("rstrip", False)),
                single_word=bool(token.get("single_word", False)),
                normalized=bool(token.get("normalized", False)),
                special=True,
            )
            for index, token in config.get("added_tokens_decoder", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{shown_path(path)}: damaged: {type(error).__name__}: {error}") from None
    path = path.with_name("added_tokens.json")
    try:
        more = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, index in more.items():
            found.setdefault(int(index), AddedToken(name, normalized=False, special=True))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{shown_path(path)}: damaged: {type(error).__name__}: {error}") from None
    for index, name in enumerate(("<unk>", "<s>", "</s>")):
        found.setdefault(index, AddedToken(name, normalized=False, special=True))
    return found
