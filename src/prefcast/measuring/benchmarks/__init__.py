"""Benchmarks of preference models from local files, with the rules that their authors published.

Each module in `rules/` with a `BENCHMARK` is one. `run` measures a forecaster on one; `compared` sets two results side by side.
"""

from __future__ import annotations

import difflib
import pkgutil
from functools import cache
from importlib import import_module

from prefcast.errors import UsageError, excerpt
from prefcast.measuring.benchmarks import rules
from prefcast.measuring.benchmarks.base import Benchmark

__all__ = ["benchmarks", "find_benchmark"]


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    found: dict[str, Benchmark] = {}
    for module in pkgutil.iter_modules(rules.__path__):
        benchmark: Benchmark = import_module(f"{rules.__name__}.{module.name}").BENCHMARK
        found[benchmark.name] = benchmark
    return found


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name. Raises UsageError."""
    known = benchmarks()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ";"
        raise UsageError(f"unknown benchmark {excerpt(name)}{meant} there are {', '.join(known)}")
    return known[name]
