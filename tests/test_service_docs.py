"""What docs/service.md says is true: its curl lines are answered, its code runs, its tables are the program's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields

import pytest

from conftest import ROOT, said_by
from prefcast import Pair, load_forecaster
from prefcast.service.limits import Limits
from prefcast.service.openapi import EXAMPLES
from prefcast.service.reading import _MOST_FIELDS, _MOST_VALUES
from prefcast.service.refusals import STATUS
from servers import Server, serving

PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
# A command goes on over lines that end in a backslash, or inside quotes.
CURLS = [
    command.strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in re.split(r"^(?=curl )", block, flags=re.MULTILINE)
    if command.startswith("curl ")
]
# The rows of the table of limits, and what stands in each.


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--model", "surface") as found:
        yield found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
@pytest.mark.parametrize("command", [*CURLS, *EXAMPLES.values()])
def test_the_curl_lines_are_answered(server: Server, command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("http://127.0.0.1:8000", server.url)],
        capture_output=True,
        text=True,
        check=True,
    )
    if "/metrics" in command:
        assert "prefcast_requests_total" in done.stdout
        return
    answer = json.loads(done.stdout)
    if any(path in command for path in ("/v1/score", "/score ", "/get_reward", "/classify")):
        assert answer["error"]["type"] == "not_pointwise"
    elif '"pairs"' in command:
        first, second = answer["forecasts"]
        assert first["error"] is None
        assert second["error"]["field"] == "pairs.1.response_b"
    else:
        assert "error" not in answer or answer["error"] is None
    if "both_orders" in command:
        assert answer["id"] == "mine"
        assert answer["swapped"]
        assert answer["influences"]


def test_there_are_curl_lines() -> None:
    assert len(CURLS) >= 8


def test_the_python_code_runs(server: Server) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = said_by(code.replace("http://127.0.0.1:8000", server.url))
    assert printed.splitlines()[-1] == "surface True"


def test_the_answer_that_is_shown_has_the_fields_of_the_answer(server: Server) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    answer = server.forecast(prompt="Why is the sky blue?", response_a="Rayleigh scattering.", response_b="No idea.")
    assert re.findall(r'"(\w+)":', re.sub(r"\{[^{}]*\}", "{}", shown[1:])) == list(answer)
    # The page shows the default forecaster's answer, in two decimals.
    pair = Pair.of("Why is the sky blue?", "Rayleigh scattering.", "No idea.")
    forecast = load_forecaster().forecast([pair])[0]
    assert forecast.interval is not None
    a, b, tie = forecast.probabilities
    assert forecast.unlike is not None
    expected = [a, b, tie, 0.95, *forecast.interval[0], forecast.margin, forecast.tie, forecast.unlike]
    assert re.findall(r"-?\d+\.\d+", shown) == [f"{number:.2f}" for number in expected]


def test_every_refusal_is_in_its_table() -> None:
    table = PAGE.partition("## Refusals")[2].partition("## Limits")[0]
    said = {}
    for statuses, kinds in re.findall(r"^\| ([\d, ]+) \| (`.*?) \|", table, re.MULTILINE):
        numbers, names = statuses.split(", "), re.findall(r"`(\w+)`", kinds)
        said |= dict(zip(names, map(int, numbers if len(numbers) > 1 else numbers * len(names)), strict=True))
    assert said == {kind: status for kind, status in STATUS.items() if kind != "gone"}


def test_every_limit_is_in_its_table() -> None:
    table = PAGE.partition("## Limits")[2].partition("## Safety")[0]
    found = [
        int(number.replace(",", ""))
        for row in table.splitlines()
        if re.match(r"\| [a-z]", row)
        for number in re.findall(r"\d+(?:,\d{3})*", row.split("|")[2])
    ]
    names = ["body_bytes", "buffered_bytes", "text_characters", "turns", "pairs", "responses", "seconds", "queue"]
    names += ["connections", "header_seconds", "body_seconds", "answer_seconds", "idle_seconds"]
    limits = [getattr(Limits(), name) for name in names]
    # Two that no server changes stand after the bytes.
    assert found == [*limits[:2], _MOST_VALUES, _MOST_FIELDS, *limits[2:]]
    assert {*names, "batch", "company_seconds"} == {each.name for each in fields(Limits)}
