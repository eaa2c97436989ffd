"""Writes the table of families in docs/reward-models.md: python tools/make_families.py. It takes minutes."""

from __future__ import annotations

import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
START, END = "<!-- families -->", "<!-- /families -->"


def main() -> None:
    families: Any = import_module("families")
    warnings.simplefilter("ignore")
    lines = ["", "| family | how it is run | largest change of a score |", "| --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as room:
        for number, (name, case) in enumerate(families.CASES.items()):
            how, found = families.difference(case, Path(room) / str(number))
            lines.append(f"| {name} | {how} | {found:.1e} |")
    page = ROOT / "docs" / "reward-models.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    page.write_text("\n".join([before + START, *lines, "", END + rest.partition(END)[2]]), encoding="utf-8")


if __name__ == "__main__":
    main()
