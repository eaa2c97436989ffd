"""Training reward models: likelihoods, what is learned of a row, families, products, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import prefcast
from checkpoints import save_decoder, save_internlm2
from conftest import Run
from planted import BASES, planted, write_planted
from prefcast import Pair, Recipe, load_forecaster, train_reward
from prefcast.errors import ModelError, RunError, UsageError
from prefcast.forecasts.fitted_rows import FittedRows
from prefcast.outcomes.models import Davidson, RaoKupper
from prefcast.pairs.budget import WHOLE
from prefcast.runs.stopping import SIGNALS, Interrupted
from prefcast.scorers.base import read_pair
from prefcast.scorers.reward.precision import quantise, quantised_linear
from prefcast.training.reward.likelihood import Link, cross_entropy, log_probabilities
from prefcast.training.reward.loop import Examples, _Loop
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.processes import Processes
from prefcast.training.reward.product import write_model
from prefcast.training.reward.recipe import learning_rate
from prefcast.training.reward.rows import Given, deal, read_rows, split
from prefcast.training.reward.sharding import check_model
from prefcast.training.reward.start import make_start, opened_start
from prefcast.training.reward.state import Reached, State
from prefcast.training.reward.teachers import learned_before, lines_of

QUICK = {"epochs": 1, "batch": 32, "lora": 4, "rate": 3e-3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "p.jsonl", 160)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BASES["llama"](tmp_path_factory.mktemp("llama") / "base")


# The likelihoods.


@pytest.mark.parametrize(("name", "model"), [("davidson", Davidson), ("rao-kupper", RaoKupper)])
def test_a_likelihood_is_the_outcome_models_and_its_gradient_that_of_finite_differences(name: str, model: Any) -> None:
    rng = np.random.default_rng(0)
    s, t = 3 * rng.standard_normal(40), 2 * rng.standard_normal(40)
    expected = model.log_probabilities(s, t)[0]
    found = log_probabilities(name, torch.tensor(s), torch.tensor(t)).numpy()
    assert np.abs(found - expected).max() < 1e-12
    free = [torch.tensor(each, requires_grad=True) for each in (s, t)]
    assert torch.autograd.gradcheck(partial(log_probabilities, name), free)


@pytest.mark.parametrize("name", ["davidson", "rao-kupper"])
@pytest.mark.parametrize("s", [0.0, 300.0, -300.0])
@pytest.mark.parametrize("t", [-300.0, 0.0, 300.0])
def test_a_likelihood_is_finite_far_out(name: str, s: float, t: float) -> None:
    free = [torch.tensor([each], dtype=torch.float64, requires_grad=True) for each in (s, t)]
    found = log_probabilities(name, *free)
    # The likeliest outcome: its loss is the one that is learned there.
    found.max().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(each.grad).all() for each in free if each.grad is not None)


@pytest.mark.parametrize("name", ["davidson", "rao-kupper"])
def test_a_link_begins_with_the_share_of_ties_of_each_source(name: str) -> None:
    link = Link(name, [0.25, 0.6, 0.0])
    nothing = torch.zeros(3, dtype=torch.float64)
    found = link(nothing, nothing, torch.tensor([0, 1, 2])).exp()
    assert found[:2, 2].tolist() == pytest.approx([0.25, 0.6])
    assert found[2, 2] < 1e-9
    assert found.sum(1).tolist() == pytest.approx([1, 1, 1])


# What is learned of a row.


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Fixed:
    """In the place of a network: evidence that is given."""

    def __init__(self, margin: list[float], link: Link) -> None:
        self.margin, self.link = torch.tensor(margin, dtype=torch.float64), link

    def evidence(self, groups: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.margin[list(groups)], torch.zeros(len(groups), dtype=torch.float64)


def loss_of(rows: Any, recipe: Recipe, margin: float = 0.7) -> torch.Tensor:
    link = Link(recipe.likelihood, [0.3] * len(rows.names))
    examples = Examples(rows, list(range(len(rows))), recipe, torch.device("cpu"))  # type: ignore[arg-type]
    fixed = Fixed([margin] * len(rows), link)
    return torch.stack([examples.loss(fixed, [row]).detach() for row in range(len(rows))])  # type: ignore[arg-type]


def test_votes_weights_and_smoothing_make_the_target(tmp_path: Path, pairs: Path) -> None:
    rows, _ = planted(160)
    votes, weights = tmp_path / "votes.csv", tmp_path / "weights.csv"
    votes.write_text("id,votes_a,votes_b,votes_tie\n" + "".join(f"{row['id']},3,1,0\n" for row in rows))
    weights.write_text("id,weight\n" + "".join(f"{row['id']},{1 + place % 2}\n" for place, row in enumerate(rows)))
    found = read_rows(Given(pairs=[pairs], votes=votes, weights=weights))
    assert found.target[0].tolist() == [0.75, 0.25, 0]
    assert found.weight[1] / found.weight[0] == pytest.approx(2)
    log_p = Link("davidson", [0.3])(
        *(torch.tensor([each], dtype=torch.float64) for each in (0.7, 0.0)), torch.tensor([0])
    ).detach()
    target = torch.tensor([[0.75, 0.25, 0.0]], dtype=torch.float64) * 0.9 + 0.1 / 3
    expected = cross_entropy(target, log_p)
    assert float(loss_of(found, Recipe(smoothing=0.1))[0]) == pytest.approx(found.weight[0] * float(expected))


def test_bradley_terry_learns_nothing_of_a_tie(pairs: Path) -> None:
    rows = read_rows(Given(pairs=[pairs]))
    losses = loss_of(rows, Recipe(likelihood="bradley-terry"))
    ties = rows.target[:, 2] == 1
    assert ties.any()
    assert (losses[ties] == 0).all()
    assert losses[rows.target[:, 0] == 1].tolist() == pytest.approx(
        [np.log1p(np.exp(-0.7))] * int((rows.target[:, 0] == 1).sum())
    )


@pytest.mark.parametrize("how", ["weight", "margin"])
def test_strengths_are_weights_or_margins(tmp_path: Path, pairs: Path, how: str) -> None:
    file = tmp_path / "strengths.csv"
    file.write_text("id,strength\n" + "".join(f"{row['id']},2\n" for row in planted(160)[0][:80]))
    rows = read_rows(Given(pairs=[pairs], strengths=file))
    recipe = Recipe(strength=how)
    unsaid = replace(rows, strength=np.full(160, np.nan))
    strong, plain = loss_of(rows, recipe), loss_of(unsaid, recipe)
    assert strong[80:].tolist() == plain[80:].tolist()
    if how == "weight":
        assert strong[:80].tolist() == pytest.approx((2 * plain[:80]).tolist())
        return
    for side, demanded in ((0, 2), (1, -2)):
        won = np.flatnonzero(rows.target[:80, side])[:1]
        expected = loss_of(unsaid.where(won), Recipe(), 0.7 - demanded)
        assert float(strong[won[0]]) == pytest.approx(float(expected[0]))


def test_a_teacher_is_averaged_mixed_and_softened(tmp_path: Path, pairs: Path) -> None:
    rows, _ = planted(160)
    teachers = []
    for number, p in enumerate(((0.6, 0.2, 0.2), (0.4, 0.4, 0.2))):
        teachers.append(tmp_path / f"t{number}.csv")
        text = "".join(f"{row['id']},{p[0]},{p[1]},{p[2]}\n" for row in rows[:100])
        teachers[-1].write_text("id,winner_model_a,winner_model_b,winner_tie\n" + text)
    found = read_rows(Given(pairs=[pairs], teachers=teachers))
    assert found.teacher[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert np.isnan(found.teacher[100:]).all()
    recipe = Recipe(mixing=0.25, temperature=2.0)
    zeros = torch.zeros(1, dtype=torch.float64)
    log_p = Link("davidson", [0.3])(zeros + 0.7, zeros, torch.tensor([0])).detach()
    soft = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).sqrt()
    student = torch.log_softmax(log_p / 2, 1)
    expected = 0.75 * cross_entropy(torch.tensor(found.target[:1]), log_p) + 0.25 * 4 * cross_entropy(
        soft / soft.sum(), student
    )
    losses = loss_of(found, recipe)
    assert float(losses[0]) == pytest.approx(float(expected))
    assert float(losses[120]) == pytest.approx(float(loss_of(found, Recipe())[120]))


def test_a_row_without_a_label_is_learned_from_its_teacher_alone(tmp_path: Path) -> None:
    rows, _ = planted(160)
    for row in rows[:40]:
        row.update(dict.fromkeys(("winner_model_a", "winner_model_b", "winner_tie"), ""))
    file, teacher = written(tmp_path / "p.jsonl", rows), tmp_path / "t.csv"
    teacher.write_text(
        "id,score_a,score_b\n" + "".join(f"{row['id']},{n % 7},3\n" for n, row in enumerate(rows) if n >= 20)
    )
    found = read_rows(Given(pairs=[file], teachers=[teacher]))
    assert (len(found), found.unlabelled) == (140, 20)
    assert int(found.labelled.sum()) == 120
    assert np.isfinite(found.teacher).all()
    assert read_rows(Given(pairs=[file])).unlabelled == 40


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_is_odd_about_a_teacher_is_said(tmp_path: Path, pairs: Path, prefcast_here: Run, kind: str) -> None:
    teacher = tmp_path / f"t.{kind}"
    done = prefcast_here("predict", pairs, "--model", "surface", "--with-text", "-o", teacher)
    assert done.returncode == 0, done.stderr
    assert read_rows(Given(pairs=[pairs], teachers=[teacher])).notes == ()
    # Other pairs that have the same ids.
    other = planted(160, seed=1)[0]
    for number, row in enumerate(other):
        row["id"] = f"r0-{number + 10}"
    notes = read_rows(Given(pairs=[written(tmp_path / "p.jsonl", other)], teachers=[teacher])).notes
    assert len(notes) == 2
    assert notes[0].endswith("10 of its 160 ids are of none of the rows")
    assert "150 of the rows have another first prompt there, the first is id 'r0-10'" in notes[1]


def test_labels_that_are_held_out_do_not_help_to_read_a_teacher(tmp_path: Path, pairs: Path) -> None:
    teacher = tmp_path / "t.csv"
    teacher.write_text("id,score_a,score_b\n" + "".join(f"r0-{n},{n % 7},3\n" for n in range(160)))
    found = read_rows(Given(pairs=[pairs], teachers=[teacher]))
    learned = np.arange(160) >= 40
    changed = replace(found, target=np.where(learned[:, None], found.target, found.target[:, [1, 2, 0]]))
    assert (found.taught_from(learned).teacher == changed.taught_from(learned).teacher).all()
    assert (found.taught_from(learned).teacher != found.taught_from(np.ones(160, dtype=bool)).teacher).any()
    with pytest.raises(UsageError, match="3 of its rows have labels to learn from; that takes at least"):
        found.taught_from(np.arange(160) < 3)


def test_rows_that_a_teacher_was_fitted_on_are_counted(tmp_path: Path, pairs: Path) -> None:
    chosen = list(prefcast.read_pairs(pairs))
    FittedRows.of(chosen[:50]).write(tmp_path)
    learned = np.arange(160) >= 30
    found = learned_before([tmp_path], chosen, learned, ~learned)
    assert [(each["learned"], each["held_out"]) for each in found] == [(20, 30)]
    (line,) = lines_of(found)
    assert "was fitted on 20 of the rows to learn from and 30 of those held out; its forecasts" in line
    with pytest.raises(UsageError, match=r"has no fitted-rows\.bin"):
        learned_before([tmp_path / "none"], chosen, learned, ~learned)


def test_sources_are_files_or_a_column(tmp_path: Path) -> None:
    first, second = (
        write_planted(tmp_path / f"{name}.jsonl", 80, seed, where=name * 2) for seed, name in enumerate("xy")
    )
    assert read_rows(Given(pairs=[first, second])).names == ("x", "y")
    found = read_rows(Given(pairs=[first, second], source="where"))
    assert found.names == ("xx", "yy")
    assert np.bincount(found.source).tolist() == [80, 80]
    with pytest.raises(UsageError, match="two of the files have the id 'r0-0'"):
        read_rows(Given(pairs=[first, first]))


def test_no_prompt_is_on_both_sides_of_a_split_or_of_folds(tmp_path: Path) -> None:
    rows, _ = planted(160)
    # Of each four rows two have a prompt with other punctuation, and one a prompt with another word.
    said = [json.loads(row["prompt"])[0] for row in rows]
    for number, row in enumerate(rows):
        text = " ".join(said[number // 4 * 4 :][:4])
        row["prompt"] = json.dumps([f"{text} {'also' if number % 4 == 3 else ''}{'!' * (number % 2)}"])
    found = read_rows(Given(pairs=[written(tmp_path / "p.jsonl", rows)]))
    assert found.notes == ("80 first prompts in 40 groups: near-duplicates stay on one side of a split",)
    learned, held = split(found, 0.2, 0)
    assert (learned ^ held).all()
    assert not set(found.group[learned]) & set(found.group[held])
    assert int(held.sum()) == 32
    fold = deal(found, 5, 0)
    assert all(len(set(fold[found.group == group])) == 1 for group in set(found.group))
    assert np.bincount(fold).tolist() == [32] * 5


def test_rows_that_share_a_prompt_with_the_files_for_validation_are_left_out(tmp_path: Path) -> None:
    rows, _ = planted(200)
    text = "Write a story about a dog and a cat that live in a house by the sea, please"
    rows[150]["prompt"], rows[1]["prompt"], rows[2]["prompt"] = (
        json.dumps([each]) for each in (text, text.upper(), f"{text} now")
    )
    # The same pair with A and B exchanged, and another id.
    rows[0].update({name: rows[150][name] for name in ("prompt",)})
    rows[0].update(response_a=rows[150]["response_b"], response_b=rows[150]["response_a"])
    files = written(tmp_path / "a.jsonl", rows[:150]), written(tmp_path / "b.jsonl", rows[150:])
    found = read_rows(Given(pairs=[files[0]], held=[files[1]]))
    learned, held = split(found, 0.15, 0)
    assert found.names == ("a",)
    assert held.tolist() == [False] * 150 + [True] * 50
    assert not learned[:3].any()
    assert learned[3:150].all()
    (leak,) = found.leaks
    assert (leak.same_pair, leak.same_prompt, leak.near_prompt) == (1, 1, 1)


# Networks.


def made(folder: Path, base: Path, pairs: Path, recipe: Recipe, n: int = 12) -> tuple[Trainee, Examples, list[Pair]]:
    """A network in training with n rows, without a loop around it."""
    make_start(str(base), folder, recipe)
    scorer = opened_start(folder, recipe, "cpu")
    rows = read_rows(Given(pairs=[pairs])).where(np.arange(n))
    groups = [scorer.group(read_pair(pair, WHOLE, scorer)[0]) for pair in rows.pairs]
    trainee = Trainee(scorer, recipe, [0.3])
    return trainee, Examples(rows, groups, recipe, trainee.device), rows.pairs


def stepped(trainee: Trainee, examples: Examples, steps: int = 2) -> None:
    """Some steps that change every weight that is learned."""
    optimiser = torch.optim.AdamW(trainee.parameters.values(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        examples.loss(trainee, range(len(examples))).backward()
        optimiser.step()


CASES = [
    ("llama", {}),
    ("llama", {"kind": "pair"}),
    ("llama", {"lora": None}),
    ("llama", {"quantize": "nf4"}),
    ("qwen3", {"kind": "pair"}),
    ("qwen3", {}),
    ("gemma2", {"kind": "pair"}),
    ("internlm2", {}),
    ("internlm2", {"lora": None}),
    ("internlm2", {"quantize": "nf4"}),
    ("deberta", {}),
    ("deberta", {"kind": "pair", "lora": None}),
    ("bert", {"merge": True}),
    ("bert", {"kind": "pair", "lora": None}),
]


@pytest.mark.parametrize(
    ("family", "more"), CASES, ids=[f"{family} {' '.join(map(str, more.values()))}" for family, more in CASES]
)
def test_what_is_saved_scores_as_it_did_in_training(
    tmp_path: Path, pairs: Path, family: str, more: dict[str, Any]
) -> None:
    merge = bool(more.get("merge"))
    recipe = Recipe(**(QUICK | {name: value for name, value in more.items() if name != "merge"}))
    trainee, examples, chosen = made(tmp_path / "start", BASES[family](tmp_path / "base"), pairs, recipe)
    before = {name: each.detach().clone() for name, each in trainee.learned.items()}
    # Without dropout, which would change the evidence that is compared below; DeBERTa's is on by default.
    trainee.train(False)
    stepped(trainee, examples, 8 if family in ("deberta", "bert") else 2)
    moved = [name for name, each in trainee.learned.items() if not torch.equal(each, before[name])]
    # The margin is a difference: a bias that both scores have cancels.
    assert {name for name in before if not name.endswith("bias") and "embed" not in name} <= set(moved)
    with torch.no_grad():
        margin, tie = trainee.evidence(examples.groups)
    (tmp_path / "out").mkdir()
    write_model(trainee, tmp_path / "start", tmp_path / "out", recipe, merge=merge)
    found = prefcast.load_scorer(tmp_path / "out", quantize=recipe.quantize).evidence(chosen)
    assert not found.problems
    # A random encoder of one layer hardly tells the orders of a pair apart.
    assert np.abs(margin.numpy()).max() > 1e-4
    assert np.abs(found.margin - margin.numpy()).max() < 1e-5 * max(1, np.abs(found.margin).max())
    assert np.abs(found.tie - tie.numpy()).max() < 1e-5 * max(1, np.abs(found.tie).max())


def test_what_cannot_be_sharded_is_refused(tmp_path: Path, pairs: Path, llama: Path) -> None:
    bert, _, _ = made(tmp_path / "a", BASES["bert"](tmp_path / "base"), pairs, Recipe(**QUICK))
    layers = [torch.nn.Identity()]
    with pytest.raises(UsageError, match="--shard does not know this family of models; it can shard gemma, "):
        check_model(bert.scorer, bert.runner, layers)
    trainee, _, _ = made(tmp_path / "b", llama, pairs, Recipe(**QUICK))
    check_model(trainee.scorer, trainee.runner, layers)
    trainee.runner.longest = 16
    with pytest.raises(UsageError, match="more than 16 tokens one by one; --shard takes it with --max-tokens 16"):
        check_model(trainee.scorer, trainee.runner, layers)


def test_processes_that_share_out_weights_have_as_many_batches(tmp_path: Path, pairs: Path, llama: Path) -> None:
    recipe = Recipe(**QUICK, batch_tokens=120)
    trainee, examples, _ = made(tmp_path / "start", llama, pairs, recipe)
    mesh: Any = "a mesh"
    found = []
    for rank in range(3):
        processes = Processes(rank, 3, "cpu", mesh)
        loop = _Loop(trainee, examples, examples, State(tmp_path / "state"), processes, 0.1)
        found.append(loop._mine(np.arange(len(examples)), examples))
    assert len({len(mine) for mine in found}) == 1
    batches = [(batch, counts) for mine in found for batch, counts in mine]
    assert sum(counts == 0 for _, counts in batches) > 0
    assert sorted(row for batch, counts in batches if counts for row in batch) == list(range(len(examples)))


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_a_merged_model_scores_as_the_adapter(tmp_path: Path, pairs: Path, family: str) -> None:
    recipe = Recipe(**QUICK)
    trainee, examples, chosen = made(tmp_path / "start", BASES[family](tmp_path / "base"), pairs, recipe)
    stepped(trainee, examples)
    for name, merge in (("adapter", False), ("whole", True)):
        (tmp_path / name).mkdir()
        write_model(trainee, tmp_path / "start", tmp_path / name, recipe, merge=merge)
    assert not list((tmp_path / "whole").glob("adapter*"))
    found = [prefcast.load_scorer(tmp_path / name).evidence(chosen).margin for name in ("adapter", "whole")]
    assert np.abs(found[0] - found[1]).max() < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_transformers_and_peft_read_what_was_trained(tmp_path: Path, pairs: Path, llama: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    recipe = Recipe(**QUICK)
    trainee, examples, chosen = made(tmp_path / "start", llama, pairs, recipe)
    stepped(trainee, examples)
    for name, merge in (("adapter", False), ("whole", True)):
        (tmp_path / name).mkdir()
        write_model(trainee, tmp_path / "start", tmp_path / name, recipe, merge=merge)
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1, dtype=torch.float32)
    models = [
        peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval(),
    ]
    scorer = prefcast.load_scorer(tmp_path / "adapter")
    expected = scorer.evidence(chosen[:4]).raw["score_a"]
    ids = [torch.tensor(scorer.group(pair).ids[0][None].astype(np.int64)) for pair in chosen[:4]]
    for model in models:
        with torch.no_grad():
            found = [float(model(input_ids=each).logits) for each in ids]
        assert np.abs(np.array(found) - expected).max() < 1e-5


def gradients(trainee: Trainee, examples: Examples, batches: list[list[int]]) -> dict[str, torch.Tensor]:
    for each in trainee.parameters.values():
        each.grad = None
    for batch in batches:
        examples.loss(trainee, batch).backward()
    return {name: each.grad.clone() for name, each in trainee.parameters.items() if each.grad is not None}


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "pointwise"), ("gemma2", "pair"), ("internlm2", "pointwise"), ("deberta", "pointwise")],
)
def test_gradients_do_not_depend_on_batches_or_recomputing(tmp_path: Path, pairs: Path, family: str, kind: str) -> None:
    recipe = Recipe(**QUICK, kind=kind)
    trainee, examples, _ = made(tmp_path / "start", BASES[family](tmp_path / "base"), pairs, recipe, 6)
    trainee.train(False)
    # The first gradients of A are 0, because B is.
    stepped(trainee, examples, 1)
    alone = gradients(trainee, examples, [[row] for row in range(6)])
    together = gradients(trainee, examples, [list(range(6))])
    trainee.recompute()
    again = gradients(trainee, examples, [list(range(6))])
    assert alone.keys() == together.keys() == again.keys()
    for name, expected in alone.items():
        scale = float(expected.abs().max()) + 1e-3
        assert float((together[name] - expected).abs().max()) < 1e-4 * scale, name
        assert torch.allclose(again[name], together[name], atol=1e-6 * scale), name


def test_the_gradient_of_an_adapter_is_that_of_finite_differences(tmp_path: Path, pairs: Path, llama: Path) -> None:
    trainee, examples, _ = made(tmp_path / "start", llama, pairs, Recipe(**QUICK), 6)
    stepped(trainee, examples)
    found = gradients(trainee, examples, [list(range(6))])
    rng = np.random.default_rng(0)
    for name in (
        next(name for name in found if "q_proj.lora_A" in name),
        next(name for name in found if "down_proj.lora_B" in name),
    ):
        parameter = trainee.parameters[name]
        direction = torch.tensor(rng.standard_normal(parameter.shape), dtype=torch.float32)
        values = []
        with torch.no_grad():
            for step in (1e-2, -2e-2):
                parameter += step * direction
                values.append(float(examples.loss(trainee, range(6))))
            parameter += 1e-2 * direction
        slope = float((found[name] * direction).sum())
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(slope, rel=2e-2, abs=1e-3), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_gradient_through_a_quantised_matrix_is_that_of_the_wide_one(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(32, 64, generator=generator), torch.randn(32, generator=generator)
    layer: Any = quantised_linear(quantise(weight, kind), bias, torch.device("cpu"))
    wide = layer._wide(torch.float32)
    x = torch.randn(5, 64, generator=generator, requires_grad=True)
    expected = torch.autograd.grad(torch.nn.functional.linear(x, wide, bias).square().sum(), x)[0]
    found = torch.autograd.grad(layer(x).square().sum(), x)[0]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert layer.shape == (32, 64)


# Whole trainings.


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_the_command_makes_a_model_and_a_forecaster(
    tmp_path: Path, pairs: Path, llama: Path, prefcast_here: Run
) -> None:
    out = tmp_path / "out"
    call = ("train", "reward", pairs, "--base", llama, "-o", out, "--lora", "4", "--epochs", "1", "--rate", "0.01")
    done = prefcast_here(*call)
    assert done.returncode == 0, done.stderr
    assert "136 pairs to learn from, 24 held out for validation" in done.stderr
    assert "the head score.weight is new" in done.stderr
    assert "log loss on the 24 pairs held out" in done.stdout
    card = (out / "README.md").read_text()
    assert "prefcast train reward" in card
    assert "| rows held out | 24 |" in card
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    losses = [line for line in curve(out) if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5]
    forecasts = prefcast_here("predict", pairs, "--forecaster", out, "-o", tmp_path / "f.csv")
    assert forecasts.returncode == 0, forecasts.stderr
    scores = prefcast_here("score", pairs, "--model", out, "-o", tmp_path / "s.csv", "--no-store")
    assert scores.returncode == 0, scores.stderr
    # The forecaster and the model are one: the evidence is the same.
    with (tmp_path / "s.csv").open() as file:
        margins = [float(row["margin"]) for row in csv.DictReader(file)]
    forecaster = load_forecaster(out)
    assert forecaster.evidence(prefcast.read_pairs(pairs))[0] == pytest.approx(margins, abs=1e-5)
    assert forecaster.card["training"]["recipe"]["lora"] == 4
    # It says which rows it learned, and which chose its outcome model.
    assert forecaster.fitted_rows is not None
    assert forecaster.fitted_rows.rows.number == 160
    again = prefcast_here(*call)
    assert again.returncode == 0
    assert "is trained already" in again.stderr
    other = prefcast_here(*call, "--batch", "16")
    assert other.returncode == 2
    assert "holds a training with another batch: 32, not 16" in other.stderr
    moved = out.rename(tmp_path / "moved")
    assert load_forecaster(moved).evidence(prefcast.read_pairs(pairs))[0] == pytest.approx(margins, abs=1e-5)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.long), 6])
def test_a_training_that_ended_anywhere_goes_on_as_if_it_had_not(
    tmp_path: Path, pairs: Path, llama: Path, at: int
) -> None:
    def die(progress: Any) -> None:
        if progress.done == at == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        if progress.done == at:
            raise KilledError

    before = [signal.getsignal(number) for number in SIGNALS]
    recipe = Recipe(**(QUICK | {"epochs": 2}))
    train = partial(train_reward, pairs, base=str(llama), recipe=recipe, saved_seconds=0.0)
    with pytest.raises(Interrupted if at == 6 else KilledError):
        train(tmp_path / "cut", progress=die)
    # The process goes on, with its own handlers.
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert curve(tmp_path / "cut")[-1]["step"] == at
    # As if the kill had come while a line was written, after the state.
    with (tmp_path / "cut" / "curves.jsonl").open("a") as file:
        file.write(json.dumps({"step": at + 1, "loss": 99.0}) + '\n{"step": ')
    cut, whole = train(tmp_path / "cut"), train(tmp_path / "whole")
    assert cut is not None
    assert whole is not None
    for name in ("loss", "validation"):
        first, second = (
            [line[name] for line in curve(tmp_path / folder) if name in line] for folder in ("cut", "whole")
        )
        assert len(first) == len(second) > 1
        assert first == pytest.approx(second, abs=1e-6)
    weights = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("cut", "whole")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[1])
    assert cut.forecaster.outcome == whole.forecaster.outcome


def test_out_of_fold_scores_are_of_models_that_did_not_learn_the_prompt(
    tmp_path: Path, pairs: Path, llama: Path, prefcast_here: Run
) -> None:
    out = tmp_path / "out"
    trained = train_reward(pairs, out, base=str(llama), recipe=Recipe(**QUICK), folds=2)
    assert trained is not None
    with (out / "out-of-fold.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [f"r0-{n}" for n in range(160)]
    assert all(np.isfinite(float(row["margin"])) and np.isfinite(float(row["tie"])) for row in found)
    done = prefcast_here("fit", pairs, "--scores", out / "out-of-fold.csv", "-o", tmp_path / "fitted")
    assert done.returncode == 0, done.stderr


def test_training_stops_when_the_validation_log_loss_rises(tmp_path: Path, pairs: Path, llama: Path) -> None:
    recipe = Recipe(**(QUICK | {"epochs": 50, "rate": 0.3, "patience": 2}))
    trained = train_reward(pairs, tmp_path / "out", base=str(llama), recipe=recipe)
    assert trained is not None
    said = trained.to_dict()["training"]
    assert said["stopped_early"]
    values = [line["validation"] for line in curve(tmp_path / "out") if "validation" in line]
    assert said["validation"] == min(values)
    assert values.index(min(values)) == len(values) - 3


# Refusals.


def test_what_cannot_be_trained_is_refused(tmp_path: Path, pairs: Path, llama: Path, prefcast_here: Run) -> None:
    def refused(*more: Any, base: Any = llama, data: Any = pairs, out: Any = tmp_path / "no") -> str:
        done = prefcast_here("train", "reward", data, "--base", base, "-o", out, *more)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return str(done.stderr).strip().splitlines()[-1]

    assert "--lora is 'x'" in refused("--lora", "x")
    assert "--lora is '0'" in refused("--lora", "0")
    assert "it needs adapters" in refused("--lora", "none", "--quantize", "nf4")
    assert "leave --likelihood out" in refused("--kind", "pair", "--likelihood", "rao-kupper")
    assert "start them with torchrun" in refused("--shard")
    assert "leave --quantize nf4 out" in refused("--shard", "--quantize", "nf4")
    assert "--rate is nan" in refused("--rate", "nan")
    assert "no such folder" in refused(base=tmp_path / "nothing")
    assert "column 'nope' is missing" in refused("--source", "nope") or "nope" in refused("--source", "nope")
    few = write_planted(tmp_path / "few.jsonl", 30)
    assert "30 labelled pairs; training takes at least 100" in refused(data=few)
    assert "holds out" in refused("--validation", "0.01")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "holds other things than a training" in refused(out=tmp_path / "full")
    assert "--folds is 500" in refused("--folds", "500")
    internlm2 = save_internlm2(tmp_path / "internlm2")
    assert "train it as --kind pointwise" in refused("--kind", "pair", base=internlm2, out=tmp_path / "i")
    gap = save_decoder(tmp_path / "remote")
    config = json.loads((gap / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}, "architectures": ["Y"]}
    (gap / "config.json").write_text(json.dumps(config))
    assert "is not supported" in refused(base=gap, out=tmp_path / "r")


def test_the_state_of_a_training_is_checked(tmp_path: Path) -> None:
    state = State(tmp_path / "training")
    state.claim({"batch": 1})
    assert state.load() is None
    weights = {"a": torch.ones(2)}
    moments = {"a": {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}
    state.save(Reached(3, 0.5, 2, 1), weights, moments)
    found = state.load()
    assert found is not None
    assert found[0] == Reached(3, 0.5, 2, 1)
    assert found[2]["a"]["step"] == 3
    path = tmp_path / "training" / "state.safetensors"
    for damaged in (b"", path.read_bytes()[:-1], b"x" * 100, path.read_bytes().replace(b"best_step", b"best_stop")):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="to train anew"):
            state.load()
    (tmp_path / "training" / "settings.json").write_text("{")
    with pytest.raises(RunError, match="to train anew"):
        state.claim({"batch": 1})
    other = State(tmp_path / "training")
    with pytest.raises(UsageError, match="another process trains in it"):
        other.claim({"batch": 1})
    state.release()


def test_a_start_that_kept_nothing_is_forgotten_and_one_that_did_is_not(tmp_path: Path) -> None:
    state = State(tmp_path / "training")
    state.claim({"batch": 1})
    (state.folder / "start").mkdir()
    state.claim({"batch": 2})
    assert not (state.folder / "start").exists()
    state.claim_base("a")
    state.save(Reached(1), {}, {})
    with pytest.raises(UsageError, match="another batch: 2, not 3"):
        state.claim({"batch": 3})
    with pytest.raises(UsageError, match="other weights of the base model"):
        state.claim_base("b")
    state.claim_base("a")
    state.release()


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"mixing": 1.5}, {"validation": 0.9}, {"temperature": 0.0}, {"kind": "x"}, {"rate": float("inf")}],
)
def test_a_recipe_refuses_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))} is"):
        Recipe(**wrong)


def test_the_learning_rate_falls_with_the_size_of_the_model() -> None:
    sizes = (10**8, 10**9, 10**10)
    for recipe in (Recipe(), Recipe(lora=None)):
        rates = [learning_rate(recipe, size) for size in sizes]
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) == 3
    assert learning_rate(Recipe(rate=0.5), 10) == 0.5


def test_a_base_that_is_an_adapter_or_quantised_is_refused(tmp_path: Path, pairs: Path, llama: Path) -> None:
    recipe = Recipe(**QUICK)
    trainee, _, _ = made(tmp_path / "start", llama, pairs, recipe)
    (tmp_path / "adapter").mkdir()
    write_model(trainee, tmp_path / "start", tmp_path / "adapter", recipe, merge=False)
    with pytest.raises(UsageError, match="merge it first"):
        make_start(str(tmp_path / "adapter"), tmp_path / "again", recipe)
    qwen3 = BASES["qwen3"](tmp_path / "qwen3")
    config = json.loads((qwen3 / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (qwen3 / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="name the unquantised model"):
        make_start(str(qwen3), tmp_path / "again", recipe)
    (qwen3 / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        make_start(str(qwen3), tmp_path / "again", recipe)
