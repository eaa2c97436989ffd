"""Writes docs/cli.md from the program's own --help: python tools/make_cli.py. A test compares the two."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# Each release of Typer lays its help out a little differently.
TYPER = ".".join(version("typer").split(".")[:2])
VERBS = (
    "predict",
    "explain",
    "check",
    "best",
    "pairs",
    "filter",
    "fit",
    "evaluate",
    "report",
    "rank",
    "label",
    "compare",
    "score",
    "merge",
    "quantize",
    "serve",
    "store",
    "models",
    "models show",
    "models probe",
    "train",
    "train embedded",
    "train reward",
)
HEAD = f"""# The command line

`make docs` writes this page from `prefcast --help`, with Typer {TYPER}.

| exit status | meaning |
| --- | --- |
| 0 | The command succeeded. `serve` and `label --page` end with 0 when they are told to stop. |
| 2 | The call, the file or the machine is at fault. No output was written (a cluster that writes parts keeps the whole ones). |
| 3 | The command finished, but some rows failed. |
| 129, 130, 143 | SIGHUP, SIGINT or SIGTERM stopped the command. |
"""


def help_of(*verb: str) -> str:
    """What `prefcast VERB --help` prints, 100 columns wide."""
    command = [sys.executable, "-m", "prefcast.cli", *verb, "--help"]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return out.replace("python -m prefcast.cli", "prefcast").strip()


def text() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{help_of()}\n```\n"]
    parts += [f"## prefcast {verb}\n\n```text\n{help_of(*verb.split())}\n```\n" for verb in VERBS]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "cli.md").write_text(text(), encoding="utf-8")
