"""The plans of docs/scale.md as numbers: what is measured, what is assumed, and the simulation of both.

`work_queue.py` runs it. Whatever stands under ASSUMED was not measured; change it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulated_queue import AtRate, Result, Seconds, Workers, from_queue, from_shards

# MEASURED: `embedded`, two cores (AMD EPYC with AVX512-VNNI), pairs of 530 tokens.
PAIRS_A_SECOND, CORES = 46.0, 2
ROWS = 256


@dataclass(frozen=True)
class Measured:
    """`by_kind`: tokens of each piece of the files as they lie, over their mean; `by_chance`: the same's standard deviation
    over its mean if the rows are shuffled; `noise`: standard deviation of the log of a piece's seconds over what its tokens
    say. Seconds of CPU a piece of 256 rows: `reading` (with keys and sending), `writing`, `commit` (look up and keep in the evidence
    store). Bytes a row: `kept` in the store, `written` as Parquet, `packed` as the input lies (.csv.gz)."""

    tokens: float
    characters: float
    by_kind: tuple[float, ...]
    by_chance: float
    noise: float
    start_up: float
    reading: float
    writing: float
    commit: float
    kept: float
    written: float
    packed: float


# 24,034 rows of 15 files of human-labelled pairs, on two cores with nothing else running (make bench-queue).
# fmt: off
RECORDED = Measured(
    tokens=444,
    characters=2214,
    by_kind=(
        1.03, 0.92, 0.97, 1.06, 1.01, 1.04, 1.07, 1.57, 1.58, 1.52, 1.33, 1.35, 1.24, 1.42, 0.79, 0.97,
        1.14, 0.9, 0.56, 0.59, 0.61, 0.64, 0.59, 0.6, 0.59, 0.64, 0.6, 1.06, 0.96, 0.86, 0.67, 1.04,
        0.83, 0.64, 0.52, 0.76, 0.82, 1.0, 0.82, 0.82, 0.72, 0.87, 0.88, 0.86, 0.94, 0.85, 0.93, 0.83,
        0.79, 1.12, 1.05, 1.14, 0.77, 1.08, 1.29, 1.4, 1.18, 1.26, 1.08, 0.99, 1.06, 1.16, 1.03, 1.01,
        0.87, 0.39, 0.39, 0.37, 1.19, 1.16, 1.18, 1.14, 1.09, 1.19, 1.17, 1.16, 1.21, 1.18, 1.21, 1.12,
        0.82, 0.8, 0.83, 0.7, 1.4, 1.43, 1.26, 1.37, 1.35, 1.44, 1.37, 1.3, 1.08, 1.43,
    ),
    by_chance=0.0292,
    noise=0.026,
    start_up=0.22,
    reading=0.00988,
    writing=0.01149,
    # These two: 300 pieces in a new store, an Intel Xeon that other work shared.
    commit=0.00295,
    kept=90.9,
    written=138.9,
    packed=426,
)
# fmt: on

# ASSUMED: a share of the workers is slow for the whole run, by a factor; a node that is lost is replaced.
SLOW_SHARE, SLOW = 0.05, 0.5
REPLACEMENT = 300.0
LOSSES_AN_HOUR = 0.01
# ASSUMED: example prices of a node-hour; put your own here.
CORES_A_NODE, CPU_NODE_HOUR = 16, 0.70
GPUS_A_NODE, GPU_HOUR = 8, 2.00
# COMPUTED from the shapes of InternLM2-20B: weights that multiply, without the embeddings. Two operations for each and token.
LAYERS, HIDDEN, INNER, KEYS = 48, 6144, 16_384, 8 * 128
WEIGHTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER)
EMBEDDINGS = 92_544 * HIDDEN
# MEASURED on 8 pairs (docs/reward-models.md): tokens of a pair once what its conversations share is laid down once.
TOKENS_A_PAIR = 7953 / 8
# The makers' peaks in 16 bit, dense, operations a second, and bytes a second of memory. ASSUMED: the share that is reached.
GPUS = {"T4, 16 GB": (65e12, 320e9), "A100, 80 GB": (312e12, 2039e9), "H100, 80 GB": (989e12, 3350e9)}
GPU, REACHED = "A100, 80 GB", 0.4
BATCH_TOKENS = 16_384
# ASSUMED: seconds to read 11 GB of weights and start.
GPU_START = 60.0
# What the cluster engine begins once more before it gives up (cluster/actors.py).
TRIES = 3


def gpu_pairs(gpu: str, tokens: float = TOKENS_A_PAIR, batch: int = BATCH_TOKENS) -> float:
    """Pairs a second of one GPU: arithmetic, and for every batch the weights from 4 to 16 bit through memory."""
    peak, memory = GPUS[gpu]
    attention = 2 * LAYERS * HIDDEN * tokens / 2  # a conversation is about half of a pair's tokens
    seconds = tokens * (2 * WEIGHTS + attention) / (peak * REACHED)
    # read 4 bit, write 16, read 16 again
    return 1 / (seconds + tokens / batch * WEIGHTS * 4.5 / memory)


def piece_seconds(
    measured: Measured, rows: float, pieces: int, rate: float, seed: int, *, sorted_: bool = False
) -> Seconds:
    """Seconds of `pieces` pieces or parts of `rows` rows for a worker of `rate` pairs a second: each is made of pieces of 256
    shuffled rows, or with `sorted_` is all of one kind."""
    random, k = np.random.default_rng((seed, pieces)), rows / ROWS
    if sorted_:
        content = random.choice(np.array(measured.by_kind), pieces)
    else:
        content = np.maximum(0.1, 1 + random.standard_normal(pieces) * measured.by_chance / math.sqrt(k))
    noise = 1 + random.standard_normal(pieces) * measured.noise / math.sqrt(max(1.0, k))
    found: Seconds = rows / rate * content * np.maximum(0.1, noise)
    return found


def workers(
    n: int, seed: int, *, start_up: float, slow: float = SLOW_SHARE, losses: float = 0.0, a_node: int = 1
) -> Workers:
    """`n` workers, a share of them slow, `a_node` of them lost together."""
    speeds = np.ones(n)
    speeds[np.random.default_rng((seed, n)).permutation(n)[: round(slow * n)]] = SLOW
    return Workers(speeds, start_up, REPLACEMENT, AtRate(losses, seed, a_node))


def _time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def _row(name: str, *cells: str) -> None:
    print(f"{name:38}" + "".join(f"{cell:>13}" for cell in cells))


def _cells(found: Result) -> tuple[str, ...]:
    lost = found.lost / found.useful
    return (
        _time(found.makespan),
        f"{found.over_ideal:.3f}",
        f"{found.utilisation:.1%}",
        f"{lost:.2%}",
        str(found.losses),
    )


_HEADS = ("time", "over ideal", "utilisation", "lost", "pieces lost")


def print_measured(m: Measured) -> None:
    print("\nWhat is measured")
    kinds = np.array(m.by_kind)
    print(f"a pair: {m.characters:.0f} characters, {m.tokens:.0f} tokens as the embedded model reads them")
    print(
        f"a piece of {ROWS} rows over the mean: shuffled rows, standard deviation {m.by_chance:.3f}; files as they lie "
        f"{kinds.std():.2f}, {kinds.min():.2f} to {kinds.max():.2f} ({len(kinds)} pieces); noise beyond the tokens {m.noise:.3f}"
    )
    print(
        f"start of a worker {m.start_up:.2f} s; CPU a piece: reading, keys, sending {1000 * m.reading:.1f} ms, writing Parquet "
        f"{1000 * m.writing:.1f} ms, evidence store {1000 * m.commit:.2f} ms"
    )
    print(
        f"bytes a row: input .csv.gz {m.packed:.0f}, evidence store {m.kept:.0f}, forecasts as Parquet {m.written:.0f}"
    )


def print_gpus() -> None:
    weights = (WEIGHTS * (4.127 / 8) + EMBEDDINGS * 2) / 1e9
    print(
        f"\nComputed: the 20B model in 4 bit, {weights:.1f} GB, {TOKENS_A_PAIR:.0f} tokens a pair, {REACHED:.0%} of the peak"
    )
    _row("", "pairs/s", "GPU-h a 1M", "one by one")
    for gpu in GPUS:
        rate, alone = gpu_pairs(gpu), gpu_pairs(gpu, batch=round(TOKENS_A_PAIR / 2))
        _row(gpu, f"{rate:.2f}", f"{1e6 / rate / 3600:.0f}", f"{alone:.2f}")


def print_one_file(m: Measured, seed: int) -> None:
    """Pieces of 256 rows of one file, through one process that reads and keeps."""
    rate = PAIRS_A_SECOND / CORES
    feed = m.reading
    print(
        f"\nOne file, `embedded`, a core a worker ({rate:.0f} pairs/s), pieces of {ROWS}; {SLOW_SHARE:.0%} of the workers at half speed"
    )
    serving = feed + m.commit + m.writing
    print(
        f"the starting process reads, stores and writes at most {ROWS / serving:,.0f} pairs/s, {ROWS / serving / rate:,.0f} workers"
    )
    for pairs, counts, losses in ((1e4, (2, 8, 16, 40), 0.0), (1e7, (64, 256, 1024), LOSSES_AN_HOUR)):
        pieces = piece_seconds(m, ROWS, math.ceil(pairs / ROWS), rate, seed)
        print(f"\n{pairs:,.0f} pairs, {len(pieces):,} pieces, {losses:g} losses a node-hour")
        _row("", *_HEADS)
        for n in counts:
            who = workers(n, seed, start_up=m.start_up, losses=losses, a_node=CORES_A_NODE)
            _row(f"{n} workers, one queue, a piece each", *_cells(from_queue(pieces, who, feed=feed, commit=m.commit)))
            ray = from_queue(pieces, who, held=2, stays=True, feed=feed, commit=m.commit)
            _row("  two pieces given to each", *_cells(ray))
            _row(f"  --shard I/{n}", *_cells(from_shards(pieces, who, reading=m.reading, commit=m.commit)))


def parts_run(
    m: Measured,
    pairs: float,
    rows: int,
    n: int,
    rate: float,
    seed: int,
    *,
    losses: float,
    gpu: bool = False,
    sorted_: bool = False,
) -> Result:
    """A run from Parquet parts to Parquet parts, whose actors hold two parts and begin a lost part anew."""
    parts = piece_seconds(m, rows, math.ceil(pairs / rows), rate, seed, sorted_=sorted_)
    a_node, start = (GPUS_A_NODE, GPU_START) if gpu else (CORES_A_NODE, m.start_up)
    who = workers(n, seed, start_up=start, losses=losses, a_node=a_node)
    return from_queue(parts, who, held=2, stays=True)


def print_parts(m: Measured, seed: int) -> None:
    cpu, gpu = PAIRS_A_SECOND / CORES, gpu_pairs(GPU)
    for name, pairs, n, rate, sizes, of_gpus in (
        ("`embedded`, a core a worker", 1e9, 1024, cpu, (4096, 16_384, 65_536), False),
        (f"20B in 4 bit, {GPU}", 1e7, 64, gpu, (1024, 4096, 16_384), True),
    ):
        print(
            f"\n{pairs:,.0f} pairs in parts, {n} workers, {name}: time over ideal, time lost, starts of the part that was started most often"
        )
        print(f"(* more than {TRIES} times: the run stops, and the same command continues)")
        rates = (0.0, 0.01, 0.1, 1.0)
        print(
            f"{'losses a node-hour':32}" + "".join(f"{each:>17}" for each in ("0", "0.01", "0.1", "1", "0.01, sorted"))
        )
        for rows in sizes:
            cells = []
            for losses, sorted_ in (*((each, False) for each in rates), (0.01, True)):
                found = parts_run(m, pairs, rows, n, rate, seed, losses=losses, gpu=of_gpus, sorted_=sorted_)
                stop = "*" if found.tries > TRIES else ""
                cells.append(f"{found.over_ideal:.2f} {found.lost / found.useful:.1%} {found.tries}{stop}")
            print(f"{rows:>7,} rows, {_time(rows / rate):>9} each   " + "".join(f"{cell:>17}" for cell in cells))


def print_slow(m: Measured, seed: int) -> None:
    rate, n = PAIRS_A_SECOND / CORES, 256
    pieces = piece_seconds(m, ROWS, math.ceil(1e7 / ROWS), rate, seed)
    print(f"\nSlow workers: 10,000,000 pairs, {n} workers, no losses; time over ideal")
    _row("share at half speed", "queue", "two ahead", "shards")
    for share in (0.0, 0.01, 0.05, 0.2):
        who = workers(n, seed, start_up=m.start_up, slow=share)
        found = (
            from_queue(pieces, who, feed=m.reading, commit=m.commit),
            from_queue(pieces, who, held=2, stays=True, feed=m.reading, commit=m.commit),
            from_shards(pieces, who, reading=m.reading, commit=m.commit),
        )
        _row(f"{share:.0%}", *(f"{each.over_ideal:.3f}" for each in found))


@dataclass(frozen=True)
class Plan:
    """`rows` a part; 256: pieces of one file."""

    pairs: float
    n: int
    rows: int
    gpu: bool = False


PLANS = (
    Plan(1e4, 2, ROWS),
    Plan(1e7, 128, 4096),
    Plan(1e9, 1024, 16_384),
    Plan(1e4, 1, ROWS, gpu=True),
    Plan(1e7, 64, 2048, gpu=True),
    Plan(1e9, 512, 4096, gpu=True),
)


def print_costs(m: Measured, seed: int) -> None:
    print(
        f"\nThe plans: {CPU_NODE_HOUR:.2f} a node-hour of {CORES_A_NODE} cores, {GPU_HOUR:.2f} a GPU-hour ({GPU}), "
        f"{LOSSES_AN_HOUR:g} losses a node-hour, {SLOW_SHARE:.0%} slow"
    )
    _row("", "workers", "rows a part", "parts", "time", "pairs/s", "node-hours", "cost", "input GB", "output GB")
    for plan in PLANS:
        rate = gpu_pairs(GPU) if plan.gpu else PAIRS_A_SECOND / CORES
        if plan.n <= 2:
            pieces = piece_seconds(m, plan.rows, math.ceil(plan.pairs / plan.rows), rate, seed)
            start = GPU_START if plan.gpu else m.start_up
            found = from_queue(pieces, workers(plan.n, seed, start_up=start), commit=m.commit)
        else:
            found = parts_run(m, plan.pairs, plan.rows, plan.n, rate, seed, losses=LOSSES_AN_HOUR, gpu=plan.gpu)
        hours = plan.n * found.makespan / 3600
        cost = hours * GPU_HOUR if plan.gpu else hours / CORES_A_NODE * CPU_NODE_HOUR
        nodes = hours / (GPUS_A_NODE if plan.gpu else CORES_A_NODE)
        _row(
            f"{plan.pairs:13,.0f}, {'20B, 4 bit' if plan.gpu else 'embedded'}",
            f"{plan.n:,}",
            f"{plan.rows:,}",
            f"{math.ceil(plan.pairs / plan.rows):,}",
            _time(found.makespan),
            f"{plan.pairs / found.makespan:,.0f}",
            f"{nodes:,.2f}" if nodes < 10 else f"{nodes:,.0f}",
            f"{cost:,.2f}" if cost < 10 else f"{cost:,.0f}",
            f"{plan.pairs * m.packed / 1e9:,.2f}",
            f"{plan.pairs * m.written / 1e9:,.2f}",
        )


def print_plans(measured: Measured, seed: int) -> None:
    print_measured(measured)
    print_gpus()
    print_one_file(measured, seed)
    print_slow(measured, seed)
    print_parts(measured, seed)
    print_costs(measured, seed)
