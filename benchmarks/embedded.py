"""Speed of the `embedded` forecaster beside other ways to run the same network: benchmarks/embedded.py --data DIR.

All in one run, on the same pairs, cut to the same tokens, in turns: sentence-transformers with the same six layers as its
own checkpoint (float32 and bfloat16 by torch, int8 by ONNX Runtime, OpenVINO), the engine alone on ready-made token
arrays, and `prefcast predict` as a person runs it: reading, features, tokens, encoder, link, writing. Needs an environment
of its own (`make bench-embedded` makes it): the other packages want older versions than ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PAIRS, RUNS = 192, 3
TOKENS = 320


def sample(data: Path, count: int) -> list[Any]:
    """Every so many pairs of the training files that the figures are about, so that all lengths occur."""
    from prefcast.pairs.formats import read_pairs

    pairs = [
        pair
        for name in ("arena33k_sample574", "arena33k_writing1277", "arena_llama3_70b")
        for pair in read_pairs(data / "train" / f"{name}.csv.gz")
    ]
    return pairs[:: max(1, len(pairs) // count)][:count]


def checkpoint(folder: Path, tokenizer: Path) -> None:
    """The same network as sentence-transformers takes it: a BERT checkpoint, its tokenizer, the mean of the last layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from encoder_network import write_checkpoint
    from make_encoder import shipped

    network, _ = shipped()
    plain = folder / "plain"
    plain.mkdir()
    write_checkpoint(network, plain)
    found = Tokenizer.from_file(str(tokenizer))
    found.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=found, model_input_names=["input_ids", "attention_mask"], **special
    ).save_pretrained(plain)
    body = Transformer(str(plain), max_seq_length=TOKENS + 2)
    SentenceTransformer(modules=[body, Pooling(body.get_word_embedding_dimension(), "mean")], device="cpu").save(
        str(folder / "model")
    )


def contenders(room: Path, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """What is timed: a call that gives the vector of every text."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    folder = room / "model"

    def ready(**options: Any) -> Callable[[], Any]:
        model = SentenceTransformer(str(folder), device="cpu", **options)
        model.max_seq_length = TOKENS + 2
        model.encode(texts[:4])
        return lambda: model.encode(texts, show_progress_bar=False)

    found = {
        "sentence-transformers, float32": ready(),
        "the same, bfloat16": ready(model_kwargs={"torch_dtype": torch.bfloat16}),
    }
    plain = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs={"export": True})
    plain.save_pretrained(str(folder))
    export_dynamic_quantized_onnx_model(plain, "avx512_vnni", str(folder))
    quantized = {"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
    found["the same, ONNX int8"] = ready(backend="onnx", model_kwargs=quantized)
    found["the same, OpenVINO"] = ready(backend="openvino", model_kwargs={"export": True})
    return found


def engine(pairs: list[Any], folder: str) -> Callable[[], Any]:
    """ONNX Runtime alone: the same sequences as token arrays made beforehand, nothing padded, both processors busy."""
    from prefcast.forecasts.forecaster import load_forecaster

    scorer: Any = load_forecaster(folder).scorer
    texts = scorer.reader.read(pairs)
    return lambda: list(scorer.encoder.vectors(texts))


def ours(pairs: list[Any], folder: str) -> Callable[[], Any]:
    """The forecaster as a library: from pairs to probabilities with their intervals."""
    from prefcast.forecasts.forecaster import load_forecaster

    forecaster = load_forecaster(folder)
    return lambda: [forecaster.forecast(pairs[at : at + 256]) for at in range(0, len(pairs), 256)]


def written(pairs: list[Any], path: Path) -> None:
    rows = (
        json.dumps({"id": number, "prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b})
        for number, p in enumerate(pairs)
    )
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def predicted(path: Path, *more: str) -> None:
    """`prefcast predict` as a process of its own."""
    command = [sys.executable, "-m", "prefcast.cli", "predict", str(path), "--model", "embedded", "--fresh", *more]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/*.csv.gz")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--ours-only", action="store_true", help="leave out what sentence-transformers runs")
    options = parser.parse_args()
    pairs = sample(options.data, options.pairs)
    texts = [
        kind + "\n".join(turns)
        for pair in pairs
        for kind, turns in (
            ("query: ", pair.prompt),
            ("passage: ", [turn.response_a for turn in pair.turns]),
            ("passage: ", [turn.response_b for turn in pair.turns]),
        )
    ]
    from prefcast.forecasts.forecaster import load_forecaster

    scorer: Any = load_forecaster("embedded").scorer
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        calls: dict[str, Callable[[], Any]] = {}
        if not options.ours_only:
            checkpoint(folder, scorer.folder / "tokenizer.json")
            calls = contenders(folder, texts)
        calls |= {
            "engine alone, ready-made tokens": engine(pairs, "embedded"),
            "prefcast": ours(pairs, "embedded"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        calls["prefcast"]()
        for _ in range(options.runs):
            for name, call in calls.items():
                seconds[name].append(timed(call))
        file, one = folder / "pairs.jsonl", folder / "one.jsonl"
        written(pairs, file)
        written(pairs[:1], one)
        output = folder / "out.csv"
        whole = [timed(lambda: predicted(file, "-o", str(output))) for _ in range(options.runs)]
        first = [timed(lambda: predicted(one)) for _ in range(5)]
    tokens = sum(len(ids) for pair in scorer.reader.read(pairs) for ids in pair)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{platform.platform()}, {cpus} processors, Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}"
    )
    print(f"{len(pairs)} pairs of {tokens / len(pairs):.0f} tokens, medians of {options.runs} runs in turns\n")
    mine = statistics.median(seconds["prefcast"])
    print(f"{'':34}{'pairs/s':>10}{'tokens/s':>10}{'ours is':>10}")
    for name, taken in {**seconds, "prefcast predict, whole process": whole}.items():
        median = statistics.median(taken)
        print(f"{name:34}{len(pairs) / median:10.1f}{tokens / median:10.0f}{median / mine:9.2f}x")
    print(f"\nstart-up to the first forecast {statistics.median(first):.2f} s (median of 5 processes)")
    print(f"log spread of ours: {np.ptp(np.log(seconds['prefcast'])):.3f}")


if __name__ == "__main__":
    main()
