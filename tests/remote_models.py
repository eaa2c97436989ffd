"""Fakes of servers that compute with the network of a tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from prefcast import load_scorer
from prefcast.scorers.remote import Options, scorer_at
from prefcast.scorers.reward.engine import Group
from prefcast.testing import FakeOpenRlhf, FakeSglang, FakeTei, FakeVllm, RewardServer

FAKES: dict[str, type[RewardServer]] = {
    "vllm": FakeVllm,
    "sglang": FakeSglang,
    "tei": FakeTei,
    "openrlhf": FakeOpenRlhf,
}


def computed_by(model: Path) -> Any:
    """What a fake computes with: the outputs of the checkpoint's network, in this process."""
    scorer, lock = load_scorer(model), Lock()
    engine, typed = scorer.engine, "token_type_ids" in scorer.tokenizer.model_input_names

    def compute(sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        groups = [
            Group((np.array(ids, np.int32),), (np.array(types, np.int32),) if typed else None)
            for ids, types in sequences
        ]
        with lock:
            found = engine.run(groups)
        return [each[0].tolist() for each in found]  # type: ignore[union-attr]

    return compute


def tokenizer_only(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint without its weights."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def served(kind: str, model: Path, **more: Any) -> RewardServer:
    """A fake that serves a checkpoint; without `compute` it computes with the checkpoint's network."""
    config = json.loads((model / "config.json").read_text())
    names = config.get("id2label") or {"0": "LABEL_0"}
    said: dict[str, Any] = {
        "labels": [names[str(index)] for index in range(len(names))],
        "root": str(model),
        "limit": config["max_position_embeddings"],
    }
    compute = more.pop("compute", None) or computed_by(model)
    return FAKES[kind](compute, Tokenizer.from_file(str(model / "tokenizer.json")), **{**said, **more})


def scorer_of(server: RewardServer, protocol: str, **options: Any) -> Any:
    """The scorer of a fake."""
    return scorer_at(server.url, Options(protocol=protocol, retries=2, **options))
