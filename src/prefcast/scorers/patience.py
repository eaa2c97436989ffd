"""Bounds on what a stranger's tokenizer may take: time, and characters that it makes of one."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefcast.errors import ModelError, UsageError, printable

__all__ = ["Patience", "check_growth", "growth_problem", "patterns_of", "silent_stderr", "trials"]

T = TypeVar("T")
# A text may take so many seconds, and one more for so many characters. Honest tokenizers take milliseconds.
_SECONDS, _CHARACTERS_A_SECOND = 20.0, 5_000
# After so many texts that took too long every further one is refused at once: each has left a busy thread behind.
_MOST_STUCK = 3
_GROWTH = 1_000
_RUN, _MOST_RUNS = 2_000, 64


class Patience:
    """Does work that is done outside Python, for a limited time. Work that takes longer is left alone: no other thread can
    stop it."""

    def __init__(self) -> None:
        self._stuck = 0

    def of(self, characters: int, work: Callable[[], T]) -> T:
        """What `work`, on a text of so many characters, returns. Raises UsageError if it fails or takes too long."""
        if self._stuck >= _MOST_STUCK:
            raise UsageError(f"the model's tokenizer took too long for {self._stuck} texts; it is not used any more")
        seconds = _SECONDS + characters / _CHARACTERS_A_SECOND
        found: list[tuple[T | None, BaseException | None]] = []

        def worked() -> None:
            try:
                found.append((work(), None))
            except BaseException as error:
                found.append((None, error))

        thread = threading.Thread(target=worked, daemon=True, name="prefcast-tokenizing")
        thread.start()
        thread.join(seconds)
        if not found:
            self._stuck += 1
            raise UsageError(f"the model's tokenizer takes more than {seconds:.0f} s for {characters:,} characters")
        value, error = found[0]
        if isinstance(error, MemoryError):
            raise error
        if error is not None:
            said = printable(" ".join(str(error).split()))[:200]
            raise UsageError(f"the model's tokenizer fails on {characters:,} characters: {said}")
        return value  # type: ignore[return-value]


def check_growth(folder: Path, name: str) -> None:
    """Raise ModelError for a tokenizer.json whose normaliser makes a very long text of a short one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["normalizer"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return  # the library that reads it tells what is wrong
    if problem := growth_problem(data):
        raise ModelError(f"{name}: {problem}")


def growth_problem(normalizer: Any) -> str:
    """What is wrong with a normaliser that makes a very long text of a short one; empty for others.

    This is found by reading it: a text that is made would fill the memory before it could be counted.
    """
    try:
        growth = _growth(normalizer)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        return ""  # the library that reads it tells what is wrong
    if growth <= _GROWTH:
        return ""
    return f"the normaliser in tokenizer.json makes up to {growth:,} characters of one; at most {_GROWTH:,} are taken"


def _growth(normalizer: Any) -> int:
    """How many characters a normaliser makes of one, at most."""
    if not isinstance(normalizer, Mapping):
        return 1
    kind = normalizer.get("type")
    if kind == "Sequence":
        product = 1
        for each in normalizer["normalizers"]:
            product = min(product * max(1, _growth(each)), 10**12)
        return product
    if kind == "Replace":
        return 1 + len(normalizer["content"]) if len(normalizer["content"]) > 1 else 1
    if kind == "Prepend":
        return 1 + len(normalizer["prepend"]) // _GROWTH * _GROWTH
    if kind in ("NFKC", "NFKD"):
        return 18
    if kind == "Precompiled":
        data = base64.b64decode(normalizer["precompiled_charsmap"])
        texts = data[4 + int.from_bytes(data[:4], "little") :]
        return max(map(len, texts.split(b"\0")), default=1)
    return 4 if kind in ("BertNormalizer", "ByteLevel", "NFD") else 1


def patterns_of(data: Mapping[str, Any]) -> list[str]:
    """The regular expressions in a tokenizer."""
    found, waiting = list[str](), [data.get("normalizer"), data.get("pre_tokenizer")]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            if isinstance(each.get("Regex"), str):
                found.append(each["Regex"])
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return found


def trials(patterns: list[str]) -> list[str]:
    """Texts on which a regular expression that backtracks without end shows it: long runs of one character."""
    letters = dict.fromkeys(["a", "A", "0", " ", "\n", "!", "é", "你", *"".join(patterns)])
    # A search gives up at once where a letter that it needs is nowhere in the text.
    rest = "\x01" + "".join(letters)[:_RUN]
    return [letter * _RUN + rest for letter in list(letters)[:_MOST_RUNS]]


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what a library writes past Python from standard error: a panic of the tokenizers library is reported as ours."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
