"""What starting up costs, and what memory a long run takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import EXAMPLES, PEAK, SURFACE, kaggle_row, said_by

HEAVY = ("torch", "transformers", "ray", "onnxruntime", "pyarrow", "pandas", "scipy")
INSTANT = {"model": "surface"}


@pytest.mark.parametrize(
    "code",
    ["import prefcast", "import sys; sys.argv = ['prefcast', '--help']; import prefcast.cli; prefcast.cli.main()"],
)
def test_starting_up_loads_nothing_heavy(code: str) -> None:
    # The library's face and the program load numpy when a verb needs it.
    heavy = (*HEAVY, "numpy")
    report = f"\nfinally:\n import sys; print([name for name in {heavy} if name in sys.modules])"
    assert said_by(f"try:\n {code}\nexcept SystemExit: pass{report}").splitlines()[-1] == "[]"


def test_forecasting_a_csv_loads_nothing_heavy() -> None:
    code = f"import prefcast, sys; prefcast.predict({str(EXAMPLES)!r}, **{INSTANT}); print([name for name in {HEAVY} if name in sys.modules])"
    assert said_by(code).strip() == "[]"


def peak_memory(path: Path, output: Path) -> int:
    """Peak resident memory in bytes of one `predict` process."""
    code = (
        "import sys; sys.argv = ['prefcast', *sys.argv[1:]]; import prefcast.cli\n"
        "try: prefcast.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
    )
    return int(said_by(code + PEAK, "predict", path, *SURFACE, "-o", output).splitlines()[-1])


def write_rows(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(
                json.dumps(kaggle_row(f"id-{number}", a=(f"answer {number} " * 20,), b=(f"other {number} " * 15,)))
                + "\n"
            )
    return path


def check_flat(folder: Path, ending: str, few: int, many: int) -> None:
    small = peak_memory(write_rows(folder / "few.jsonl", few), folder / f"out-few{ending}")
    large = peak_memory(write_rows(folder / "many.jsonl", many), folder / f"out-many{ending}")
    identifiers = 16 * (many - few)
    assert large - identifiers <= 1.2 * small


@pytest.mark.parametrize(
    "ending", [".csv", pytest.param(".jsonl", marks=pytest.mark.long), pytest.param(".parquet", marks=pytest.mark.long)]
)
@pytest.mark.parametrize(("few", "many"), [(1_000, 10_000), pytest.param(10_000, 200_000, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, ending: str, few: int, many: int) -> None:
    check_flat(tmp_path, ending, few, many)
