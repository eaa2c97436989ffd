"""A small text encoder and the surface of the texts, joined: what `prefcast train embedded` makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, MissingExtraError
from prefcast.pairs import Pair
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.embedded.conversations import ConversationReader
from prefcast.scorers.embedded.encoder import ENCODER, HEAD, Network
from prefcast.scorers.surface import SurfaceScorer
from prefcast.scorers.surface.model import SurfaceModel

__all__ = ["LEAST_TOKENS", "MOST_TOKENS", "TOKENIZER", "EmbeddedScorer", "Join"]

Floats = NDArray[np.float64]

TOKENIZER = "tokenizer.json"
# How much of a conversation may be read: with less no text would be left, more places the networks do not have.
LEAST_TOKENS, MOST_TOKENS = 16, 512
_FILE = "embedded.json"
_FORMAT = 1


@dataclass(frozen=True)
class Join:
    """How much each part counts: margin = surface_margin * m_surface + encoder_margin * m_encoder, the tie alike."""

    surface_margin: float = 1.0
    encoder_margin: float = 1.0
    surface_tie: float = 1.0
    encoder_tie: float = 1.0


class EmbeddedScorer(Scorer):
    """Evidence from what the answers say and how they look.

    `folder` holds encoder.onnx, head.onnx and tokenizer.json; a conversation is read up to `tokens` tokens. Raw numbers
    are the parts' own evidence. Raises MissingExtraError without onnxruntime and tokenizers (extra `train`).
    """

    name: ClassVar[str] = "embedded"
    files: ClassVar[tuple[str, ...]] = (_FILE, "surface.json", ENCODER, HEAD, TOKENIZER)
    raw_names = ("margin:surface", "tie:surface", "margin:encoder", "tie:encoder")

    def __init__(self, surface: SurfaceModel, folder: Path, join: Join, tokens: int = 448) -> None:
        for module in ("onnxruntime", "tokenizers"):
            if find_spec(module) is None:
                raise MissingExtraError(module, "train")
        self.surface = SurfaceScorer(surface)
        self.join = join
        self.folder = folder
        self.reader = ConversationReader(folder / TOKENIZER, tokens)
        self._network = Network(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            said = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            if said["format"] != _FORMAT:
                raise ForecasterError(f"{folder / _FILE}: format {said['format']!r} is not one that this version reads")
            join = Join(**{part.name: float(said["join"][part.name]) for part in fields(Join)})
            tokens = int(said["tokens"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ForecasterError(f"{folder / _FILE}: damaged: {type(error).__name__}: {error}") from None
        if not np.isfinite(list(asdict(join).values())).all() or not LEAST_TOKENS <= tokens <= MOST_TOKENS:
            raise ForecasterError(
                f"{folder / _FILE}: damaged: weights must be finite, tokens from {LEAST_TOKENS} to {MOST_TOKENS}"
            )
        return cls(SurfaceModel.load(folder / "surface.json"), folder, join, tokens)

    def save(self, folder: Path) -> None:
        for name in (ENCODER, HEAD, TOKENIZER):
            shutil.copyfile(self.folder / name, folder / name)
        self.surface.save(folder)
        said = {"format": _FORMAT, "tokens": self.reader.limit, "join": asdict(self.join)}
        (folder / _FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    def parts(self, pairs: Sequence[Pair]) -> tuple[Floats, Floats, Floats, Floats]:
        """Margin and tie of the surface, margin and tie of the encoder, (n,) each."""
        # The features are Python's work, the encoder releases the interpreter: they overlap.
        with ThreadPoolExecutor(1) as other:
            looks = other.submit(self.surface.evidence, pairs)
            margin, tie = self._network.evidence(self.reader.read(pairs), self.on_progress)
            surface = looks.result()
        return surface.margin, surface.tie, margin, tie

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        parts = self.parts(pairs)
        join = self.join
        margin = join.surface_margin * parts[0] + join.encoder_margin * parts[2]
        tie = join.surface_tie * parts[1] + join.encoder_tie * parts[3]
        return Evidence(margin, tie, raw=dict(zip(self.raw_names, parts, strict=True)))

    def explain(self, pair: Pair) -> list[Push]:
        margin, tie = self._network.evidence(self.reader.read([pair]))
        pushes = [
            Push(push.name, self.join.surface_margin * push.margin, self.join.surface_tie * push.tie, push.values)
            for push in self.surface.explain(pair)
        ]
        encoder = Push(
            "what is said", self.join.encoder_margin * float(margin[0]), self.join.encoder_tie * float(tie[0])
        )
        return sorted([*pushes, encoder], key=lambda push: -(abs(push.margin) + abs(push.tie)))

    def close(self) -> None:
        self._network.close()
