"""Check the reward models on a GPU, and write a report in Markdown: make check-gpu

It needs a Python with torch, transformers, safetensors, tokenizers and accelerate, and bitsandbytes for NF4; nothing is
fetched, and prefcast need not be installed. `--device cpu` runs the same checks on small shapes, to show that the script
runs through. It ends within `--minutes`: what it had no time or no device for stands in the report as not tested.

The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As it lies here, installed or not; worker processes inherit it.
PATHS = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT / "tools")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402 - the paths come first
import torch  # noqa: E402

import gpu_speed  # noqa: E402
from checkpoints import EXAMPLES, FAMILIES, INTERNLM2, save_decoder  # noqa: E402
from gpu_speed import SHAPES, Way, random_network  # noqa: E402
from gpu_training import STEPS, train_some  # noqa: E402
from prefcast import Pair, load_scorer, read_pairs  # noqa: E402
from prefcast.errors import PrefcastError  # noqa: E402
from prefcast.pairs.budget import WHOLE  # noqa: E402
from prefcast.runs.pool import pooled  # noqa: E402
from prefcast.scorers.base import Evidence, read_pair  # noqa: E402
from prefcast.scorers.reward.engine import Engine, Group, NativeRunner  # noqa: E402
from prefcast.scorers.reward.networks import PACKED_FAMILIES, quiet  # noqa: E402

PAIRS = [pair for pair in read_pairs(EXAMPLES) if isinstance(pair, Pair)]
if "cpu" in sys.argv:
    # Half precision is slow on a CPU.
    del PAIRS[8:]
# The largest change of margins (root mean square) that passes, as a share of their standard deviation on the CPU in
# float32. The random weights of the small checkpoints are large: half precision costs more here than in a trained model.
MOST = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.6, "nf4": 0.02}


@dataclass
class Report:
    """What was found, as Markdown."""

    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    def check(self, name: str, passed: bool, found: str) -> None:
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {found}", flush=True)
        self.checks.append((name, passed, found))

    def skip(self, name: str, why: str) -> None:
        print(f"--   {name}: not tested: {why}", flush=True)
        self.untested.append(f"{name}: {why}")

    def table(self, text: str) -> None:
        print(text, flush=True)
        self.tables.append(text)

    @property
    def failed(self) -> int:
        return sum(not passed for _, passed, _ in self.checks)

    def markdown(self, machine: str, seconds: float) -> str:
        rows = "\n".join(
            f"| {name} | {'passed' if ok else '**failed**'} | {found} |" for name, ok, found in self.checks
        )
        untested = "\n".join(f"- {each}" for each in self.untested) or "- nothing"
        return (
            f"# GPU check\n\n{machine}\n\nIt took {seconds:.0f} s. {len(self.checks)} checks, {self.failed} failed.\n\n"
            f"## Checks\n\nA change is the root mean square change of the margins, as a share of their standard deviation "
            f"on the CPU in float32. n = {len(PAIRS)} pairs each.\n\n| check | result | found |\n| --- | --- | --- |\n{rows}\n\n"
            + "\n\n".join(self.tables)
            + f"\n\n## Not tested\n\n{untested}\n"
        )


@dataclass(frozen=True)
class Clock:
    """How many seconds are left."""

    end: float

    def left(self) -> float:
        return self.end - time.monotonic()


def machine(device: torch.device) -> str:
    """Which versions and which card."""

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    said = [f"Python {platform.python_version()}", *map(of, ("torch", "transformers", "bitsandbytes", "accelerate"))]
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            said.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}")
        said.append(f"CUDA {torch.version.cuda}")
    else:
        said.append(f"device {device}: no GPU was used")
    return "; ".join(said) + "."


def scored(folder: Path, **options: object) -> Evidence:
    """The evidence of the example pairs."""
    scorer = load_scorer(folder, max_tokens=256, **options)  # type: ignore[arg-type]
    try:
        return scorer.evidence([read_pair(pair, WHOLE, scorer)[0] for pair in PAIRS])
    finally:
        scorer.close()


def change(found: Evidence, base: Evidence) -> float:
    """The root mean square change of a margin, in standard deviations. Infinite if a row failed."""
    if found.problems or base.problems:
        return float("inf")
    return float(np.sqrt(np.square(found.margin - base.margin).mean()) / base.margin.std())


def parity(report: Report, room: Path, device: str, clock: Clock) -> None:
    """Every family in three precisions against the CPU's float32."""
    made: dict[str, Callable[[Path], Path]] = {"the InternLM2 fixture": lambda folder: INTERNLM2, **FAMILIES}
    for family in sorted(PACKED_FAMILIES - set(made)):
        made[family] = lambda folder, family=family: save_decoder(folder, family)  # type: ignore[misc]
    for name, save in made.items():
        title = f"{name} against the CPU"
        if clock.left() < 60:
            report.skip(title, "no time was left")
            continue
        try:
            with quiet():
                folder = save(room / name.replace(" ", "-"))
            base = scored(folder, devices="cpu", dtype="float32")
            found = {dtype: change(scored(folder, devices=device, dtype=dtype), base) for dtype in list(MOST)[:3]}
        except Exception as error:  # one family that fails is a result, and the others are still checked
            report.check(title, False, f"{type(error).__name__}: {str(error)[:200]}")
            continue
        passed = all(value <= MOST[dtype] for dtype, value in found.items())
        report.check(title, passed, ", ".join(f"{dtype} {value:.1e}" for dtype, value in found.items()))


def quantised(report: Report, room: Path, device: str) -> None:
    """NF4 and int8 on the device against the same matrices, dequantised, in float32 on the CPU."""
    folder = FAMILIES["internlm2"](room / "quantised")
    for quantization in ("nf4", "int8"):
        name = f"{quantization} against its dequantised weights"
        try:
            # On a CPU a layer multiplies by the dequantised matrix in float32.
            base = scored(folder, devices="cpu", dtype="float32", quantize=quantization)
            found = change(scored(folder, devices=device, dtype="float16", quantize=quantization), base)
            report.check(name, found <= MOST["nf4"], f"float16 {found:.1e}")
        except PrefcastError as error:
            report.skip(name, str(error))


def replicas(report: Report, room: Path, device: torch.device) -> None:
    """Two replicas on one device, and on two; one model spread over two."""
    folder = FAMILIES["internlm2"](room / "replicas")
    first = str(device) if device.type != "cuda" else "cuda:0"
    base = scored(folder, devices=first)
    pairs = [first, first] if device.type != "cuda" else ["cuda:0", "cuda:0"]
    asked = {"two replicas on one device": pairs}
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        asked["two replicas on two devices"] = ["cuda:0", "cuda:1"]
        found = scored(folder, devices="cuda:0,cuda:1", spread=True)
        report.check("one model spread over two devices", change(found, base) <= 1e-3, f"{change(found, base):.1e}")
    else:
        report.skip("two devices", "there is one" if device.type == "cuda" else "there is no GPU")
    for name, devices in asked.items():
        # Small batches, so that each replica gets some.
        options = {"devices": ",".join(devices), "batch_tokens": 2000}
        alone = scored(folder, devices=first, batch_tokens=2000)
        scorer = pooled(load_scorer(folder, max_tokens=256, **options))  # type: ignore[arg-type]
        try:
            found = scorer.evidence([read_pair(pair, WHOLE, scorer)[0] for pair in PAIRS])
        finally:
            scorer.close()
        report.check(name, change(found, alone) == 0, f"change against one replica {change(found, alone):.1e}")


def out_of_memory(report: Report, device: torch.device) -> None:
    """A batch that does not fit is halved, and a pair that alone does not fit fails alone."""
    name = "a batch that does not fit the memory is halved"
    if device.type != "cuda":
        report.skip(name, "a CPU has no such limit")
        return
    network = random_network(SHAPES["400M"], device, torch.float16)
    generator = np.random.default_rng(0)
    groups = [Group(tuple(generator.integers(3, 1000, 1500).astype(np.int32) for _ in range(2))) for _ in range(24)]
    runner = NativeRunner(network, device)

    def most(of: list[Group]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        Engine(runner).run(of)
        return torch.cuda.max_memory_reserved(device)

    whole, total = Engine(runner).run(groups), torch.cuda.get_device_properties(device).total_memory
    few, many, held = most(groups[:4]), most(groups), torch.cuda.memory_allocated(device)
    engine = Engine(runner)
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (few + (many - few) / 4) / total), device)
        halved = engine.run(groups)
        changes = [
            float("inf") if isinstance(one, str) or isinstance(two, str) else float(np.abs(one - two).max())
            for one, two in zip(whole, halved, strict=True)
        ]
        worst = max(changes)
        found = f"batches of at most {engine.most_tokens} tokens afterwards; the largest change of a score {worst:.1e}"
        report.check(name, engine.most_tokens is not None and worst < 0.05, found)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 2**20) / total), device)
        failed = sum(isinstance(each, str) for each in Engine(runner).run(groups[:2]))
        report.check("a pair that alone does not fit fails alone", failed == 2, f"{failed} of 2 failed")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def attention(report: Report, device: torch.device) -> None:
    """The ways to compute packed attention, side by side."""
    ways = gpu_speed.attention_ways(device)
    rows = [f"| {way.name} | {way.shown} | {way.ratio:.2f} | {way.note} |" for way in ways]
    report.table(
        "## Packed attention\n\nOne layer, "
        + gpu_speed.attention_shape(device)
        + "; medians. The product computes one call a span.\n\n"
        "| way | time | of the product's | largest change |\n| --- | ---: | ---: | --- |\n" + "\n".join(rows)
    )


def throughput(report: Report, device: torch.device, clock: Clock) -> None:
    """Whole networks with random weights: prefcast, the notebook's way, and a sorted transformers loop."""
    for name in ("1.8B", "7B") if device.type == "cuda" else ("tiny",):
        if clock.left() < (150 if name == "7B" else 60):
            report.skip(f"pairs a second of {name}", "no time was left")
            continue
        found: list[Way] = gpu_speed.network_ways(SHAPES[name], device, clock.left() - 30)
        rows = [f"| {way.name} | {way.shown} | {way.ratio:.2f} | {way.note} |" for way in found]
        report.table(
            f"## InternLM2 with the shape {name}, random weights\n\n{gpu_speed.network_note(device)}\n\n"
            "| way | pairs a second | times the notebook's way | share of the measured peak |\n| --- | ---: | ---: | ---: |\n"
            + "\n".join(rows)
        )


def training(report: Report, room: Path, device: torch.device, clock: Clock) -> None:
    """Adapters of a random network are trained, and the loss must fall."""
    shape, words = ("1.8B", 100) if device.type == "cuda" else ("tiny", 8)
    name = f"training {STEPS} steps of adapters, InternLM2 with the shape {shape}"
    if clock.left() < 120:
        report.skip(name, "no time was left")
        return
    found = train_some(room / "training", SHAPES[shape], device, words, clock.left)
    # The files of a large model are large: they do not wait for the end.
    shutil.rmtree(room / "training")
    first, last = found.level(last=False), found.level(last=True)
    said = (
        f"the mean loss of ten steps fell from {first:.3f} to {last:.3f}; {found.rate:,.0f} tokens a second, "
        f"{found.memory / 2**30:.1f} GiB {'of the GPU' if device.type == 'cuda' else 'of the whole script'}"
    )
    if len(found.losses) < STEPS:
        report.skip(name, f"no time was left after {len(found.losses)} steps; {said}")
        return
    report.check(name, last < 0.9 * first, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the script runs through")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"), help="the report")
    parser.add_argument("--minutes", type=float, default=8.0, help="it ends by then")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("check-gpu: torch finds no CUDA device here; --device cpu runs the same checks on the CPU")
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device(args.device)
    began = time.monotonic()
    clock, report = Clock(began + 60 * args.minutes), Report()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        parts: list[tuple[str, Callable[[], None]]] = [
            ("memory", lambda: out_of_memory(report, device)),
            ("replicas", lambda: replicas(report, room, device)),
            ("quantised weights", lambda: quantised(report, room, args.device)),
            ("packed attention", lambda: attention(report, device)),
            ("training", lambda: training(report, room, device, clock)),
            ("pairs a second", lambda: throughput(report, device, clock)),
            # The families come last: each is short, and stops where the time ends.
            ("families", lambda: parity(report, room, args.device, clock)),
        ]
        for title, part in parts:
            try:
                part()
            except Exception as error:  # a part that fails is a result, and the others are still checked
                traceback.print_exc()
                report.check(title, False, f"{type(error).__name__}: {str(error)[:200]}")
            finally:
                args.output.write_text(report.markdown(machine(device), time.monotonic() - began), encoding="utf-8")
    print(f"the report is in {args.output}")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
