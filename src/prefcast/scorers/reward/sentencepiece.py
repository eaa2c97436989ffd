"""InternLM2's tokenizer from its `tokenizer.model`, as a `tokenizers.Tokenizer`.

The published fast tokenizer is Python code inside the checkpoint. This module builds the same tokenizer without running
that code: BPE with byte fallback over the SentencePiece pieces, merges ordered by score, special tokens at the ids that
`tokenizer_config.json` gives them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from prefcast.errors import ModelError, shown_path
from prefcast.scorers.reward.files import read_object

__all__ = ["build_tokenizer", "read_pieces"]

_SPACE = "\u2581"


def read_pieces(path: Path) -> Any:
    """The SentencePiece model in a file, as the ModelProto of sentencepiece_model.proto.

    Raises ModelError.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    except DecodeError as error:
        raise ModelError(f"{shown_path(path)}: not a SentencePiece model: {error}") from None
    if not model.pieces:
        raise ModelError(f"{shown_path(path)}: not a SentencePiece model: it has no pieces")
    return model


def build_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the InternLM2 checkpoint in `folder` (`tokenizer.model`, `tokenizer_config.json`).

    Raises ModelError.
    """
    from transformers.convert_slow_tokenizer import generate_merges  # type: ignore[attr-defined]

    model = read_pieces(folder / "tokenizer.model")
    # The first three ids belong to the control tokens, whatever the file calls them.
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece.piece, piece.score) for piece in model.pieces[3:])]
    added = _added_tokens(folder)
    for index, token in added.items():
        if index < len(pieces):
            pieces[index] = (token.content, pieces[index][1])
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    # No merge makes a special token out of letters.
    special = {token.content for token in added.values()}
    merges = [merge for merge in generate_merges(vocabulary, dict(pieces)) if "".join(merge) not in special]
    for name in ("<|im_start|>", "<|im_end|>"):
        if name not in special:
            raise ModelError(
                f"{shown_path(folder)}: tokenizer_config.json gives no id for {name} (added_tokens_decoder)"
            )
    unknown = model.trainer_spec.unk_piece
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = model.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([token for _, token in sorted(added.items())])
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The special tokens by id."""
    found: dict[int, AddedToken] = {}
    path = folder / "tokenizer_config.json"
    try:
        for index, token in _object(path).get("added_tokens_decoder", {}).items():
            flags = {name: bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            found[int(index)] = AddedToken(token["content"], special=True, **flags)
        path = folder / "added_tokens.json"
        for name, index in _object(path).items():
            found.setdefault(int(index), AddedToken(name, normalized=False, special=True))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{shown_path(path)}: damaged: {type(error).__name__}: {error}") from None
    for index, name in enumerate(("<unk>", "<s>", "</s>")):
        found.setdefault(index, AddedToken(name, normalized=False, special=True))
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, shown_path(path.parent))
    except FileNotFoundError:
        return {}
