"""What a training leaves: a folder that `--model` loads and, with the outcome model fitted on the rows held out, `--forecaster` too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from prefcast.base.files import atomic_file
from prefcast.errors import UsageError, printable
from prefcast.scorers.reward.adapters import ADAPTER_CONFIG
from prefcast.scorers.reward.checkpoint import Kind, open_checkpoint
from prefcast.scorers.reward.loading import tensor_reader
from prefcast.scorers.reward.networks import class_of, config_of
from prefcast.scorers.reward.weights import INDEX, WEIGHTS
from prefcast.training.reward.lora import PREFIX
from prefcast.training.reward.network import Trainee
from prefcast.training.reward.recipe import Recipe
from prefcast.training.reward.start import ADAPTER_WEIGHTS, write_adapter_config

__all__ = ["CARD", "write_card", "write_model"]

CARD = "README.md"
_SHARD = 4 * 1024**3


def write_model(
    trainee: Trainee,
    start: Path,
    folder: Path,
    recipe: Recipe,
    *,
    merge: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the trained model into `folder`: as an adapter of its base, or whole. `weights` are by default those of the trainee.
    Raises UsageError and ModelError."""
    taken = trainee.weights() if weights is None else weights
    weights = {name: each for name, each in taken.items() if not name.startswith("link.")}
    for path in sorted(start.iterdir()):
        if path.name not in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            shutil.copyfile(path, folder / path.name)
    if recipe.lora is None:
        _write_whole(start, folder, weights)
        return
    base = json.loads((start / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    heads = sorted({name.removeprefix(PREFIX).partition(".")[0] for name in weights if ".lora_" not in name})
    _write_adapter(folder, base, recipe, tuple(trainee.adapters), heads, weights)
    if merge:
        merged = folder / ".merged"
        merged.mkdir(exist_ok=True)
        _write_whole(folder, merged, {})
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            (folder / name).unlink()
        for path in merged.iterdir():
            path.replace(folder / path.name)
        merged.rmdir()


def _write_adapter(
    folder: Path, base: str, recipe: Recipe, layers: tuple[str, ...], heads: list[str], weights: Mapping[str, Tensor]
) -> None:
    write_adapter_config(folder, base, recipe, layers, heads)
    save_file(dict(weights), folder / ADAPTER_WEIGHTS, {"format": "pt"})


def _write_whole(source: Path, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the model of an adapter's folder as a whole one: its base with what the adapter adds, or with `weights` in their places.

    Weights have the type of the base model's.
    """
    found = open_checkpoint(source)
    if found.quantization is not None:
        raise UsageError(f"{found.name}: is stored as {found.quantization}; nothing can be merged into such weights")
    config = {key: value for key, value in found.config.items() if key != "_name_or_path"}
    # With a head for classes the language model's own output has no use.
    as_classifier = found.head is not None and found.head.layers[0][0] == "score.weight"
    if as_classifier:
        config["architectures"] = [_classifier(found)]
    names = [name for name in found.tensors if not (as_classifier and name.startswith("lm_head."))]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    where: dict[str, str] = {}
    part: dict[str, Tensor] = {}
    files: list[dict[str, Tensor]] = []
    size = 0
    with tensor_reader(found) as reader:
        for name in names:
            stored = reader.stored(name)
            value = (weights[name] if name in weights else reader.fetch(name)).to(stored.dtype).contiguous()
            if part and size + value.nbytes > _SHARD:
                _write_shard(folder, len(files), part, where)
                files.append({})
                part, size = {}, 0
            part[name] = value
            size += value.nbytes
    if not files:
        save_file(part, folder / WEIGHTS, {"format": "pt"})
        return
    _write_shard(folder, len(files), part, where)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}) + "\n", encoding="utf-8")


def _write_shard(folder: Path, number: int, part: dict[str, Tensor], where: dict[str, str]) -> None:
    name = f"model-{number + 1:05}.safetensors"
    save_file(part, folder / name, {"format": "pt"})
    where |= dict.fromkeys(part, name)


def _classifier(found: Any) -> str:
    """The class of transformers for a language model with a head `score`."""
    from dataclasses import replace

    plain = replace(found, head=None, kind=Kind.POINTWISE)
    return str(class_of(plain, config_of(plain)).__name__)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the model card, README.md, from the data of the card. Names of files and sources may come from a stranger."""
    training, figures = card["training"], card.get("figures") or {}
    said = {
        "base model": training["base"],
        "kind": training["recipe"]["kind"],
        "likelihood": training["recipe"]["likelihood"],
        "what was learned": training["learned"],
        "rows learned from": f"{training['rows']:,} of {len(training['sources'])} sources",
        "rows held out": f"{training['held_out']:,}",
        "steps": f"{training['best_step']:,} of {training['steps']:,} (the best by validation)",
        "validation log loss in training": f"{training['validation']:.4f}",
        "data, SHA-256": training["data_sha256"],
        "versions": ", ".join(f"{name} {each}" for name, each in training["versions"].items()),
        "command": training["command"] or "(from Python)",
    }
    lines = ["---", "library_name: prefcast", "tags:", "- reward-model", "- prefcast", "---", "", "# Reward model", ""]
    lines += [
        "Trained by `prefcast train reward`. Use it with `--model DIR` (raw scores) or `--forecaster DIR` (probabilities).",
        "",
    ]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in said.items()), ""]
    if figures:
        lines += [
            f"## Figures on the {figures['n']:,} rows held out ({figures['prompts']:,} prompts)",
            "",
            "The outcome model was fitted on these rows, so its figures are cross-fitted. The same rows chose the step at which the",
            "training stopped, which makes the figures a little too good.",
            "",
            "| | log loss |",
            "| --- | --- |",
            f"| this model | {_interval(figures['log_loss'])} |",
            f"| gain over the class prior, paired | {_interval(figures['gain'])} |",
            "",
        ]
    lines += ["| source | rows | ties | scale | tie level |", "| --- | --- | --- | --- | --- |"]
    for each in training["sources"]:
        lines.append(
            f"| {_cell(each['name'])} | {each['rows']:,} | {each['ties']:.3f} | {each['scale']:.3f} | {each['level']:.3f} |"
        )
    lines += ["", "The curves are in `curves.jsonl`, a line a step; `curves.png` shows them where it was drawn.", ""]
    with atomic_file(folder / CARD) as file:
        file.write("\n".join(lines).encode("utf-8", "replace"))


def _cell(text: object) -> str:
    """Untrusted text in a cell of a Markdown table."""
    plain = printable(str(text))[:2000]
    return "".join(f"\\{c}" if c in "|\\`*_<>[]#" else c for c in plain)


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
