"""Pieces of a run as bytes and back: forecasts and raw scores with all that their files say of a row.

The texts are not among it, unless asked for: who goes on with a run reads the input again, and compares digests.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.base.frames import framed, unframed
from prefcast.errors import RowError, ScoringError
from prefcast.forecasts.predictions import Forecasts
from prefcast.forecasts.scores import RawScores
from prefcast.outcomes.models import Link
from prefcast.pairs import Outcome, Pair, Turn
from prefcast.pairs.budget import Truncation

__all__ = [
    "Items",
    "Piece",
    "digest_of",
    "link_as_json",
    "link_of_json",
    "pack",
    "pack_items",
    "unpack",
    "unpack_items",
]

Piece = Forecasts | RawScores
Items = Sequence[Pair | RowError]

_ERRORS: dict[str, type[RowError]] = {kind.__name__: kind for kind in (RowError, ScoringError)}
# Stands where a pair's texts are not kept.
_NO_TEXT = (Turn("", "", ""),)


def digest_of(items: Items) -> bytes:
    """What decides whether the rows are those of before: ids, labels, models, texts, faults."""
    parts: list[str] = []
    for item in items:
        if isinstance(item, RowError):
            parts += ("!", str(item), repr(item.id))
            continue
        outcome = "" if item.outcome is None else str(int(item.outcome))
        parts += (repr(item.id), outcome, repr(item.model_a), repr(item.model_b), str(len(item.turns)))
        for turn in item.turns:
            parts += (turn.prompt, turn.response_a, turn.response_b)
    # Lengths first: no text can pass for the border between two.
    sizes = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return blake2b(sizes.tobytes() + "".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pack(piece: Piece, *, with_text: bool = False) -> bytes:
    """The piece as bytes."""
    arrays = _arrays(piece)
    truncations = np.array(
        [
            (-1,) * 4 if cut is None else (cut.kept, cut.total, cut.turns_kept, cut.turns_total)
            for cut in piece.truncations
        ],
        dtype=np.int64,
    ).reshape(-1, 4)
    labels = [None if pair is None or pair.outcome is None else int(pair.outcome) for pair in piece.pairs]
    models = [None if pair is None else (pair.model_a, pair.model_b) for pair in piece.pairs]
    header: dict[str, Any] = {
        "kind": type(piece).__name__,
        "ids": piece.ids,
        "read": [int(pair is not None) for pair in piece.pairs] if None in piece.pairs else None,
        "labels": labels if any(label is not None for label in labels) else None,
        "models": models if any(each not in (None, (None, None)) for each in models) else None,
        "errors": [
            (row, type(error).__name__, error.file, error.row, error.field, error.problem, error.id)
            for row, error in enumerate(piece.errors)
            if error is not None
        ],
        "arrays": [(name, array.shape) for name, array in arrays.items()],
    }
    texts = b""
    if with_text:
        said = [
            None if pair is None else [(t.prompt, t.response_a, t.response_b) for t in pair.turns]
            for pair in piece.pairs
        ]
        texts = zlib.compress(json.dumps(said).encode(), 1)
    return framed(header, [truncations, *arrays.values(), texts])


def _arrays(piece: Piece) -> dict[str, NDArray[np.float64]]:
    if isinstance(piece, RawScores):
        return dict(piece.columns)
    arrays = {"probabilities": piece.probabilities, "margin": piece.margin, "tie": piece.tie}
    if piece.columns is not None:
        arrays |= {"margin_columns": piece.columns[0], "tie_columns": piece.columns[1]}
    if piece.spread is not None:
        arrays["spread"] = piece.spread
    return arrays


def pack_items(items: Items) -> bytes:
    """Rows with their texts as bytes, for whoever scores them elsewhere."""
    said = [
        ["!", type(item).__name__, item.file, item.row, item.field, item.problem, item.id]
        if isinstance(item, RowError)
        else [
            item.id,
            None if item.outcome is None else int(item.outcome),
            item.model_a,
            item.model_b,
            item.row,
            [(turn.prompt, turn.response_a, turn.response_b) for turn in item.turns],
        ]
        for item in items
    ]
    return json.dumps(said).encode()


def unpack_items(data: bytes) -> list[Pair | RowError]:
    """The rows that `pack_items` made into bytes."""
    items: list[Pair | RowError] = []
    for said in json.loads(data):
        if len(said) == 7:
            items.append(_ERRORS[said[1]](*said[2:]))
            continue
        id, outcome, model_a, model_b, row, turns = said
        label = None if outcome is None else Outcome(outcome)
        items.append(Pair(tuple(Turn(*turn) for turn in turns), id, label, model_a, model_b, row))
    return items


def unpack(data: bytes, items: Items | None = None, link: Link | None = None) -> Piece:
    """The piece that `pack` made. `items` are the rows that it is of, where they are at hand; `link` is the forecaster's.

    Raises ValueError, KeyError or TypeError if the bytes are not such.
    """
    header, body = unframed(data)
    ids: list[str | int] = header["ids"]
    n = len(ids)
    cuts = np.frombuffer(body, dtype=np.int64, count=4 * n).reshape(n, 4).tolist()
    truncations = [None if cut[0] < 0 else Truncation(*cut) for cut in cuts]
    at, arrays = 32 * n, dict[str, NDArray[np.float64]]()
    for name, shape in header["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(body, dtype=np.float64, count=count, offset=at).reshape(shape)
        at += 8 * count
    errors: list[RowError | None] = [None] * n
    for row, kind, *said in header["errors"]:
        errors[row] = _ERRORS[kind](*said)
    pairs = _stubs(header, ids, body[at:]) if items is None else [i if isinstance(i, Pair) else None for i in items]
    if header["kind"] == "RawScores":
        return RawScores(ids, arrays, truncations, errors, pairs)
    columns = (arrays["margin_columns"], arrays["tie_columns"]) if "margin_columns" in arrays else None
    return Forecasts(
        ids,
        arrays["probabilities"],
        arrays["margin"],
        arrays["tie"],
        truncations,
        errors,
        pairs,
        None if columns is None else link,
        columns,
        arrays.get("spread"),
    )


def _stubs(header: Mapping[str, Any], ids: Sequence[str | int], texts: bytes) -> list[Pair | None]:
    """The pairs with what is known of them without the input."""
    none = [None] * len(ids)
    read, labels, models = header["read"] or [1] * len(ids), header["labels"] or none, header["models"] or none
    pairs = [
        Pair(_NO_TEXT, id, None if label is None else Outcome(label), *(names or (None, None))) if is_read else None
        for id, is_read, label, names in zip(ids, read, labels, models, strict=True)
    ]
    if not texts:
        return pairs
    said = json.loads(zlib.decompress(texts))
    return [
        None if pair is None else replace(pair, turns=tuple(Turn(*turn) for turn in turns))
        for pair, turns in zip(pairs, said, strict=True)
    ]


def link_as_json(link: Link | None) -> dict[str, Any] | None:
    """A link with its draws, exactly."""
    if link is None:
        return None
    names = {"kind": link.kind, "margin": link.margin, "tie": link.tie}
    return {**names, "theta": link.theta.tolist(), "draws": link.draws.tolist()}


def link_of_json(said: Mapping[str, Any] | None) -> Link | None:
    """The link that `link_as_json` wrote."""
    if said is None:
        return None
    theta, draws = (np.array(said[name], dtype=np.float64) for name in ("theta", "draws"))
    return Link(said["kind"], tuple(said["margin"]), tuple(said["tie"]), theta, draws)
