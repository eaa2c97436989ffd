"""What docs/judges.md says is true: its commands run against the fakes, its code runs, and its numbers are the program's."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import EXAMPLES, ROOT, Run, said_by
from prefcast import Pair
from prefcast.scorers.judge import APIS
from prefcast.scorers.judge.forms import form_of
from prefcast.scorers.judge.questions import read_rubric
from prefcast.scorers.options import which
from prefcast.scorers.remote import Options as ServerOptions
from prefcast.testing import FakeJudge, SimulatedJudge
from test_judge_forgeries import NAMES

PAGE = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "pip install" not in block]
# The addresses of the page, with the API and the model behind each.
SERVERS = {
    "https://api.openai.com/v1": ("openai", "gpt-4.1-mini"),
    "https://api.anthropic.com/v1": ("anthropic", "claude-haiku-4-5"),
    "https://generativelanguage.googleapis.com/v1beta": ("gemini", "gemini-2.0-flash"),
    "http://127.0.0.1:8000/v1": ("openai", "Qwen/Qwen2.5-7B-Instruct"),
}


def test_from_a_key_to_a_forecast_are_five_commands() -> None:
    assert len(BLOCKS[0].splitlines()) == 5


def test_the_commands_run(tmp_path: Path, prefcast_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("labelled.csv", "pairs.csv"):
        shutil.copy(EXAMPLES, tmp_path / name)
    for api in APIS:
        monkeypatch.setenv(form_of(api).key, "sk-1")
    judge = SimulatedJudge(lambda text: len(set(text)) / 20, position=0.3)
    with ExitStack() as stack:
        fakes = {
            address: stack.enter_context(FakeJudge(judge, api=api, model=model, key="sk-1"))
            for address, (api, model) in SERVERS.items()
        }
        for line in "".join(BLOCKS).splitlines():
            command = line
            for address, fake in fakes.items():
                command = command.replace(address, fake.url)
            words = shlex.split(command)
            if words[0] == "export":
                assert words[1].startswith("OPENAI_API_KEY=")
                continue
            done = prefcast_here(*words[1:])
            assert done.returncode == 0, (line, done.stderr)
        assert all(fake.answered for fake in fakes.values())
        for fake, (api, _) in zip(fakes.values(), SERVERS.values(), strict=True):
            assert set(fake.paid.values()) == {max(1, form_of(api).repeats)}
    assert (tmp_path / "forecasts.jsonl").is_file()
    assert (tmp_path / "jury" / "forecaster.json").is_file()


def test_the_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert said_by(code).startswith("http://127.0.0.1:")


def test_the_table_of_apis_is_the_programs() -> None:
    for api in APIS:
        form = form_of(api)
        (row,) = re.findall(rf"^\| `{api}`.*$", PAGE, re.MULTILINE)
        assert f"`{form.key}`" in row
        assert f"| {form.repeats}" in row
        # Servers and judges share the option.
        assert form.key in which(ServerOptions)["key_env"].help


def test_the_numbers_are_the_programs() -> None:
    question = read_rubric(None).ask(Pair.of("", "", ""), turned=False, sampled=False)
    (said,) = re.findall(r"about ([\d,]+) characters of each request", PAGE)
    assert abs(len(question.system) + len(question.user) - int(said.replace(",", ""))) < 100
    assert f"of {len(NAMES)} forgeries" in PAGE
