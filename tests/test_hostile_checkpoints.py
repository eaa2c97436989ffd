"""Checkpoints from a stranger: each ends in scores or in one line, within bounds of time and memory."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import change_config, change_weights, save_deberta, save_decoder, save_internlm2, store
from checkpoints import fresh_scorer as load_scorer
from conftest import Run
from prefcast import Pair
from prefcast.errors import ModelError, PrefcastError
from prefcast.scorers.reward.checkpoint import open_checkpoint
from test_adapters import matrices, save_adapter

PAIR = [Pair.of("Why?", "x", "y")]
DEEP = "[" * 200_000
WEIGHTS = "model.safetensors"


def with_header(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = WEIGHTS) -> None:
    """Give a weights file the header that `change` makes of its own: a dict, or raw bytes."""
    path = folder / file
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    made = change(header)
    raw = made if isinstance(made, bytes) else json.dumps(header if made is None else made).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def first(value: Any, part: str = "shape") -> Callable[[dict[str, Any]], Any]:
    def change(header: dict[str, Any]) -> None:
        next(entry for name, entry in header.items() if name != "__metadata__")[part] = value

    return change


HEADERS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda header: DEEP.encode(), "its header is nested too deeply"),
    (lambda header: b'{"a":' * 100_000, "nested too deeply"),
    (lambda header: b"[1, 2]", "its header is not a JSON object"),
    (lambda header: b"null", "its header is not a JSON object"),
    (lambda header: b"\xff\xfe", "cannot be read"),
    (lambda header: {"a": 3}, "does not describe the tensor 'a'"),
    (lambda header: {"a": {}}, "does not describe the tensor 'a'"),
    (first([-1, 4]), "does not describe the tensor"),
    (first(["700", 64]), "does not describe the tensor"),
    (first("700"), "does not describe the tensor"),
    (first([1.5]), "does not describe the tensor"),
    (first([True, 4]), "does not describe the tensor"),
    (first([2**70]), "does not describe the tensor"),
    (first([1] * 5000), "does not describe the tensor"),
    (first([2**40, 2**40]), "has not as many bytes as its shape says"),
    (first("F7", "dtype"), "the type 'F7' is not known"),
    (first(["F32"], "dtype"), "does not describe the tensor"),
    (first([0], "data_offsets"), "does not describe the tensor"),
    (first([10, 2], "data_offsets"), "has not as many bytes"),
    (first(None, "data_offsets"), "does not describe the tensor"),
    (first([2**62, 2**62 + 700 * 64 * 4], "data_offsets"), "not as many bytes|ends too early"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("whole") / "m")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_headers_of_weights(model: Path, change: Any, message: str) -> None:
    with_header(model, change)
    with pytest.raises(ModelError, match=message) as told:
        open_checkpoint(model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text", [DEEP, "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{", "\0"]
)
def test_indices_of_weights(model: Path, text: str) -> None:
    (model / WEIGHTS).unlink()
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model.safetensors.index.json (cannot be read|is not a JSON object)"):
        open_checkpoint(model)


SMALL_FILES = [
    "config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "pair_template.jinja",
    "value_head.safetensors",
    "anything",
]


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_special_files(model: Path, name: str, what: str) -> None:
    (model / name).unlink(missing_ok=True)
    if what == "a pipe":
        os.mkfifo(model / name)
    else:
        (model / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=rf"{name}' is {what}; a model's folder must hold files only"):
        load_scorer(model)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "x.json"]
)
def test_huge_small_files(model: Path, name: str) -> None:
    with (model / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match=r"has 1,099,511,627,776 bytes; at most [0-9,]+ are read of such a file"):
        load_scorer(model)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", WEIGHTS, "adapter_config.json", "chat_template.jinja"]
)
def test_folders_in_the_place_of_files(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    with pytest.raises(PrefcastError, match=r"is a folder, not a file"):
        load_scorer(model).evidence(PAIR)


def test_a_pipe_where_transformers_would_look(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    os.mkfifo(model / "additional_chat_templates" / "x.jinja")
    with pytest.raises(ModelError, match="is a pipe"):
        load_scorer(model)


def test_links_into_a_cache_are_files(model: Path, tmp_path: Path) -> None:
    """As the hub's cache lays them."""
    (tmp_path / "blobs").mkdir()
    for path in list(model.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    assert not load_scorer(model).evidence(PAIR).problems


SIZES: list[dict[str, Any]] = [
    {"num_hidden_layers": 10_000_000},
    {"num_hidden_layers": 22},
    {"hidden_size": 2**24},
    {"hidden_size": 2**62},
    {"vocab_size": 2**31},
    {"intermediate_size": 10**9},
    {"max_position_embeddings": 10**11},
    {"num_attention_heads": 10**9},
    {"num_labels": 10**9},
    {"num_key_value_heads": 10**12},
    {"text_config": {"num_hidden_layers": 10_000_000}},
    {"id2label": {str(number): "x" for number in range(100_000)}},
]


@pytest.mark.parametrize("changes", SIZES)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_sizes_that_the_weights_cannot_have(model: Path, changes: dict[str, Any], quantize: str | None) -> None:
    change_config(model, **changes)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PrefcastError) as told:
        load_scorer(model, quantize=quantize).evidence(PAIR)
    assert "\n" not in str(told.value)
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_one_line_on_the_terminal(model: Path, tmp_path: Path, prefcast_here: Run) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": ["Why?"], "response_a": ["x"], "response_b": ["y"]}\n')
    os.mkfifo(model / "merges.txt")
    for verb in (
        ["score", "pairs.jsonl", "-o", "o.csv", "--model", model],
        ["models", "show", model],
        ["quantize", model, "q"],
    ):
        done = prefcast_here(*verb)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "'merges.txt' is a pipe" in done.stderr


# Structure-aware mutations ------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.5, 1e308, float("nan"), float("inf"),
    "", "x", "\0", "\ud800", "a" * 5000, "llama", "../x", "<s>", [], [0], [-1], ["x"], [[]], {}, {"a": 1}, {"": None}, [None] * 50,
    {"type": "dynamic", "factor": 1e9}, {"rope_type": "yarn"}, {"rope_type": "longrope", "long_factor": [1]}, {"quant_method": []},
]  # fmt: skip
KEYS = [
    "rope_scaling", "rope_parameters", "quantization_config", "id2label", "label2id", "auto_map", "text_config", "layer_types",
    "_attn_implementation", "attn_implementation", "use_cache", "pad_token_id", "architectures", "model_type", "num_labels",
    "problem_type", "dtype", "torch_dtype", "tie_word_embeddings", "head_dim", "rope_theta", "max_position_embeddings",
    "vocab_size", "num_hidden_layers", "use_bidirectional_attention", "is_causal", "reward_token_id", "final_logit_softcapping",
    "sliding_window", "transformers_version", "name_or_path", "_name_or_path", "is_encoder_decoder", "return_dict",
    "output_hidden_states", "output_attentions", "pruned_heads", "chunk_size_feed_forward", "initializer_range", "bias", "classifier_pooling",
]  # fmt: skip
TOKENIZER_KEYS = [
    "chat_template", "model_max_length", "tokenizer_class", "added_tokens_decoder", "bos_token", "eos_token", "pad_token", "unk_token",
    "additional_special_tokens", "extra_special_tokens", "model_input_names", "add_bos_token", "padding_side", "auto_map",
    "clean_up_tokenization_spaces", "truncation_side", "legacy", "add_prefix_space", "backend", "processor_class", "is_local",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed; of long lists and objects only the beginning."""
    if len(path) > 5:
        return [path]
    parts = (
        list(value.items())[:12]
        if isinstance(value, dict)
        else list(enumerate(value))[:12]
        if isinstance(value, list)
        else []
    )
    return [path, *(each for key, part in parts for each in places(part, (*path, key)))]


def mutated(value: Any, rng: random.Random, keys: list[str]) -> Any:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if keys and isinstance(value, dict) and rng.random() < 0.4:
            value[rng.choice(keys)] = copy.deepcopy(rng.choice(ODD))
            continue
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.1:
                return copy.deepcopy(rng.choice(ODD))
            continue
        inner = value
        for step in path[:-1]:
            inner = inner[step]
        if rng.random() < 0.25:
            del inner[path[-1]]
        else:
            inner[path[-1]] = copy.deepcopy(rng.choice(ODD))
    return value


def mutate_json(folder: Path, name: str, rng: random.Random, keys: list[str]) -> None:
    path = folder / name
    text = path.read_text()
    if rng.random() < 0.12:
        at = rng.randrange(len(text))
        odd = rng.choice(["", "{", DEEP, "\0", "\ufeff", '"', "1e999", "-"])
        path.write_text(text[:at] + odd + text[at + rng.choice([0, 1, 50]) :])
        return
    path.write_text(json.dumps(mutated(json.loads(text), rng, keys)))


def mutate_weights(folder: Path, name: str, rng: random.Random) -> None:
    if rng.random() < 0.3:
        path = folder / name
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), 3000))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data)), 8, 0])])
        return
    with_header(
        folder,
        lambda header: json.dumps(mutated(header, rng, ["score.bias", "v_head.weight", "__metadata__"])).encode(),
        name,
    )


def variants(folder: Path) -> dict[str, Path]:
    """One checkpoint of each make, saved once."""
    made = {
        "llama": save_decoder(folder / "llama"),
        "deberta": save_deberta(folder / "deberta"),
        "internlm2": save_internlm2(folder / "internlm2", changes={"max_position_embeddings": 512}),
        "stablelm": save_decoder(folder / "stablelm", "stablelm"),
        "sharded": save_decoder(folder / "sharded", "qwen3"),
        "adapter": save_decoder(folder / "adapter"),
    }
    from safetensors.torch import load_file

    store(made["sharded"], load_file(made["sharded"] / WEIGHTS), shards=2)
    save_adapter(made["adapter"], made["adapter"], matrices())
    change_weights(made["stablelm"], lambda weights: weights.update({"score.bias": torch.ones(1)}))
    return made


def one_mutation(made: dict[str, Path], room: Path, seed: int) -> tuple[str, float]:
    """Score a mutated checkpoint; gives how that ended, and the seconds that it took. Another exception than ours is raised."""
    rng = random.Random(seed)
    make = rng.choice(sorted(made))
    folder = room / "m"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[make], folder)
    if make == "adapter":
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(folder)}))
    kinds = ["config.json"] * 4 + ["weights"] * 3 + ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    kinds += (
        ["model.safetensors.index.json"] * 3
        if make == "sharded"
        else ["adapter_config.json"] * 4
        if make == "adapter"
        else []
    )
    kind = rng.choice(kinds)
    if kind == "weights":
        mutate_weights(folder, rng.choice(sorted(path.name for path in folder.glob("*.safetensors"))), rng)
    elif kind == "chat_template.jinja":
        if not (folder / kind).exists():
            return "skipped", 0
        text = (folder / kind).read_text()
        at = rng.randrange(len(text))
        (folder / kind).write_text(
            text[:at]
            + rng.choice(["{{ x.y }}", "{%", "}}", "\ud7ff", "{{ 1/0 }}", ""])
            + text[at + rng.choice([0, 3]) :]
        )
    elif (folder / kind).exists():
        keys = {"config.json": KEYS, "tokenizer_config.json": TOKENIZER_KEYS}.get(kind, [])
        mutate_json(folder, kind, rng, keys)
    start = time.monotonic()
    problem, ended = "", "refused"
    try:
        found = load_scorer(folder, quantize=rng.choice([None, None, "int8"])).evidence(PAIR)
        ended = "row" if found.problems else "scored"
    except PrefcastError as error:
        problem = str(error)
    assert "\n" not in problem
    assert len(problem) < 1200
    return ended, time.monotonic() - start


def run_mutations(tmp_path: Path, seeds: range) -> dict[str, int]:
    made = variants(tmp_path / "made")
    one_mutation(made, tmp_path, -1)
    before, counts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, dict[str, int]()
    for seed in seeds:
        try:
            ended, seconds = one_mutation(made, tmp_path, seed)
        except BaseException as error:
            raise AssertionError(f"mutation {seed}: {type(error).__name__}: {error}") from error
        assert seconds < 30, f"mutation {seed} took {seconds:.0f} s"
        counts[ended] = counts.get(ended, 0) + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000
    return counts


def test_mutations(tmp_path: Path) -> None:
    counts = run_mutations(tmp_path, range(200))
    assert counts["refused"] > 60
    assert counts["scored"] > 20


@pytest.mark.long
def test_many_mutations(tmp_path: Path) -> None:
    run_mutations(tmp_path, range(200, 5200))
