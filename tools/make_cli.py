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
    "bench",
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


CODE = """
import contextlib, io, sys
from prefcast.cli import main
for verb in sys.argv[1:]:
    sys.argv = ["prefcast", *verb.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    print(out.getvalue().strip(), end="\\0")
"""


def helps(*verbs: str) -> list[str]:
    """What `prefcast VERB --help` prints for each verb, 100 columns wide."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-c", CODE, *verbs]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return out.split("\0")[:-1]


def text() -> str:
    """The whole page."""
    whole, *each = helps("", *VERBS)
    parts = [HEAD, f"```text\n{whole}\n```\n"]
    parts += [f"## prefcast {verb}\n\n```text\n{said}\n```\n" for verb, said in zip(VERBS, each, strict=True)]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "cli.md").write_text(text(), encoding="utf-8")
