"""Trains an `embedded` forecaster: anew from the data of the project, or by moving the shipped one towards a person's own pairs.

The encoder does not change. Its vectors and the surface features are computed once. Then one fit finds all weights, or
`prefcast.training.moving` moves those of the start. The link is fitted last, to the evidence of rows that the weights were not
fitted to.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError, shown_path
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.selection import cross_fitted, davidson_link
from prefcast.forecasts.fitted_rows import FittedRows, Overlap
from prefcast.forecasts.folder import check_folder
from prefcast.forecasts.forecaster import Forecaster, load_forecaster
from prefcast.measuring.metrics import row_log_loss
from prefcast.measuring.metrics.measure import evaluate_probabilities
from prefcast.outcomes.calibration import measure_calibration
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.bootstrap import paired_difference
from prefcast.pairs import Outcome, Pair
from prefcast.runs.ready import Running
from prefcast.scorers.embedded import LEAST_TOKENS, MOST_TOKENS, EmbeddedScorer
from prefcast.scorers.embedded.encoder import ENCODER, Encoder
from prefcast.scorers.embedded.texts import TOKENIZER, PairTokenizer
from prefcast.scorers.store import EvidenceStore
from prefcast.scorers.surface import feature_arrays
from prefcast.training.data import Labelled, read_labelled
from prefcast.training.fit import Rows, evidence, fit
from prefcast.training.flattening import flattened, flattening
from prefcast.training.known import without_known
from prefcast.training.leaks import leak_lines
from prefcast.training.moving import Prepared, fold_of, moved, out_of_fold
from prefcast.training.shared import plain_figure, versions
from prefcast.training.splits import said_of
from prefcast.training.vectors import Step, read_vectors

__all__ = ["Step", "train_embedded"]

Floats = NDArray[np.float64]

# How many tokens of a text are read, without those for its start and end.
TOKENS = 320
FOLDS, LINK_FOLDS = 5, 10
_SHIPPED = "embedded"


@dataclass(frozen=True)
class _Origin:
    """The start of a training: the folder of the encoder, and the forecaster that is moved, if one is."""

    name: str
    folder: Path
    encoder: Encoder
    forecaster: Forecaster | None
    tokens: int
    sha256: str


def train_embedded(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    start: str | os.PathLike[str] | None = None,
    encoder: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    votes: bool = True,
    seed: int = 0,
    running: Running | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Forecaster:
    """Train on the labelled pairs in `data` (a folder or files, see `prefcast.training.data`) and write the
    forecaster's folder `output`.

    A person's own pairs move the forecaster `start` (a name or a folder; default: the shipped one), as far as cross-validation finds
    worth it. Pairs that it was fitted on are left out. If neither other weights nor another outcome model are better, nothing is
    written, and the result is `start`; `kept` in its card says so. The data of the project, or a
    folder `encoder` with encoder.onnx and tokenizer.json, make a new model: its final weights are fitted to the pairs for the link
    too, and the link is fitted to evidence from the other folds. `tokens` is how much is read of the prompts and of the responses
    of each side (default: as much as `start` reads). With `votes`, the targets are shares of votes if a source has them. `seed`
    draws the prompts that are kept for the link if there is no `dev/`.

    A training that was killed can be started again with the same arguments, and ends with the same weights. The evidence store
    that `running` names keeps the vectors of the encoder. Raises MissingExtraError, UsageError, ForecasterError, FitError, and the
    errors of reading files.
    """
    tell = say or (lambda text: None)
    target = Path(output)
    if start is not None and encoder is not None:
        raise UsageError("start from a forecaster or from an encoder alone, not from both")
    running = running or Running()
    check_folder(target)
    files = [data] if isinstance(data, str | os.PathLike) else data
    labelled = read_labelled([Path(file) for file in files], votes=votes, seed=seed)
    origin = _origin(start, encoder, labelled.own, tokens)
    with closing(origin.encoder):
        for line in (*leak_lines(labelled.leaks), *labelled.notes):
            tell(line)
        known = None
        if origin.forecaster is not None:
            known = without_known(labelled, origin.forecaster.fitted_rows, origin.name)
            labelled = known.labelled
            for line in known.lines:
                tell(line)
        used = np.flatnonzero((labelled.weight > 0) | labelled.calibration)
        kept = int(labelled.calibration.sum())
        tell(said_of(len(used) - kept, kept, labelled.left_out, "for the link"))
        began = time.monotonic()
        pairs = [labelled.pairs[row] for row in used.tolist()]
        texts = PairTokenizer(origin.folder / TOKENIZER, origin.tokens).read(pairs)
        with EvidenceStore(running.store) if running.keep else nullcontext() as store:
            vectors = read_vectors(texts, origin.encoder, origin.sha256, store, fresh=running.fresh, progress=progress)
        rows = Rows(
            *feature_arrays(pairs),
            vectors,
            labelled.target[used],
            labelled.weight[used],
            labelled.source[used],
            labelled.tieless[labelled.source[used]],
            labelled.scaled[labelled.source[used]],
        )
        learned, link = rows.weight > 0, labelled.calibration[used]
        group, outcome = labelled.group[used], labelled.outcome[used]
        ready = Prepared(pairs, rows, learned, link, group=group, outcome=outcome, names=labelled.names)
        found: Forecaster | None
        if origin.forecaster is None or known is None:
            found, figures = _anew(ready, labelled, used, origin, tell)
        else:
            found, figures = moved(origin.forecaster, origin.name, ready, ~known.prompt[used], tell)
            figures["known_to_start"] = known.counts
        card = {**_card(labelled, origin, time.monotonic() - began, figures), "kept": found is None}
        if found is not None:
            replace(found, card=card).save(target)
    if found is None:
        return replace(load_forecaster(_SHIPPED if start is None else start), card=card)
    return load_forecaster(target)


def _anew(
    data: Prepared, labelled: Labelled, used: NDArray[np.int64], origin: _Origin, tell: Callable[[str], None]
) -> tuple[Forecaster, dict[str, Any]]:
    """A forecaster that is fitted to the pairs alone, and its figures."""
    rows, learned, link = data.rows, data.learned, data.link
    figures: dict[str, Any] = {}
    tell(f"cross-validating, {FOLDS} folds by first prompt")
    before = out_of_fold(rows, FOLDS, data.group, (learned, learned))
    figures["cross_validated"] = _cross_validated(before, rows, learned, labelled, used)
    # Sources of full weight are votes, or close to them.
    full = learned & (rows.weight == rows.weight.max()) & ~rows.tieless
    tell("fitting the weights")
    model = flattened(fit(rows.where(learned)), flattening(before, rows, full))
    tell("fitting the link")
    scorer = EmbeddedScorer(model, origin.encoder, origin.folder, origin.tokens)
    for_link = [pair for pair, is_link in zip(data.pairs, link, strict=True) if is_link]
    groups = data.group[link]
    overlap = Overlap(load_forecaster("surface").fitted_rows)
    overlap.add(for_link)
    if overlap.found is not None and overlap.found.found:
        tell(f"{overlap.found} of the surface model: its figure is too good")
    _, figures["cross_fitted"] = _linked(scorer, evidence(model, rows.where(link)), for_link, groups)
    tell(f"learning the link's pairs too, {LINK_FOLDS} folds by first prompt for the link")
    rows, every = replace(rows, weight=np.where(link, 1.0, rows.weight)), learned | link
    after = out_of_fold(rows, LINK_FOLDS, data.group, (every, link))
    known = tuple(np.where(link, new, old) for new, old in zip(after, before, strict=True))
    # The figures are for the flattening that the other folds choose.
    margin, fold = after[0].copy(), fold_of(data.group, LINK_FOLDS)
    for number in range(LINK_FOLDS):
        of = link & (fold == number)
        margin[of] = flattening(known, rows, (full | link) & ~of).of(after[0], after[2], rows)[of]
    found, figures["out_of_fold"] = _linked(scorer, (margin[link], after[1][link]), for_link, groups)
    chosen = flattening(known, rows, full | link)
    model = flattened(fit(rows.where(every)), chosen)
    figures["flattening"] = {name: round(value, 3) for name, value in chosen._asdict().items()}
    return replace(found, scorer=scorer.of_model(model), fitted_rows=FittedRows.of(data.pairs)), figures


def _origin(
    start: str | os.PathLike[str] | None, encoder: str | os.PathLike[str] | None, own: bool, tokens: int | None
) -> _Origin:
    if tokens is not None and not LEAST_TOKENS <= tokens <= MOST_TOKENS:
        raise UsageError(f"--tokens is {tokens}; the encoder reads from {LEAST_TOKENS} to {MOST_TOKENS}")
    if encoder is not None:
        folder = Path(encoder)
        opened, forecaster, name, before = Encoder(folder / ENCODER), None, folder.resolve().name, TOKENS
    else:
        loaded = load_forecaster(_SHIPPED if start is None else start)
        scorer = loaded.scorer
        if not isinstance(scorer, EmbeddedScorer):
            shown = shown_path(start or _SHIPPED)
            raise UsageError(
                f"{shown}: is a {scorer.name} forecaster; --from takes one that `prefcast train embedded` made"
            )
        folder, opened, before = scorer.folder, scorer.encoder, scorer.reader.limit
        name = _SHIPPED if start is None else Path(start).resolve().name
        read = scorer.of_model(scorer.model, tokens)
        forecaster = replace(loaded, scorer=read) if own or start is not None else None
    digest = hashlib.sha256()
    for file in (ENCODER, TOKENIZER):
        digest.update((folder / file).read_bytes())
    return _Origin(name, folder, opened, forecaster, tokens or before, digest.hexdigest())


def _linked(
    scorer: EmbeddedScorer, found: tuple[Floats, Floats], pairs: list[Pair], group: NDArray[np.int64]
) -> tuple[Forecaster, dict[str, Any]]:
    """A forecaster with `scorer`, and its figures beside those of the shipped surface model on the same folds. `found` is the
    evidence of the labelled `pairs`. The figures are cross-fitted by first prompt, which `group` (n,) numbers."""
    outcome = np.array([pair.outcome for pair in pairs], dtype=np.int64)
    shipped = load_forecaster("surface")
    surface = shipped.evidence(pairs)
    both = LabelledEvidence(2, names=("embedded", "surface"))
    alone = LabelledEvidence(1)
    votes, keys = np.eye(len(Outcome))[outcome], group.astype(np.uint64)
    models = [(pair.model_a, pair.model_b) for pair in pairs]
    margins, ties = (np.column_stack(each) for each in zip(found, surface, strict=True))
    both.add(margins, ties, votes, keys, models=models)
    alone.add(found[0][:, None], found[1][:, None], votes, keys, models=models)
    link = davidson_link(alone).renamed({"margin:0": "margin", "tie:0": "tie"})
    scale, level, tie_weight = map(float, link.theta)
    forecasts = [cross_fitted(both, (member,)) for member in range(2)]
    numbers = np.concatenate(list(both.table.blocks()))
    named = (numbers[:, both.place[name]] for name in ("model_a", "model_b"))
    calibration = measure_calibration(forecasts[0], votes, keys, *named)
    known = shipped.calibration
    if known is not None and (calibration.source != "models" or calibration.net < known.net):
        # These rows do not name their models, or few of them do. The error of the surface model for whole systems is known, and it is
        # large.
        source = f"{known.source}, by the surface model"
        calibration = replace(calibration, net=known.net, tie=known.tie, source=source, n=known.n)
    forecaster = Forecaster(
        scorer,
        Davidson(scale, level, tie_weight),
        prior_tie=round(float((outcome == Outcome.TIE).mean()), 4),
        link=link,
        calibration=calibration,
    )
    return forecaster, _figures(forecasts[0], forecasts[1], outcome, group)


def _cross_validated(
    evidence: tuple[Floats, ...], rows: Rows, learned: NDArray[np.bool_], labelled: Labelled, used: NDArray[np.int64]
) -> dict[str, Any]:
    """Log loss by source, before margins are flattened. The `evidence` of each row is from a fit to the other folds. The link of each
    source is cross-fitted too."""
    group, (margin, tie, _) = labelled.group[used], evidence
    found = {}
    for number, name in enumerate(labelled.names):
        of = learned & (rows.source == number)
        if of.sum() < 500 or rows.tieless[of].any():
            continue
        data = LabelledEvidence(1)
        outcome = labelled.outcome[used[of]]
        data.add(margin[of, None], tie[of, None], np.eye(len(Outcome))[outcome], group[of].astype(np.uint64))
        scores = evaluate_probabilities(cross_fitted(data, (0,)), outcome, group[of].tolist()).scores
        found[name] = {"n": int(of.sum()), "log_loss": plain_figure(scores.log_loss)}
    return found


def _figures(embedded: Floats, surface: Floats, outcome: NDArray[np.int64], group: NDArray[np.int64]) -> dict[str, Any]:
    groups = group.tolist()
    found = evaluate_probabilities(embedded, outcome, groups)
    scores = found.scores
    shipped = evaluate_probabilities(surface, outcome, groups).scores
    gain = paired_difference(row_log_loss(surface, outcome), row_log_loss(embedded, outcome), groups)
    return {
        "n": found.n,
        "prompts": found.groups,
        "log_loss": plain_figure(scores.log_loss),
        "accuracy": plain_figure(scores.accuracy),
        "brier_score": plain_figure(scores.brier_score),
        "expected_calibration_error": plain_figure(scores.expected_calibration_error),
        "log_loss_by_outcome": {name: plain_figure(value) for name, value in scores.log_loss_by_outcome.items()},
        "log_loss_of_class_prior": plain_figure(found.baselines["class_prior"].log_loss),
        "log_loss_of_surface": plain_figure(shipped.log_loss),
        "gain_over_surface": plain_figure(gain),
    }


def _card(labelled: Labelled, origin: _Origin, seconds: float, figures: dict[str, Any]) -> dict[str, Any]:
    """The card of the folder: the data and figures of the training."""
    has_moved = figures.get("move", {}).get("hold") is not None
    learned = origin.forecaster is None or has_moved
    trained, link = {}, {}
    for number, name in enumerate(labelled.names):
        of = labelled.source == number
        weights = labelled.weight[of & (labelled.weight > 0)]
        if len(weights) and learned:
            trained[name] = {"n": len(weights), "weight": float(weights[0])}
        if kept := int((of & labelled.calibration).sum()):
            link[name] = kept
    return {
        "trained_on": trained,
        "link_fitted_on": link,
        "left_out": labelled.left_out,
        "start": {"name": origin.name, "moved": has_moved, "encoder_sha256": origin.sha256},
        "seconds": round(seconds),
        "versions": versions("onnxruntime", "tokenizers", "scipy"),
        "figures": figures,
    }
