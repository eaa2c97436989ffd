"""Finds the folder of a model: a local one, or that of a hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prefcast.errors import MissingExtraError, ModelError, UsageError, excerpt, shown_path

__all__ = ["folder_of", "is_hub_id"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def folder_of(model: str | os.PathLike[str], trust_remote_code: bool = False, *, weights: bool = True) -> Path:
    """The folder that a path or hub id names. A hub id is fetched, without its weights unless `weights`. Raises UsageError and
    ModelError."""
    path = Path(model)
    try:
        if path.is_dir():
            return path
        if path.exists():
            raise UsageError(f"{shown_path(model)}: is a file; name the folder that holds config.json and the weights")
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown_path(model)}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(model, str) or not is_hub_id(model):
        raise UsageError(
            f"{shown_path(model)}: no such folder; name a folder with a model, or a hub id like owner/name"
        )
    return _download(model, trust_remote_code, weights)


def is_hub_id(model: str) -> bool:
    """Whether a name has the form of a hub id, `owner/name`."""
    return bool(_HUB_ID.fullmatch(model)) and not model.startswith(".")


def _download(model: str, trust_remote_code: bool, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError("huggingface_hub", "transformers") from None
    repository, _, revision = model.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[*_HUB_FILES, *(["*.py"] if trust_remote_code else [])],
                ignore_patterns=None if weights else ["*.safetensors"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{model}: no such folder here, and it cannot be fetched from the hub: {excerpt(reason, 200)}; without a "
            "network name a local folder"
        ) from None
