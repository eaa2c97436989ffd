"""Writes docs/cli.md from the program's own --help, so that the two cannot differ. A test compares them."""

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
    "fit",
    "evaluate",
    "report",
    "rank",
    "compare",
    "score",
    "merge",
    "quantize",
    "serve",
    "models",
    "models show",
    "train",
    "train embedded",
)
HEAD = f"""# The command line

Written by `make docs` from `prefcast --help`, with Typer {TYPER}.

Exit status: 0, done (`serve`: it was told to stop, and did); 2, a fault of the call, of the file or of the machine, and nothing was written; 3, done, but some rows
failed; 129, 130 and 143, stopped by SIGHUP, SIGINT or SIGTERM.
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
    (Path(__file__).parent / "cli.md").write_text(text(), encoding="utf-8")
