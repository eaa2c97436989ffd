"""How long a run on many workers takes, with stragglers and failures: python benchmarks/work_queue.py [--data DIR].

Simulates the plans of docs/scale.md. With --data it first measures here what the simulation assumes (seconds a piece and
how they vary, the start of a worker, reading, keeping, the size of results), and runs real workers over real pieces, one
of them killed, beside what the simulation says of the same run. Without, it takes the figures recorded in RECORDED. A
few minutes of CPU to measure, seconds to simulate.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefcast import load_forecaster
from prefcast.base.frames import receive, send
from prefcast.base.processes import Child
from prefcast.forecasts.predictions import open_writer
from prefcast.pairs import Pair
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.pieces import PIECE_ROWS, pieces
from prefcast.scorers.base import Scorer
from prefcast.scorers.kept import pair_key
from prefcast.scorers.store import EvidenceStore
from processes import machine
from queue_plans import RECORDED, Measured, print_plans
from simulated_queue import AtTimes, Seconds, Workers, from_queue

# Rows of a piece of the real runs: small, so that there are enough of them.
SMALL = 32
WORKERS = 2


@dataclass(frozen=True)
class Small:
    """A piece of a real run."""

    pairs: list[Pair]
    tokens: int


@dataclass
class Run:
    """What real workers did: seconds since their start."""

    makespan: float = 0.0
    starts: list[float] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    lost: list[float] = field(default_factory=list)


def _turns(pairs: Sequence[Pair]) -> list[list[tuple[str, str, str]]]:
    return [[(turn.prompt, turn.response_a, turn.response_b) for turn in pair.turns] for pair in pairs]


def entries(pairs: Sequence[Pair], body: bytes, columns: int) -> list[tuple[bytes, bytes]]:
    """What the evidence store takes: the key and the numbers of each pair."""
    numbers = np.frombuffer(body, dtype=np.float64).reshape(columns, len(pairs)).T
    return [(pair_key(pair, b"")[0], b"\0" + row.tobytes()) for pair, row in zip(pairs, numbers, strict=True)]


def half_way(piece: Small, pieces: list[Small], found: Run) -> float:
    """Half the seconds that a piece will take, by the pace so far."""
    tokens = max(1, sum(pieces[done].tokens for done in found.seconds))
    return 0.5 * piece.tokens * sum(found.seconds.values()) / tokens or 1.0


def real_run(scorer: Scorer, pieces: list[Small], room: Path, kill: int | None = None) -> Run:
    """Worker processes with a processor each take `pieces` from one queue, evidence into a store. The worker that has
    piece `kill` is killed half-way, and another takes its place."""
    found, lock = Run(), threading.Lock()
    waiting = deque(range(len(pieces)))
    room.mkdir()
    store, spec = EvidenceStore(room / "run.sqlite"), json.dumps({**scorer.spec(room), "threads": 1})
    processors = sorted(os.sched_getaffinity(0))[:WORKERS]
    began = time.perf_counter()

    def started(processor: int) -> Child:
        start = time.perf_counter()
        # What is started now inherits it: the affinity is that of this thread.
        os.sched_setaffinity(0, {processor})
        child = Child("prefcast.runs.worker", spec)
        receive(child.answers)
        with lock:
            found.starts.append(time.perf_counter() - start)
        return child

    def work(processor: int) -> None:
        child, killed = started(processor), False
        while True:
            with lock:
                if not waiting:
                    break
                number = waiting.popleft()
            start = time.perf_counter()
            timer = None
            if number == kill and not killed:
                timer = threading.Timer(half_way(pieces[number], pieces, found), os.kill, (child.pid, 9))
                timer.start()
            try:
                send(child.to, {"pairs": _turns(pieces[number].pairs)})
                header, body = receive(child.answers)
            except (EOFError, OSError):
                with lock:
                    found.lost.append(time.perf_counter() - start)
                    waiting.appendleft(number)
                child.end()
                child, killed = started(processor), True
                continue
            if timer is not None:
                timer.cancel()
            with lock:
                store.put(entries(pieces[number].pairs, body, len(header["names"])))
                found.seconds[number] = time.perf_counter() - start
        child.stop()
        child.kill()
        with lock:
            found.makespan = max(found.makespan, time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(processor,)) for processor in processors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    shutil.rmtree(room)
    return found


def predicted(seconds: Seconds, start_up: float, killed: tuple[int, float] | None = None) -> float:
    """The makespan that the simulation gives; `killed` is a worker and when."""
    losses = AtTimes({} if killed is None else {killed[0]: [killed[1]]})
    return from_queue(seconds, Workers(np.ones(WORKERS), start_up, losses=losses)).makespan


def at_piece(seconds: Seconds, start_up: float, piece: int) -> tuple[int, float]:
    """Which worker is at `piece`, and when it is half-way."""
    free = [start_up] * WORKERS
    for number, taken in enumerate(seconds):
        worker = free.index(min(free))
        if number == piece:
            return worker, free[worker] + float(taken) / 2
        free[worker] += float(taken)
    raise ValueError(piece)


def validate(scorer: Any, pairs: list[Pair], count: int, room: Path) -> tuple[list[float], list[float]]:
    """Real runs beside the simulation. Gives the seconds of workers' starts, and of pieces over what their tokens say."""
    # Evenly from the input, so that all kinds occur, in an order of their own.
    places = np.linspace(0, len(pairs) - SMALL, 2 * count).astype(int).tolist()
    random.Random(2).shuffle(places)  # noqa: S311
    made = []
    for place in places:
        rows = pairs[place : place + SMALL]
        made.append(Small(rows, sum(len(ids) for texts in scorer.reader.read(rows) for ids in texts)))
    known, new = made[:count], made[count:]
    first = real_run(scorer, known, room / "run")
    # seconds = a piece's own cost + tokens: read, features and all go with the tokens closely enough.
    pace = sum(first.seconds.values()) / sum(piece.tokens for piece in known)
    start_up = statistics.median(first.starts)
    expected = np.array([piece.tokens * pace for piece in new])
    middle = count // 2
    print(
        f"\n{WORKERS} workers with one processor each, {count} pieces of {SMALL} rows; seconds until the last is done\n"
    )
    _say(f"{'':62}{'real':>8}{'simulated':>11}{'off by':>9}")
    for name, kill in (("", None), (f", one killed at piece {middle}", middle)):
        run = real_run(scorer, new, room / "run", kill)
        taken = np.array([run.seconds[number] for number in range(count)])
        for what, seconds, began in (
            ("from its tokens, by another run's pace", expected, start_up),
            ("from its own pieces' seconds", taken, statistics.median(run.starts)),
        ):
            said = predicted(seconds, began, None if kill is None else at_piece(seconds, began, kill))
            _say(f"{what + name:62}{run.makespan:8.1f}{said:11.1f}{said / run.makespan - 1:+9.1%}")
        if kill is not None:
            _say(f"lost: {sum(run.lost):.1f} s of a piece of {taken[kill]:.1f} s; every piece is there")
        first.starts += run.starts
    noise = [first.seconds[n] / (pace * piece.tokens) for n, piece in enumerate(known)]
    return first.starts, noise


def timed_rows(files: list[Path]) -> Iterator[tuple[list[Any], float]]:
    """Pieces as the engine forms them, and the CPU seconds that each took to read, to make keys of and to send."""
    for path in files:
        with open_pairs(path) as file:
            source = pieces(file)
            while True:
                start = time.process_time()
                piece = next(source, None)
                if piece is None:
                    break
                found = [item for item in piece if isinstance(item, Pair)]
                for pair in found:
                    pair_key(pair, b"")
                json.dumps(_turns(found))
                yield piece, time.process_time() - start


def store_cost(path: Path, columns: int) -> tuple[float, float]:
    """CPU seconds to look up and keep a piece of new rows with so many numbers, and the store's bytes a row."""
    pieces, size = 300, 1 + 8 * columns
    lots = [[(os.urandom(16), os.urandom(size)) for _ in range(PIECE_ROWS)] for _ in range(pieces)]
    start = time.process_time()
    with EvidenceStore(path) as store:
        for lot in lots:
            store.get([key for key, _ in lot])
            store.put(lot)
        seconds = time.process_time() - start
    return seconds / pieces, path.stat().st_size / (pieces * PIECE_ROWS)


def measure(data: Path, count: int, every: int) -> Measured:
    """What the simulation assumes, measured on this machine; tokens are counted in every so many pieces."""
    files = sorted((data / "train").glob("*.csv.gz"))
    forecaster = load_forecaster("embedded")
    scorer: Any = forecaster.scorer
    reading, rows, number = 0.0, 0, 0
    pairs: list[Pair] = []
    pieces: list[list[float]] = []
    for number, (piece, seconds) in enumerate(timed_rows(files)):
        reading, rows = reading + seconds, rows + len(piece)
        if number % every == 0:
            found = [item for item in piece if isinstance(item, Pair)]
            pairs += found
            pieces.append([float(sum(map(len, texts))) for texts in scorer.reader.read(found)])
    tokens = np.concatenate(pieces)
    # The last piece of a file is smaller; what counts is what a row costs.
    by_kind = np.array([float(np.mean(piece)) for piece in pieces if len(piece) >= PIECE_ROWS // 2])
    _say(
        f"{number + 1} pieces of {len(files)} files read in {reading:.1f} s of CPU; tokens of {len(pairs)} rows counted"
    )

    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch)
        commit, kept = store_cost(room / "cost.sqlite", 2 + len(scorer.raw_names))
        # The same columns as `embedded` has, in a fraction of the time.
        quick = load_forecaster("surface")
        lots = [pairs[at : at + PIECE_ROWS] for at in range(0, min(len(pairs), 4 * PIECE_ROWS), PIECE_ROWS)]
        done = [quick.forecast(lot) for lot in lots]
        # The first time loads what the second one uses.
        for _ in range(2):
            start = time.process_time()
            with open_writer(room / "o.parquet") as sink:
                for one in done:
                    sink.write(one)
            writing = (time.process_time() - start) / len(lots)
        written = (room / "o.parquet").stat().st_size / sum(map(len, lots))
        found_so_far = Measured(
            tokens=round(float(tokens.mean())),
            characters=round(float(np.mean([pair.characters for pair in pairs]))),
            by_kind=tuple(np.round(by_kind / by_kind.mean(), 2).tolist()),
            # The mean of shuffled rows, from the rows' own spread.
            by_chance=round(float(tokens.std() / tokens.mean() / np.sqrt(PIECE_ROWS)), 4),
            noise=0.0,
            start_up=0.0,
            reading=round(reading / rows * PIECE_ROWS, 5),
            writing=round(writing, 5),
            commit=round(commit, 6),
            kept=round(kept, 1),
            written=round(written, 1),
            packed=round(sum(path.stat().st_size for path in files) / rows),
        )
        _say(found_so_far)
        starts, noise = validate(scorer, pairs, count, room)
    found_in_all = replace(
        found_so_far, noise=round(float(np.std(np.log(noise))), 3), start_up=round(statistics.median(starts), 2)
    )
    _say(found_in_all)
    return found_in_all


def _say(what: object) -> None:
    print(what, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with train/*.csv.gz: measure first")
    parser.add_argument("--pieces", type=int, default=16, help=f"of {SMALL} rows, in each of three real runs")
    parser.add_argument("--every", type=int, default=1, help="count tokens in every so many pieces only")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    measured = RECORDED
    if options.data is not None:
        _say(f"{machine()}, niceness {os.nice(0)}")
        measured = measure(options.data, options.pieces, options.every)
    print_plans(measured, options.seed)


if __name__ == "__main__":
    main()
