"""The scorer `embedded`: the vectors of a small text encoder and the features of `surface`."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError
from prefcast.pairs import Pair
from prefcast.scorers.base import Evidence, Push, Scorer
from prefcast.scorers.embedded.encoder import ENCODER, Encoder
from prefcast.scorers.embedded.model import TopicModel
from prefcast.scorers.embedded.texts import TOKENIZER, PairTokenizer
from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.surface import feature_arrays, pushes
from prefcast.scorers.surface.model import SurfaceModel

__all__ = ["LEAST_TOKENS", "MOST_TOKENS", "EmbeddedScorer"]

# The limits of `tokens`: fewer would leave hardly any text, and the encoder has no positions for more.
LEAST_TOKENS, MOST_TOKENS = 16, 510
_FILE, _SURFACE = "embedded.json", "surface.json"


class EmbeddedScorer(Scorer):
    """Evidence from the vectors of the texts and from their surface.

    `folder` holds encoder.onnx and tokenizer.json. The prompts, A's responses and B's responses are read up to `tokens`
    tokens each. Raw numbers are the parts of the evidence from the surface features and from the vectors, how `unlike` the training
    data a pair is, and the standard error of its margin, `doubt` (see `model.Doubt`).
    """

    name: ClassVar[str] = "embedded"
    files: ClassVar[tuple[str, ...]] = (_FILE, _SURFACE, ENCODER, TOKENIZER)
    # A killed run loses at most one batch; in a smaller batch the threads would wait for each other more often.
    batch_pairs = 64
    raw_names = ("margin:surface", "tie:surface", "margin:encoder", "tie:encoder", "unlike", "doubt")

    def __init__(self, model: TopicModel, encoder: Encoder, folder: Path, tokens: int) -> None:
        self.model, self.encoder, self.folder = model, encoder, folder
        self.reader = PairTokenizer(folder / TOKENIZER, tokens)

    def of_model(self, model: TopicModel, tokens: int | None = None) -> Self:
        """A scorer with the same encoder and other weights, or another number of tokens."""
        return type(self)(model, self.encoder, self.folder, tokens or self.reader.limit)

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        cls._check_unmoved(folder, moved)
        encoder = Encoder(folder / ENCODER)
        model, said = TopicModel.load(folder / _FILE, SurfaceModel.load(folder / _SURFACE), encoder.width)
        tokens = said.get("tokens")
        if not isinstance(tokens, int) or not LEAST_TOKENS <= tokens <= MOST_TOKENS:
            raise ForecasterError(
                f"{folder / _FILE}: damaged: tokens must be a whole number from {LEAST_TOKENS} to {MOST_TOKENS}"
            )
        return cls(model, encoder, folder, tokens)

    def save(self, folder: Path) -> None:
        for name in (ENCODER, TOKENIZER):
            shutil.copyfile(self.folder / name, folder / name)
        self._save_weights(folder)

    def _save_weights(self, folder: Path) -> None:
        self.model.surface.save(folder / _SURFACE)
        self.model.save(folder / _FILE, tokens=self.reader.limit)

    def identity(self) -> str:
        digest = hashlib.sha256()
        for name in (ENCODER, TOKENIZER):
            digest.update(read_whole(self.folder / name))
        with tempfile.TemporaryDirectory() as folder:
            self._save_weights(Path(folder))
            for name in (_FILE, _SURFACE):
                digest.update(read_whole(Path(folder) / name))
        return hashlib.sha256(f"{version('prefcast')}\0{digest.hexdigest()}".encode()).hexdigest()

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        # Features and vectors are computed at the same time: the encoder releases the interpreter's lock.
        with ThreadPoolExecutor(1) as other:
            features = other.submit(feature_arrays, pairs)
            vectors = list(self.encoder.vectors(self.reader.read(pairs)))
            rows = zip(*features.result(), vectors, strict=True)
        terms = [self.model.terms(*row) for row in rows]
        raw = {
            "margin:surface": np.array([each.margin.sum() for each in terms]),
            "tie:surface": np.array([each.likeness.sum() + each.pair.sum() for each in terms]),
            "margin:encoder": np.array([each.said_margin for each in terms]),
            "tie:encoder": np.array([each.said_tie for each in terms]),
            "unlike": np.array([each.unlike for each in terms]),
            "doubt": np.array([each.error for each in terms]),
        }
        margin, tie = (raw[f"{what}:surface"] + raw[f"{what}:encoder"] for what in ("margin", "tie"))
        return Evidence(margin, tie, raw=raw)

    def use_threads(self, threads: int) -> None:
        self.encoder.use_threads(threads)

    def explain(self, pair: Pair) -> list[Push]:
        a, b, both = (rows[0] for rows in feature_arrays([pair]))
        vectors = next(iter(self.encoder.vectors(self.reader.read([pair]))))
        terms = self.model.terms(a, b, both, vectors)
        found = pushes(a, b, both, terms.margin, terms.likeness, terms.pair)
        found.append(Push("what is said", terms.said_margin, terms.said_tie))
        return sorted(found, key=lambda push: -(abs(push.margin) + abs(push.tie)))

    def close(self) -> None:
        self.encoder.close()


SCORER = ScorerInfo(
    EmbeddedScorer.name,
    f"{__name__}:EmbeddedScorer",
    "a small text encoder's vectors beside the features of surface; explains itself",
    files=EmbeddedScorer.files,
)
