"""Reads the small files of a checkpoint's folder, which may come from a stranger: only real files, of bounded size."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from prefcast.errors import ModelError, excerpt

__all__ = ["look_over", "read_object", "read_text"]

_MIB = 1024 * 1024
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
# Vocabularies are large: 35 MB where a tokenizer has 260,000 tokens.
_VOCABULARY = 256 * _MIB
_LARGEST = {".json": 16 * _MIB, ".jinja": _MIB, ".model": _VOCABULARY, ".txt": _VOCABULARY}
_VOCABULARIES = ("tokenizer.json", "vocab.json")


def _largest(path: Path) -> int | None:
    return _VOCABULARY if path.name in _VOCABULARIES else _LARGEST.get(path.suffix)


def look_over(folder: Path, name: str) -> None:
    """Raise ModelError if the folder of the model `name` has what is no file (a pipe, a device), or too large a small file.

    transformers opens files of the folder too: it must not wait for a pipe, nor read a device without an end.
    """
    try:
        for path in [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]:
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # a link to nothing
            kind = _SPECIAL.get(stat.S_IFMT(found.st_mode))
            if kind:
                raise ModelError(f"{name}: {excerpt(path.name)} is {kind}; a model's folder must hold files only")
            most = _largest(path)
            if stat.S_ISDIR(found.st_mode) and (most is not None or path.suffix == ".safetensors"):
                raise ModelError(f"{name}: {excerpt(path.name)} is a folder, not a file")
            if most is not None and stat.S_ISREG(found.st_mode) and found.st_size > most:
                raise ModelError(
                    f"{name}: {excerpt(path.name)} has {found.st_size:,} bytes; at most {most:,} are read of such a file"
                )
    except OSError as error:
        raise ModelError(f"{name}: its folder cannot be read: {error.strerror or error}") from None


def read_text(path: Path, name: str) -> str:
    """The text of a small file of the model `name`. Raises ModelError; FileNotFoundError where there is no file."""
    most = _largest(path) or _MIB
    try:
        if not path.is_file() and path.exists():
            raise ModelError(f"{name}: {path.name} is not a file")
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ModelError(f"{name}: {path.name} has more than {most:,} bytes")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: {path.name} cannot be read: {reason}") from None


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a small file of the model `name`. Raises ModelError; FileNotFoundError where there is no file."""
    text = read_text(path, name)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ModelError(f"{name}: {path.name} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{name}: {path.name} cannot be read: {excerpt(str(error), 200)}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{name}: {path.name} is not a JSON object")
    return found
