"""What the evidence store costs and saves: make bench-store [DATA=../shared/data] [ROWS=20000]

Runs `prefcast predict --model surface` into a .csv file in turns with a new store, with a store that has every row, and with
`--no-store`. Prints the medians of seconds, CPU seconds and peak memory, the ratios to `--no-store`, and the bytes of the
store a row. Then it runs `predict` with `embedded` and a new store, and `evaluate` on the same rows and store right after,
and prints the ratio of their times. The rows are those of DATA/train, or the example pairs, repeated with a number in the
prompt so that no two are equal. CPU seconds count where other work shares the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from processes import Used, machine, median, prefcast, run
from rows import numbered, write

WITHOUT, NEW, FULL = "--no-store", "a new store", "a store with every row"


def forget(store: Path) -> None:
    """Delete a store and what SQLite keeps beside it."""
    for path in store.parent.glob(f"{store.name}*"):
        path.unlink()


def size(store: Path) -> int:
    """The bytes of a store on disk."""
    return sum(path.stat().st_size for path in store.parent.glob(f"{store.name}*"))


def surface(folder: Path, rows: int, data: Path | None, runs: int) -> None:
    """`predict --model surface` with and without a store."""
    source, store = folder / "surface.csv", folder / "surface.sqlite"
    count = write(source, numbered(rows, data))
    command = prefcast("predict", source, "--model", "surface", "-o", folder / "out.csv")
    found: dict[str, list[Used]] = {WITHOUT: [], NEW: [], FULL: []}
    run([*command, "--no-store"])  # the first process of all also reads the program from the disk
    for _ in range(runs):
        found[WITHOUT].append(run([*command, "--no-store"]))
        forget(store)
        found[NEW].append(run([*command, "--store", str(store)]))
        found[FULL].append(run([*command, "--store", str(store)]))
    plain = median(found[WITHOUT])
    print(f"\nprefcast predict --model surface, {count:,} rows into .csv, start-up included; medians of {runs} runs\n")
    print(f"{'':24}{'seconds':>10}{'ratio':>8}{'CPU s':>10}{'ratio':>8}{'peak MB':>10}")
    for name, each in found.items():
        used = median(each)
        print(
            f"{name:24}{used.seconds:10.2f}{used.seconds / plain.seconds:8.3f}{used.cpu:10.2f}{used.cpu / plain.cpu:8.3f}"
            f"{used.memory:10.0f}"
        )
    ratios = (f"{new.cpu / without.cpu:.3f}" for new, without in zip(found[NEW], found[WITHOUT], strict=True))
    print(f"CPU with a new store over CPU without, turn by turn: {', '.join(ratios)}")
    print(f"the store: {size(store):,} bytes, {size(store) / count:.1f} a row")


def embedded(folder: Path, rows: int, data: Path | None, runs: int) -> None:
    """`evaluate` right after `predict`: the second command finds all evidence in the store."""
    source, store = folder / "embedded.csv", folder / "embedded.sqlite"
    count = write(source, numbered(rows, data))
    common = ("--model", "embedded", "--store", store)
    first: list[Used] = []
    second: list[Used] = []
    for _ in range(runs):
        forget(store)
        first.append(run(prefcast("predict", source, *common, "-o", folder / "out.csv")))
        second.append(run(prefcast("evaluate", source, *common)))
    predict, evaluate = median(first), median(second)
    print(f"\n`embedded`, {count:,} rows, a new store; medians of {runs} runs")
    print(f"predict {predict.seconds:.2f} s, {predict.cpu:.2f} s of CPU")
    print(
        f"evaluate right after it {evaluate.seconds:.2f} s, {evaluate.cpu:.2f} s of CPU: "
        f"{evaluate.seconds / predict.seconds:.3f} of the time, {evaluate.cpu / predict.cpu:.3f} of the CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with train/*.csv.gz [default: the example pairs]")
    parser.add_argument("--rows", type=int, default=20_000, help="rows for surface [default: 20,000]")
    parser.add_argument("--embedded", type=int, default=1000, help="rows for embedded [default: 1,000; 0: none]")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        surface(Path(scratch), options.rows, options.data, options.runs)
        if options.embedded:
            embedded(Path(scratch), options.embedded, options.data, options.runs)


if __name__ == "__main__":
    main()
