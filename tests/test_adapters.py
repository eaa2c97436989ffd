"""LoRA adapters load as peft saves them. The oracle is transformers with the adapter's matrices added by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from checkpoints import LABELS, change_config, change_weights, save_ab, save_decoder, save_internlm2
from checkpoints import fresh_scorer as load_scorer
from conftest import Run
from prefcast import Pair
from prefcast.errors import ModelError, UsageError
from prefcast.scorers.reward.checkpoint import open_checkpoint

CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": answer}]
    for answer in ("Because of Rayleigh scattering.", "No idea.")
]
SETTINGS = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "use_rslora": False}


def matrices(seed: int = 0, rank: int = 4, sizes: dict[str, tuple[int, int]] | None = None) -> dict[str, Tensor]:
    """A and B of some layers of the small Llama, under peft's names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in (0, 1):
        for name, (out, size) in (sizes or {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 96)}).items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{stem}.lora_A.weight"] = torch.randn(rank, size, generator=generator) * 0.2
            found[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.2
    return found


def save_adapter(folder: Path, base: Path | str, weights: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    said = {**SETTINGS, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


HEAD = torch.randn(1, 64, generator=torch.Generator().manual_seed(9))


def by_hand(base: Path, weights: dict[str, Tensor], scale: float, head: Tensor = HEAD, bias: float = 0) -> Any:
    body = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    for name, a in weights.items():
        if ".lora_A." in name:
            module = body.get_submodule(name.removeprefix("base_model.model.model.").partition(".lora_A")[0])
            module.weight.data += scale * weights[name.replace("lora_A", "lora_B")] @ a
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        ids = [tokenizer.apply_chat_template(each, tokenize=True, return_dict=False) for each in CHATS]
        states = [body(input_ids=torch.tensor([each])).last_hidden_state[0, -1] for each in ids]
    return np.array([float(head @ state) + bias for state in states])


@pytest.mark.parametrize(
    "saved", ["score.weight", "score.modules_to_save.weight", "score.modules_to_save.default.weight"]
)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_a_language_model_with_a_head(tmp_path: Path, saved: str, rslora: bool) -> None:
    """As competition models are: the base is a language model, and the adapter has the head."""
    base, weights = save_decoder(tmp_path / "base", labels=None), matrices()
    folder = save_adapter(
        tmp_path / "m",
        base,
        weights | {f"base_model.model.{saved}": HEAD},
        use_rslora=rslora,
        modules_to_save=["score"],
    )
    scorer = load_scorer(folder)
    expected = by_hand(base, weights, 8 / (math.sqrt(4) if rslora else 4))
    np.testing.assert_allclose(scorer.score(CHATS), expected, rtol=1e-6, atol=1e-5)
    # The base can be elsewhere.
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"its base model is not here \(.*no such folder.*\); name it: --base FOLDER"):
        load_scorer(folder)
    np.testing.assert_allclose(
        load_scorer(folder, base=tmp_path / "moved").score(CHATS), expected, rtol=1e-6, atol=1e-5
    )


def test_three_labels_of_an_adapter(tmp_path: Path) -> None:
    base, head = save_decoder(tmp_path / "base", labels=None), torch.randn(3, 64)
    weights = matrices()
    folder = save_adapter(tmp_path / "m", base, weights | {"base_model.model.score.weight": head})
    with pytest.raises(UsageError, match="--labels"):
        load_scorer(folder)
    found = load_scorer(folder, labels=("a", "b", "tie")).evidence([Pair.of("q", "x", "y")])
    # The adapter's own config.json names the labels.
    shutil.copy(base / "config.json", folder / "config.json")
    change_config(folder, id2label=LABELS)
    again = load_scorer(folder).evidence([Pair.of("q", "x", "y")])
    np.testing.assert_array_equal(again.margin, found.margin)
    assert found.tie[0] != 0


def test_patterns_of_ranks_and_scales(tmp_path: Path) -> None:
    base = save_decoder(tmp_path / "base")
    weights = matrices(sizes={"self_attn.q_proj": (64, 64)}) | matrices(2, 2, {"mlp.down_proj": (64, 96)})
    folder = save_adapter(
        tmp_path / "m", base, weights, rank_pattern={"down_proj": 2}, alpha_pattern={"mlp.down_proj": 6}
    )
    scaled = {name: each * (6 / 2) / (8 / 4) if "down_proj.lora_A" in name else each for name, each in weights.items()}
    from transformers import AutoModelForSequenceClassification

    head = AutoModelForSequenceClassification.from_pretrained(base).score.weight.detach()
    np.testing.assert_allclose(load_scorer(folder).score(CHATS), by_hand(base, scaled, 2, head), rtol=1e-6, atol=1e-5)


def test_a_value_head_beside_an_adapter(tmp_path: Path) -> None:
    """As LLaMA-Factory saves a reward model that was trained with LoRA."""
    base, weights = save_decoder(tmp_path / "base", labels=None), matrices()
    folder = save_adapter(tmp_path / "m", base, weights, task_type="CAUSAL_LM")
    save_file(
        {"v_head.summary.weight": HEAD, "v_head.summary.bias": torch.tensor([2.0])}, folder / "value_head.safetensors"
    )
    np.testing.assert_allclose(
        load_scorer(folder).score(CHATS), by_hand(base, weights, 2, bias=2), rtol=1e-6, atol=1e-5
    )


def test_an_adapter_of_an_a_b_model(tmp_path: Path) -> None:
    base = save_ab(tmp_path / "base")
    folder = save_adapter(tmp_path / "m", base, matrices(), task_type="CAUSAL_LM")
    pair = [Pair.of("q", "x", "y")]
    with pytest.raises(UsageError, match="nothing says how it scores: --kind ab"):
        load_scorer(folder)
    merged = save_ab(tmp_path / "merged")

    def merge(weights: dict[str, Tensor]) -> None:
        for name, a in matrices().items():
            if ".lora_A." in name:
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                weights[target] = weights[target] + 2 * matrices()[name.replace("lora_A", "lora_B")] @ a

    change_weights(merged, merge)
    found, expected = (each.evidence(pair).margin for each in (load_scorer(folder, kind="ab"), load_scorer(merged)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert abs(found - load_scorer(base).evidence(pair).margin)[0] > 1e-3


def test_an_adapter_of_internlm2(tmp_path: Path) -> None:
    base = save_internlm2(tmp_path / "base", changes={"max_position_embeddings": 512})
    from safetensors.torch import load_file

    name = "model.layers.0.attention.wqkv.weight"
    out, size = load_file(base / "model.safetensors")[name].shape
    a, b = torch.randn(4, size) * 0.2, torch.randn(out, 4) * 0.2
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    folder = save_adapter(tmp_path / "m", base, {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b})
    found = load_scorer(folder).score(CHATS)
    change_weights(base, lambda weights: weights.update({name: weights[name] + 2 * b @ a}))
    np.testing.assert_allclose(found, load_scorer(base).score(CHATS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_of_a_quantised_base(tmp_path: Path, prefcast_here: Run, kind: str, stored: bool) -> None:
    """As in its training: the base's matrices are quantised, the adapter's are not."""
    base, weights = save_decoder(tmp_path / "base"), matrices()
    done = prefcast_here("quantize", base, "small", "--quantize", kind)
    assert done.returncode == 0, done.stderr
    small = tmp_path / "small"
    folder = save_adapter(tmp_path / "m", small if stored else base, weights)
    found = load_scorer(folder, quantize=None if stored else kind).score(CHATS)
    scorer = load_scorer(small)
    network = scorer.engine._runner.network
    for name, a in weights.items():
        if ".lora_A." in name:
            layer = network.get_submodule(name.removeprefix("base_model.model.").partition(".lora_A")[0])
            added = 2 * weights[name.replace("lora_A", "lora_B")] @ a
            layer.register_forward_hook(lambda module, args, out, added=added: out + args[0] @ added.T)
    np.testing.assert_allclose(found, scorer.score(CHATS), rtol=1e-6, atol=1e-5)


def test_an_adapter_beside_its_model(tmp_path: Path) -> None:
    base, weights = save_decoder(tmp_path / "m", labels=1), matrices()
    plain = load_scorer(base).score(CHATS)
    save_adapter(base, base, weights | {"base_model.model.score.weight": HEAD})
    expected = by_hand_beside(base, weights)
    np.testing.assert_allclose(load_scorer(base).score(CHATS), expected, rtol=1e-6, atol=1e-5)
    assert abs(plain - expected).max() > 0.1
    # A copy of the adapter, with and without a config.json, means the same.
    for name in ("with", "without"):
        copy = tmp_path / name
        shutil.copytree(base, copy)
        (copy / "model.safetensors").unlink()
        if name == "without":
            (copy / "config.json").unlink()
        np.testing.assert_allclose(load_scorer(copy).score(CHATS), expected, rtol=1e-6, atol=1e-5)
    # Another base is named: which of the two is meant?
    save_adapter(base, "owner/base", weights | {"base_model.model.score.weight": HEAD})
    with pytest.raises(
        ModelError, match=r"its base model is not here|holds a whole model and a LoRA adapter of another"
    ):
        load_scorer(base)
    np.testing.assert_allclose(load_scorer(base, base=base).score(CHATS), expected, rtol=1e-6, atol=1e-5)


def by_hand_beside(folder: Path, weights: dict[str, Tensor]) -> Any:
    """`by_hand` for a folder with both, which transformers would read with peft where that is installed."""
    alone = folder.parent / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("adapter*"))
    return by_hand(alone, weights, 2)


def test_an_adapter_changes_the_fingerprint(tmp_path: Path) -> None:
    base = save_decoder(tmp_path / "base")
    prints = {open_checkpoint(base).fingerprint()}
    for number, (weights, more) in enumerate(
        [(matrices(0), {}), (matrices(1), {}), (matrices(0), {"lora_alpha": 16}), (matrices(0), {"use_rslora": True})]
    ):
        prints.add(open_checkpoint(save_adapter(tmp_path / f"m{number}", base, weights, **more)).fingerprint())
    change_weights(base, lambda weights: weights["model.norm.weight"].mul_(1.5))
    prints.add(open_checkpoint(tmp_path / "m0").fingerprint())
    assert len(prints) == 6


def test_a_forecaster_of_an_adapter_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_decoder(tmp_path / "base")
    folder = save_adapter(tmp_path / "m", "nowhere/at-all", matrices())
    monkeypatch.chdir(tmp_path)
    scorer = load_scorer(folder, base="base")
    (tmp_path / "saved").mkdir()
    scorer.save(tmp_path / "saved")
    expected = scorer.score(CHATS)
    monkeypatch.chdir("/")
    again = type(scorer).load(tmp_path / "saved")
    np.testing.assert_array_equal(again.score(CHATS), expected)
    base.rename(tmp_path / "moved")
    from prefcast.errors import ForecasterError

    with pytest.raises(ForecasterError, match="the base model of its adapter is no longer in"):
        type(scorer).load(tmp_path / "saved")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("adapters") / "base")


SETTING: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "is an adapter of the kind 'IA3'; only LORA is supported"),
    ({"peft_type": None}, "is an adapter of the kind None"),
    ({"use_dora": True}, "its adapter has use_dora = True, which is not supported"),
    ({"lora_bias": True}, "its adapter has lora_bias = True"),
    ({"layer_replication": [[0, 1]]}, "its adapter has layer_replication"),
    ({"target_parameters": ["mlp.experts.w"]}, "its adapter has target_parameters"),
    (
        {"init_lora_weights": "pissa_niter_4"},
        "its adapter has init_lora_weights = 'pissa_niter_4', which changes the base",
    ),
    ({"r": 8}, "says rank 8 for .*, but its matrices have 4"),
    ({"r": "4"}, "says rank '4'"),
    ({"lora_alpha": "8"}, "says lora_alpha '8'"),
    ({"lora_alpha": 1e999}, "says lora_alpha inf"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "has a alpha_pattern that is not supported"),
    ({"base_model_name_or_path": None}, "names no base model; name it: --base FOLDER"),
    ({"base_model_name_or_path": "/dev/null"}, "its base model is not here"),
    ({"fan_in_fan_out": True}, "have the shape"),
]


@pytest.mark.parametrize(("change", "message"), SETTING)
def test_adapters_that_are_refused_by_their_settings(
    tmp_path: Path, base_model: Path, change: dict[str, Any], message: str
) -> None:
    folder = save_adapter(tmp_path / "m", base_model, matrices(), **change)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS: list[tuple[dict[str, Tensor], str]] = [
    (
        {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 700)},
        "weights of a kind that is not known",
    ),
    ({f"{Q}.lora_magnitude_vector": torch.zeros(64)}, "weights of a kind that is not known"),
    ({f"{Q}.lora_A.other.weight": torch.zeros(4, 64)}, "weights of a kind that is not known"),
    ({f"{Q}.lora_B.bias": torch.zeros(64)}, "weights of a kind that is not known"),
    ({f"{Q}.lora_A.weight": torch.zeros(4, 64)}, "has no pair of matrices A and B for"),
    ({f"{Q}.lora_A.weight": torch.zeros(4, 8), f"{Q}.lora_B.weight": torch.zeros(64, 4)}, "have the shape"),
    (
        {f"{Q}x.lora_A.weight": torch.zeros(4, 8), f"{Q}x.lora_B.weight": torch.zeros(64, 4)},
        "which its base model lacks",
    ),
    ({"base_model.model.model.other.weight": torch.zeros(4)}, "has weights that its base model lacks"),
]


@pytest.mark.parametrize(("weights", "message"), WEIGHTS)
def test_adapters_that_are_refused_by_their_weights(
    tmp_path: Path, base_model: Path, weights: dict[str, Tensor], message: str
) -> None:
    folder = save_adapter(tmp_path / "m", base_model, weights)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


def test_adapters_in_other_forms(tmp_path: Path, prefcast_here: Run) -> None:
    folder = save_adapter(tmp_path / "m", save_decoder(tmp_path / "base"), matrices())
    torch.save(matrices(), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"has no adapter_model.safetensors; adapter_model.bin is a pickle.*: convert it"
    ):
        open_checkpoint(folder)
    two = save_adapter(tmp_path / "two", folder, matrices(1))
    with pytest.raises(ModelError, match="holds another LoRA adapter; merge that one first"):
        open_checkpoint(two)
    with pytest.raises(UsageError, match=r"--base is for LoRA adapters, and this folder has no adapter_config.json"):
        open_checkpoint(tmp_path / "base", base=folder)
    done = prefcast_here("quantize", save_adapter(tmp_path / "third", tmp_path / "base", matrices()), "q")
    assert done.returncode == 2
    assert "is a LoRA adapter; quantise its base model" in done.stderr


def test_the_base_of_an_adapter_never_runs_code(tmp_path: Path) -> None:
    """adapter_config.json may come from a stranger: its base is looked over like any model, and trusts nothing."""
    base, mark = save_decoder(tmp_path / "base"), tmp_path / "mark"
    (base / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    change_config(base, auto_map={"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"})
    folder = save_adapter(
        tmp_path / "m", base, matrices(), auto_mapping={"base_model_class": "M", "parent_library": "own"}
    )
    load_scorer(folder, trust_remote_code=True).score(CHATS)
    assert not mark.exists()
    import os

    os.mkfifo(base / "special_tokens_map.json")
    with pytest.raises(ModelError, match="is a pipe"):
        open_checkpoint(folder)
