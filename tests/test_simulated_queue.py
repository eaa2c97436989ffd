"""The simulated queue of benchmarks/: laws that any schedule keeps."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_FILE = Path(__file__).parents[1] / "benchmarks" / "simulated_queue.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(_FILE.stem, _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_FILE.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


simulated = _load()
Workers, from_queue, from_shards = simulated.Workers, simulated.from_queue, simulated.from_shards

_seconds = st.lists(st.floats(0.1, 100), min_size=1, max_size=60).map(np.array)
_speeds = st.lists(st.floats(0.2, 2), min_size=1, max_size=9).map(np.array)


@pytest.mark.parametrize(("pieces", "workers", "rounds"), [(12, 4, 3), (13, 4, 4), (3, 8, 1), (1, 1, 1)])
def test_equal_pieces_take_whole_rounds(pieces: int, workers: int, rounds: int) -> None:
    several = Workers(np.ones(workers), start_up=5)
    for found in (
        from_queue(np.full(pieces, 10.0), several),
        from_queue(np.full(pieces, 10.0), several, held=2),
        from_shards(np.full(pieces, 10.0), several),
    ):
        assert found.makespan == 5 + 10 * rounds
        assert (found.useful, found.lost, found.done) == (10 * pieces, 0, pieces)


@settings(max_examples=60, deadline=None)
@given(_seconds, _speeds, st.integers(0, 5))
def test_the_queue_is_at_most_a_piece_from_the_ideal(pieces: np.ndarray, speeds: np.ndarray, start_up: int) -> None:
    workers = Workers(speeds, start_up=start_up)
    longest = pieces.max() / speeds.min()
    queue, shards = from_queue(pieces, workers), from_shards(pieces, workers)
    assert start_up + queue.ideal <= queue.makespan + 1e-6
    assert queue.makespan <= start_up + queue.ideal + longest + 1e-6
    assert shards.makespan >= queue.makespan - longest - 1e-6
    assert from_queue(pieces, workers, held=2).makespan <= start_up + queue.ideal + 2 * longest + 1e-6


@settings(max_examples=60, deadline=None)
@given(_seconds, st.integers(1, 9), st.sampled_from([(1, False), (2, False), (2, True)]), st.integers(0, 99))
def test_work_is_conserved(pieces: np.ndarray, n: int, way: tuple[int, bool], seed: int) -> None:
    held, stays = way
    workers = Workers(np.ones(n), 1, replacement=20, losses=simulated.AtRate(20, seed, a_node=2))
    found = from_queue(pieces, workers, held=held, stays=stays)
    again = Workers(np.ones(n), 1, replacement=20, losses=simulated.AtRate(20, seed, a_node=2))
    for each in (found, from_shards(pieces, again)):
        assert each.done == len(pieces)
        assert each.useful == pytest.approx(pieces.sum())
        assert each.useful + each.lost <= n * each.makespan + 1e-6
        assert (each.lost > 0) == (each.losses > 0) == (each.tries > 1)


def test_a_lost_worker_costs_its_piece_and_its_start() -> None:
    losses = simulated.AtTimes({0: [14.0]})
    one = Workers(np.ones(1), start_up=2, replacement=30, losses=losses)
    # 2 + 10; 2 lost; back at 14 + 30 + 2, then two pieces again.
    for found in (from_queue(np.full(3, 10.0), one), from_shards(np.full(3, 10.0), one)):
        assert (found.makespan, found.lost, found.losses, found.tries) == (66, 2, 1, 2)
    two = Workers(np.ones(2), start_up=2, replacement=300, losses=losses)
    # The other one takes the piece once it is back in the queue.
    assert from_queue(np.full(4, 10.0), two).makespan == 32
    # With Ray it waits for its own actor.
    assert from_queue(np.full(4, 10.0), two, held=2, stays=True).makespan == 326


def test_losses_cost_what_the_formula_says() -> None:
    """A piece of T seconds that starts over at every loss takes (exp(rate T) - 1) (1 / rate + R) seconds on average, from
    its beginning, with R seconds until somebody works again."""
    per_hour, length, back, n = 6.0, 400.0, 50.0, 20_000
    rate = per_hour / 3600
    workers = Workers(np.ones(1), replacement=back, losses=simulated.AtRate(per_hour, 7))
    expected = n * math.expm1(rate * length) * (1 / rate + back)
    for found in (from_queue(np.full(n, length), workers), from_shards(np.full(n, length), workers)):
        assert found.makespan == pytest.approx(expected, rel=0.02)


def test_one_reader_and_one_keeper_bound_the_rate() -> None:
    pieces, many = np.full(1000, 1.0), Workers(np.ones(500))
    assert from_queue(pieces, many, feed=0.5).makespan == pytest.approx(501)
    assert from_queue(pieces, many, commit=0.25).makespan == pytest.approx(251)
    assert from_shards(pieces, many, reading=0.5).makespan == pytest.approx(502)


def test_a_seed_says_it_all() -> None:
    def run() -> tuple[float, float, int]:
        losses = simulated.AtRate(2, 5, a_node=4)
        workers = Workers(np.full(8, 0.5), 1, replacement=60, losses=losses)
        found = from_queue(np.arange(1.0, 300.0), workers, held=2, stays=True)
        return found.makespan, found.lost, found.losses

    assert run() == run()
    assert run()[2] > 0
