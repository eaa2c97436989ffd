"""What a checkpoint is said to be, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from checkpoints import INTERNLM2, change_config, save_deberta, save_decoder, save_gemma2_pair, save_internlm2, store
from conftest import Run, said_by
from prefcast.errors import ModelError, UsageError
from prefcast.scorers.reward.checkpoint import Kind, open_checkpoint

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def test_a_checkpoint_is_told_without_loading_anything(tmp_path: Path) -> None:
    code = (
        "import sys; from prefcast.scorers.reward.checkpoint import open_checkpoint\n"
        f"found = open_checkpoint({str(INTERNLM2)!r}); print(found.kind, found.parameters, found.limit, found.memory('nf4'))\n"
        "print([name for name in ('torch', 'transformers', 'safetensors', 'tokenizers') if name in sys.modules])"
    )
    first, second = said_by(code).splitlines()
    assert first.startswith("InternLM2 reward model 164224 256 ")
    assert second == "[]"


def test_kinds(tmp_path: Path) -> None:
    llama = save_decoder(tmp_path / "llama")
    assert open_checkpoint(INTERNLM2).kind is Kind.INTERNLM2
    assert open_checkpoint(llama).kind is Kind.POINTWISE
    assert open_checkpoint(save_deberta(tmp_path / "deberta")).kind is Kind.POINTWISE
    assert open_checkpoint(save_gemma2_pair(tmp_path / "gemma")).kind is Kind.PAIR
    assert open_checkpoint(save_decoder(tmp_path / "causal", labels=None)).kind is Kind.LANGUAGE
    # The name of a folder says nothing.
    misnamed = tmp_path / "internlm2-20b-reward"
    llama.rename(misnamed)
    assert open_checkpoint(misnamed).kind is Kind.POINTWISE
    change_config(misnamed, auto_map={"AutoModel": "m.M"})
    assert open_checkpoint(misnamed).kind is Kind.POINTWISE
    assert open_checkpoint(misnamed, trust_remote_code=True).kind is Kind.CUSTOM


def test_sizes(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    found = open_checkpoint(folder)
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(folder)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.memory("float32") == 4 * found.parameters
    assert found.memory("bfloat16") == 2 * found.parameters
    matrices = sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "score"
    )
    rest = 2 * (found.parameters - matrices)
    assert found.memory("int8") == matrices + rest
    assert found.memory("nf4") == pytest.approx(matrices * (0.5 + 1 / 64 + 4 / 16384) + rest, abs=1)
    assert found.limit == 2048
    assert (
        open_checkpoint(
            save_internlm2(tmp_path / "ntk", changes={"rope_scaling": {"type": "dynamic", "factor": 2.0}})
        ).limit
        == 512
    )


def test_show(prefcast_here: Run, tmp_path: Path) -> None:
    shown = prefcast_here("models", "show", save_gemma2_pair(tmp_path / "m")).stdout
    assert "m: pair classifier" in shown
    assert "architecture  Gemma2ForSequenceClassification (gemma2)" in shown
    assert "reads         at most 2048 tokens" in shown
    assert "template      lmsys (--template names another)" in shown
    assert "labels        A, B, tie (from id2label)" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == [
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "nf4",
    ]
    shown = prefcast_here("models", "show", INTERNLM2).stdout
    assert "its own code  named in config.json; never imported without --trust-remote-code" in shown


REFUSED: list[tuple[dict[str, str], str]] = [
    ({}, "not a model: it has no config.json"),
    ({"adapter_config.json": "{}"}, "its adapter_config.json names no base model; name it: --base FOLDER"),
    ({"m.gguf": ""}, "GGUF files; a folder with config.json and .safetensors files is needed"),
    ({"forecaster.json": "{}"}, "a forecaster, not a model; predict, evaluate and explain take it with --forecaster"),
    ({"config.json": "{"}, "config.json cannot be read"),
    ({"config.json": "[]"}, "config.json is not a JSON object"),
    ({"config.json": "{}"}, "names no architecture; supported are InternLM2ForRewardModel"),
    (
        {"config.json": '{"architectures": ["DebertaV2PairRM"]}'},
        "the architecture 'DebertaV2PairRM' is not supported; supported are",
    ),
    (
        {"config.json": '{"architectures": ["BertForSequenceClassification"], "num_labels": 5}'},
        "a classifier with 5 labels",
    ),
    (
        {"config.json": '{"architectures": ["XForCausalLM"], "quantization_config": {"quant_method": "gptq"}}'},
        "weights quantised as 'gptq' are not supported",
    ),
    (
        {"config.json": '{"architectures": ["XForCausalLM"], "quantization_config": {"load_in_4bit": true}}'},
        "weights quantised as 'bitsandbytes fp4' are not supported; supported are bitsandbytes nf4 and int8",
    ),
    (
        {"config.json": '{"architectures": ["LlamaForCausalLM"]}', "model-Q4_K_M.gguf": "GGUF"},
        "no .safetensors weights in the folder; GGUF files are not read: take the model's original folder",
    ),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_folders_that_are_no_models(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message.replace("(", r"\(")):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [("./none", "no such folder"), ("none", "no such folder"), ("a/b/c", "no such folder"), ("\0", "no such folder")],
)
def test_models_that_are_nowhere(model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_checkpoint(model)


def damaged(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 100)
    elif how == "shard":
        store(folder, {"a": torch.zeros(2), "b": torch.zeros(2)}, shards=2)
        (folder / "model-00002-of-00002.safetensors").unlink()
    elif how == "outside":
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "no .safetensors weights in the folder; 'pytorch_model.bin' is a pickle, which can run code"),
        ("short", "model.safetensors cannot be read: it ends too early"),
        ("garbage", "model.safetensors cannot be read: its header is too long"),
        ("shard", "model-00002-of-00002.safetensors cannot be read: No such file"),
        ("outside", "names files outside the folder"),
    ],
)
def test_weights_that_cannot_be_read(tmp_path: Path, prefcast_here: Run, how: str, message: str) -> None:
    folder = save_decoder(tmp_path / "m")
    damaged(folder, how)
    with pytest.raises(ModelError, match=message):
        _ = open_checkpoint(folder).tensors
    for verb in (["models", "show", folder], ["quantize", folder, "q"]):
        done = prefcast_here(*verb)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr


def test_the_command_that_converts_a_pickle_works(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle, which can run code: convert it") as told:
        open_checkpoint(folder)
    code = str(told.value).partition('python -c "')[2].rpartition('"')[0]
    said_by(code, cwd=folder)
    assert load_file(folder / "model.safetensors").keys() == weights.keys()
    assert open_checkpoint(folder).kind is Kind.POINTWISE


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_label_count_that_is_unsaid_is_the_heads(tmp_path: Path, labels: int) -> None:
    """OpenRLHF's config.json says nothing of labels."""
    folder = save_decoder(tmp_path / "m", labels=labels)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: config[key] for key in config if key not in ("id2label", "label2id", "num_labels")})
    )
    found = open_checkpoint(folder)
    assert found.kind is (Kind.POINTWISE if labels == 1 else Kind.PAIR)
    from prefcast.scorers.reward.labels import label_columns

    if labels > 1:
        with pytest.raises(UsageError, match="--labels a,b"):
            label_columns(found.config, None, "m")


def test_one_file_is_preferred_over_an_old_index(tmp_path: Path) -> None:
    """By what reads the weights, and by the fingerprint."""
    from prefcast import load_scorer

    old, new = save_decoder(tmp_path / "old", seed=1), save_decoder(tmp_path / "new", seed=2)
    store(old, load_file(old / "model.safetensors"), shards=2)
    expected, fingerprint = load_scorer(new).score([CHAT]), open_checkpoint(new).fingerprint()
    for path in old.glob("model*"):
        shutil.copy(path, new / path.name)
    assert open_checkpoint(new).fingerprint() == fingerprint
    for quantize in (None, "int8"):
        found = load_scorer(new, quantize=quantize).score([CHAT])
        assert abs(found - expected)[0] < (1e-6 if quantize is None else 1)
    assert abs(load_scorer(old).score([CHAT]) - expected)[0] > 1


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"quantize": "nf3"}, "unknown quantize 'nf3'; there are nf4, int8"),
    ({"dtype": "float8"}, "unknown dtype 'float8'; there are float32, float16, bfloat16"),
    ({"batch_tokens": 0}, "--batch-tokens must be at least 1"),
    ({"labels": ["a", "b"]}, "is of the kind InternLM2 reward model; labels are for pair classifiers"),
    ({"template": "lmsys"}, "there are chatml, human-assistant, or name a Jinja file"),
    ({"template_date": "2026-11-28"}, "writes no date"),
    ({"policy": "first"}, "unknown policy 'first'"),
    ({"special_tokens": "parsed"}, "unknown special_tokens 'parsed'"),
]


@pytest.mark.parametrize(("options", "message"), CALLS)
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    from prefcast import load_scorer

    with pytest.raises(UsageError, match=message):
        load_scorer(INTERNLM2, **options)


def test_a_torch_dtype_will_do() -> None:
    from prefcast import load_scorer

    assert load_scorer(INTERNLM2, dtype=torch.bfloat16).options.dtype == "bfloat16"
