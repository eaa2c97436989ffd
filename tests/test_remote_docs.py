"""docs/remote.md: the commands of each protocol run from an address to a calibrated forecast, against the fakes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from checkpoints import EXAMPLES, save_deberta, save_decoder
from conftest import ROOT, Run
from remote_models import FAKES, served

PAGE = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n((?:prefcast .*\n)+)```", PAGE)


def test_each_protocol_has_five_commands() -> None:
    assert [len(block.splitlines()) for block in BLOCKS] == [5] * len(FAKES)


@pytest.mark.parametrize(
    ("kind", "block"),
    [pytest.param(*each, marks=[pytest.mark.long] * (each[0] == "tei")) for each in zip(FAKES, BLOCKS, strict=True)],
)
def test_the_commands_run(prefcast_here: Run, tmp_path: Path, kind: str, block: str) -> None:
    name = re.findall(r"--tokenizer \./(\S+)", block)[0]
    model = save_deberta(tmp_path / name) if kind == "tei" else save_decoder(tmp_path / name)
    for file in ("labelled.csv", "test.csv"):
        (tmp_path / file).write_bytes(EXAMPLES.read_bytes())
    with served(kind, model) as server:
        done: Any = None
        for line in block.splitlines():
            command = shlex.split(re.sub(r"http://127\.0\.0\.1:\d+", server.url, line))
            assert command[0] == "prefcast"
            done = prefcast_here(*command[1:])
            assert done.returncode == 0, (line, done.stderr)
        assert "log loss" in done.stdout
        assert server.ignored == []
    assert (tmp_path / "forecasts.csv").is_file()


def test_the_page_names_every_option_of_servers() -> None:
    from prefcast.scorers.options import which
    from prefcast.scorers.remote import Options

    for name, about in which(Options).items():
        if about.help:
            assert f"--{name.replace('_', '-')}" in PAGE, name
