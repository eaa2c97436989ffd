"""4 and 8 bit: what is stored, what is computed, what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints import FAMILIES, INTERNLM2, save_decoder, save_internlm2
from checkpoints import fresh_scorer as load_scorer
from conftest import EXAMPLES, Run
from prefcast import Pair, read_pairs
from prefcast.errors import ModelError, UsageError
from prefcast.scorers.reward.checkpoint import open_checkpoint
from prefcast.scorers.reward.precision import (
    Int8Linear,
    NF4Linear,
    OneDNNLinear,
    compute_dtype,
    quantise,
    quantised_linear,
)
from prefcast.scorers.reward.store import quantize_checkpoint

SHORT = [
    Pair.of("Why is the sky blue?", "Because of Rayleigh scattering.", "No idea.", id=number) for number in range(3)
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_checkpoint_loads_with_no_flag_and_scores_the_same(
    tmp_path: Path, family: str, quantization: str
) -> None:
    folder = FAMILIES[family](tmp_path / "m")
    done = quantize_checkpoint(str(folder), tmp_path / "q", quantization)
    assert done.matrices > 0
    assert done.bytes < done.bytes_before
    found = load_scorer(tmp_path / "q").evidence(SHORT)
    again = load_scorer(folder, quantize=quantization).evidence(SHORT)
    assert not found.problems
    np.testing.assert_array_equal(found.margin, again.margin)
    np.testing.assert_array_equal(found.tie, again.tie)
    assert np.abs(found.margin - load_scorer(folder).evidence(SHORT).margin).max() > 0
    stored = open_checkpoint(tmp_path / "q")
    assert stored.quantization == quantization
    assert stored.parameters == open_checkpoint(folder).parameters
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer_config.json"}
    assert not {name for name in names if name.startswith("expected")}


def test_wqkv_is_quantised_fused_and_the_head_is_not(tmp_path: Path) -> None:
    quantize_checkpoint(str(INTERNLM2), tmp_path / "q", "nf4")
    weights = load_file(tmp_path / "q" / "model.safetensors")
    assert weights["model.layers.0.attention.wqkv.weight"].dtype == torch.uint8
    assert "model.layers.0.attention.wqkv.weight.nested_absmax" in weights
    assert weights["v_head.weight"].dtype == torch.float32
    assert weights["model.tok_embeddings.weight"].dtype == torch.float32


def test_the_names_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    """transformers itself reads what is written."""
    from transformers import AutoModelForSequenceClassification

    folder = save_decoder(tmp_path / "m", "llama", hidden_size=64, intermediate_size=128)
    quantize_checkpoint(str(folder), tmp_path / "q", "nf4")
    scorer = load_scorer(tmp_path / "q")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "q", dtype=torch.float32).eval()
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with torch.inference_mode():
        expected = float(network(input_ids=torch.tensor([scorer.encode(chat)])).logits)
    # It computes in the half precision that the checkpoint names.
    assert scorer.score([chat])[0] == pytest.approx(expected, abs=0.05)


def test_a_checkpoint_that_transformers_quantised_is_read(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    folder = save_decoder(tmp_path / "m", "llama", hidden_size=64, intermediate_size=128)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    )
    network = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    network.save_pretrained(tmp_path / "q")
    for path in folder.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            (tmp_path / "q" / path.name).write_bytes(path.read_bytes())
    np.testing.assert_allclose(
        load_scorer(tmp_path / "q").evidence(SHORT).margin,
        load_scorer(folder, quantize="nf4").evidence(SHORT).margin,
        rtol=0,
        atol=1e-5,
    )


def test_large_checkpoints_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefcast.scorers.reward.store._SHARD_BYTES", 30_000)
    folder = save_internlm2(tmp_path / "m", shards=3)
    quantize_checkpoint(str(folder), tmp_path / "q", "nf4")
    files = sorted(path.name for path in (tmp_path / "q").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    np.testing.assert_array_equal(
        load_scorer(tmp_path / "q").evidence(SHORT).margin, load_scorer(folder, quantize="nf4").evidence(SHORT).margin
    )


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.5 / 127), ("nf4", 0.16)])
def test_dequantised_weights_are_near(quantization: str, error: float) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    layer = quantised_linear(quantise(weight, quantization), torch.ones(96), CPU)
    assert isinstance(layer, NF4Linear | Int8Linear)
    found = layer(torch.eye(128)).T - 1
    # Half a step: of 127 a row for int8, of the widest gap between NF4's levels a block.
    assert (found - weight).abs().max() <= error * weight.abs().max() * 1.02
    assert (found - weight).abs().max() > 0


def test_a_matrix_of_zeros_stays_one() -> None:
    for quantization in ("nf4", "int8"):
        assert (quantised_linear(quantise(torch.zeros(64, 64), quantization), None, CPU)(torch.ones(1, 64)) == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_the_processors_own_layout_changes_nothing(dtype: torch.dtype, tolerance: float) -> None:
    plain = torch.nn.Linear(64, 96).to(dtype)
    if not OneDNNLinear.usable(plain, dtype):
        # A processor without bfloat16, or a torch without oneDNN: nothing else is a reason.
        assert dtype is torch.bfloat16 or not torch.backends.mkldnn.is_available()
        pytest.skip(f"oneDNN has no layout for {dtype} here")
    x = torch.randn(5, 64).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(OneDNNLinear(plain)(x), plain(x), rtol=1e-5, atol=tolerance)


def test_the_type_that_is_computed_in() -> None:
    gpu = torch.device("cuda", 0)
    assert compute_dtype(None, CPU, "float16", "nf4") is torch.float32
    assert compute_dtype(None, gpu, "bfloat16", None) is torch.bfloat16
    assert compute_dtype(None, gpu, "bfloat16", "nf4") is torch.float16
    assert compute_dtype(None, gpu, None, "int8") is torch.float16
    assert compute_dtype("bfloat16", CPU, None, None) is torch.bfloat16


def refusals(tmp_path: Path) -> list[tuple[Callable[[], object], type[Exception], str]]:
    small = tmp_path / "small"
    quantize_checkpoint(str(INTERNLM2), small, "nf4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    return [
        (lambda: quantize_checkpoint(str(small), tmp_path / "again", "nf4"), UsageError, "is stored as nf4 already"),
        (lambda: quantize_checkpoint(str(INTERNLM2), tmp_path / "full", "nf4"), UsageError, "is not an empty folder"),
        (
            lambda: load_scorer(small, quantize="int8").evidence(SHORT),
            UsageError,
            "is stored as nf4; int8 cannot be made of that",
        ),
    ]


def test_refusals(tmp_path: Path) -> None:
    for call, error, message in refusals(tmp_path):
        with pytest.raises(error, match=message):
            call()
    assert not (tmp_path / "again").exists()


def test_damaged_4_bit_weights_are_named(tmp_path: Path) -> None:
    from checkpoints import change_weights

    quantize_checkpoint(str(INTERNLM2), tmp_path / "q", "nf4")
    name = "model.layers.0.attention.wo.weight.quant_state.bitsandbytes__nf4"
    change_weights(tmp_path / "q", lambda weights: weights.update({name: weights[name][:20].clone()}))
    with pytest.raises(ModelError, match="quantised weights are damaged"):
        load_scorer(tmp_path / "q").evidence(SHORT)


def test_the_verb(tmp_path: Path, prefcast_here: Run) -> None:
    done = prefcast_here("quantize", INTERNLM2, "small", "--quantize", "int8")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "matrices in int8" in done.stderr
    assert (tmp_path / "small" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["load_in_8bit"] is True


def test_drift_is_measured(prefcast_here: Run) -> None:
    done = prefcast_here(
        "score", EXAMPLES, "--model", INTERNLM2, "--quantize", "nf4", "--check-drift", "40", "--max-tokens", "100"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("drift over 40 pairs\nmargin    mean ")
    assert (
        "labelled pairs,\n          with a Davidson model fitted to the unquantised margins of the same pairs"
        in done.stdout
    )
    few = prefcast_here("score", EXAMPLES, "--model", INTERNLM2, "--dtype", "bfloat16", "--check-drift", "5")
    assert "no log loss: it needs 30 labelled pairs, there are 5" in few.stdout


def test_drift_by_hand() -> None:
    from prefcast.measuring.drift import measure_drift
    from prefcast.outcomes.models import Davidson
    from prefcast.pairs.budget import WHOLE

    pairs = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
    before, after = load_scorer(INTERNLM2, max_tokens=60), load_scorer(INTERNLM2, max_tokens=60, quantize="nf4")
    drift = measure_drift(pairs, before, after, WHOLE, Davidson(0.5, 0.0, 0.0))
    x, y = (
        scorer.evidence([pair.__class__(scorer.limit.apply(pair.turns)[0]) for pair in pairs]).margin
        for scorer in (before, after)
    )
    assert drift.n == len(pairs)
    assert drift.mean == pytest.approx(np.abs(x - y).mean())
    assert drift.largest == pytest.approx(np.abs(x - y).max())
    assert drift.flipped == pytest.approx((x * y < 0).mean())
    labels = [int(pair.outcome) for pair in pairs if pair.outcome is not None]
    for value, margin in ((drift.log_loss_before, x), (drift.log_loss_after, y)):
        p = Davidson(0.5, 0.0, 0.0).probabilities(margin)
        assert value == pytest.approx(-np.log(p[np.arange(len(labels)), labels]).mean())
    same = measure_drift(pairs, before, before, WHOLE)
    assert (same.mean, same.flipped, same.correlation) == (0, 0, pytest.approx(1))
