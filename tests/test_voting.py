"""`label --page`: the server of a voting page, its answers to hostile requests, and its faults."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import SURFACE, Run, kaggle_row, write_jsonl
from servers import Reply, Server, serving

HOSTILE = "<script>window.pwned=1</script> **bold** \x1b[31m \u202e"


def systems(folder: Path, rows: int = 60) -> tuple[Path, Path]:
    """The answers of two systems to the same prompts."""
    found = []
    for name in ("left", "right"):
        lines = [
            {"id": f"id-{row}", "prompt": f"Why {row}?", "response": f"{name} says {HOSTILE} {row}"}
            for row in range(rows)
        ]
        lines[7] |= {"prompt": ["one?", "two?"], "response": [f"{name} one", f"{name} two"]}
        found.append(write_jsonl(folder / f"{name}.jsonl", lines))
    return found[0], found[1]


def command(folder: Path, *options: str, votes: int = 20) -> tuple[str, ...]:
    left, right = systems(folder)
    return (
        "label",
        str(left),
        str(right),
        *SURFACE,
        "--votes",
        str(votes),
        "--page",
        "-o",
        str(folder / "votes.csv"),
        *options,
    )


def key_of(server: Server) -> str:
    found = re.search(r"/results#(\S+)", "".join(server.lines))
    assert found is not None, server.lines
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("voting")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(verb=command(folder)) as found:
        yield found.loaded()


def say(server: Server, rater: str, **more: Any) -> Reply:
    return server.ask("POST", "/v1/votes", {"rater": rater, **more})


def results(server: Server) -> Any:
    return server.ask("GET", "/v1/results", headers={"Results-Key": key_of(server)}).json


def test_a_vote_is_on_the_disk_before_the_answer(server: Server, folder: Path) -> None:
    before = say(server, "Ann").json
    assert before["left"] == 20
    after = say(server, "Ann", ballot=before["shown"]["ballot"], vote="2").json
    assert (after["voted"], after["left"], after["last"]) == (1, 19, before["shown"]["ballot"])
    line = (folder / "votes.csv").read_text().splitlines()[1]
    assert re.fullmatch(r"id-\d+,(left|right),Ann,0\.\d+,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line)
    assert after["shown"] != before["shown"]
    # The same again, as after an answer that was lost; and taken back twice.
    assert say(server, "Ann", ballot=before["shown"]["ballot"], vote="2").json == after
    for _ in range(2):
        assert say(server, "Ann", ballot=after["last"], vote="undo").json["voted"] == 0
    assert len((folder / "votes.csv").read_text().splitlines()) == 1


def test_raters_do_not_see_what_would_sway_them(server: Server) -> None:
    shown = say(server, "Eve").json
    assert set(shown) == {"rater", "voted", "skipped", "left", "shown", "last"}
    assert set(shown["shown"]) == {"ballot", "system", "turns"}
    assert "id-" not in json.dumps(shown)
    for path in ("/v1/results", "/v1/votes/file"):
        for key in (
            {},
            {"Results-Key": ""},
            {"Results-Key": "x" * 16},
            {"Results-Key": "\xe9"},
            {"Authorization": f"Bearer {key_of(server)}"},
        ):
            reply = server.ask("GET", path, headers=key)
            assert (reply.status, reply.error["type"]) == (403, "no_key")
            assert key_of(server) not in reply.body.decode()


@pytest.mark.parametrize(
    "rater",
    [
        "",
        "=cmd|' /C calc'!A0",
        "@SUM(1)",
        "+1",
        "-1",
        "a\x00b",
        "a\u202eb",
        "x" * 300,
        "\u200b",
        "\ud800",
        7,
        None,
        ["Ann"],
        {"a": 1},
    ],
)
def test_hostile_names(server: Server, folder: Path, rater: Any) -> None:
    before = (folder / "votes.csv").read_bytes()
    reply = server.ask("POST", "/v1/votes", {"rater": rater})
    assert reply.status == 422
    assert reply.error["field"] == "rater"
    assert (folder / "votes.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"vote": "left"}, "vote"),
        ({"vote": "1"}, "ballot"),
        ({"vote": "1", "ballot": "../../etc/passwd"}, "ballot"),
        ({"vote": "undo", "ballot": "0" * 24}, "ballot"),
        ({"vote": "1", "ballot": "0" * 2000}, "ballot"),
        ({"vote": 1, "ballot": "0"}, "vote"),
        ({"winner": "left"}, "winner"),
    ],
)
def test_hostile_votes(server: Server, folder: Path, more: Any, field: str) -> None:
    before = (folder / "votes.csv").read_bytes()
    reply = say(server, "Mallory", **more)
    assert (reply.status, reply.error["field"]) == (422, field)
    assert (folder / "votes.csv").read_bytes() == before


def test_other_requests_are_refused(server: Server) -> None:
    body = b'{"rater": "Mallory"}'
    for type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert server.ask("POST", "/v1/votes", body, {"Content-Type": type}).status == 415
    assert server.ask("POST", "/v1/votes", body, {"Host": "attacker.example"}).error["type"] == "wrong_host"
    assert server.ask("POST", "/v1/votes", b"{" + b" " * 20_000 + b"}").error["type"] == "too_large"
    assert server.ask("POST", "/v1/votes", b"[1]").status == 422
    assert server.ask("POST", "/v1/votes", b"{").error["type"] == "bad_json"
    assert server.ask("GET", "/v1/votes").status == 405
    for path in ("/v1/forecast", "/v1/votes/../votes/file", "/static/../votes.csv", "/votes.csv", "/docs"):
        assert server.ask("GET", path).status in (404, 405), path
    page = server.ask("GET", "/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert b"id-" not in page.body
    assert server.ask("GET", "/results").status == 200


def test_the_results(server: Server, folder: Path) -> None:
    found = results(server)
    assert found["names"] == ["left.jsonl", "right.jsonl"]
    assert (found["pairs"], found["why"], found["said"]) == (20, "waiting", None)
    file = server.ask("GET", "/v1/votes/file", headers={"Results-Key": key_of(server)})
    assert file.body == (folder / "votes.csv").read_bytes()
    assert "Mallory" not in json.dumps(results(server))


def test_from_the_first_vote_to_the_decision(tmp_path: Path, prefcast_here: Run) -> None:
    options = ("--uniform", "--overlap", "0.3")
    with serving(verb=command(tmp_path, *options)) as server:
        server.loaded()
        for rater in ("Ann", "Bob"):
            standing = say(server, rater).json
            for _ in range(9):
                shown = standing["shown"]
                said = "1" if shown["turns"][0][1].startswith("right") else "2"
                standing = say(server, rater, ballot=shown["ballot"], vote=said).json
        midway = results(server)
        assert (midway["said"]["always"], midway["said"]["win"]) == (True, None)
        assert midway["raters"] == {"Ann": [9, 0], "Bob": [9, 0]}
    assert any("the same command goes on" in line for line in server.lines)
    with serving(verb=command(tmp_path, *options)) as server:
        assert any("which has 18 already" in line for line in server.lines)
        server.loaded()
        assert results(server) == midway
        for rater in ("ann", "Bob"):
            standing = say(server, rater).json
            while (shown := standing["shown"]) is not None:
                said = "1" if shown["turns"][0][1].startswith("right") else "2"
                standing = say(server, rater, ballot=shown["ballot"], vote=said).json
        found = results(server)
    assert (found["voted"], found["votes"], found["alike"]["couples"], found["alike"]["same"]) == (20, 26, 6, 6)
    assert found["said"]["verdict"] == "right"
    left, right = tmp_path / "left.jsonl", tmp_path / "right.jsonl"
    done = prefcast_here(
        "compare", left, right, *SURFACE, "--votes", tmp_path / "votes.csv", "--json", tmp_path / "found.json"
    )
    assert "26 votes by 2 raters on 20 of 60 pairs" in done.stdout
    assert "people prefer right.jsonl" in done.stdout
    said = json.loads((tmp_path / "found.json").read_text())
    assert found["said"]["net"] == said["net_rate"]
    assert all(found["said"][name] == said[name] for name in ("win", "loss", "tie"))
    # More pairs: the votes stay.
    with serving(verb=command(tmp_path, *options, votes=30)) as server:
        server.loaded()
        assert say(server, "Ann").json["left"] == 10


def test_a_token_is_wanted_for_votes_and_results(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    with serving(verb=command(tmp_path, "--token-file", str(tmp_path / "token"))) as server:
        server.loaded()
        key = {"Results-Key": key_of(server)}
        assert say(server, "Ann").status == 401
        assert server.ask("GET", "/v1/results", headers=key).status == 401
        assert server.ask("GET", "/").status == 200
        server.token = (tmp_path / "token").read_text().strip()
        assert say(server, "Ann").status == 200
        assert server.ask("GET", "/v1/results").error["type"] == "no_key"
        assert server.ask("GET", "/v1/results", headers=key).status == 200


def test_another_program_ends_the_page_and_keeps_its_words(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    with serving(verb=command(tmp_path), ending=2) as server:
        shown = say(server.loaded(), "Ann").json["shown"]
        edited = path.read_text() + "id-1,left,Zed,0.5,2026\n"
        path.write_text(edited)
        reply = say(server, "Ann", ballot=shown["ballot"], vote="1")
        assert (reply.status, reply.error["type"]) == (503, "not_kept")
        assert str(tmp_path) not in reply.body.decode()
        server.process.wait(60)
    assert any("another program changed it while a page wrote votes there" in line for line in server.lines)
    assert path.read_text() == edited


def test_what_is_wrong_is_one_line(tmp_path: Path, prefcast_here: Run) -> None:
    left, right = systems(tmp_path)
    (tmp_path / "mine.csv").write_text("id,winner\n1,left\n")
    with serving(verb=command(tmp_path)) as server:
        server.loaded()
        for options, said in (
            (("--page", "-o", "votes.csv", "--port", "0"), "votes.csv: another voting page writes its votes there"),
            (("--page", "-o", "mine.csv", "--port", "0"), "mine.csv: exists and is not a file of votes"),
            (("--page", "-o", "x.parquet"), "is written as .csv or .jsonl"),
            (("--page", "-o", "x.csv", "--port", str(server.port)), "cannot be bound: Address already in use"),
            (("--page", "-o", "x.csv", "--host", "::"), "other machines could reach this address"),
            (("--page", "-o", left.name), "left.jsonl: is the input"),
            (("-o", "votes.csv"), "votes.csv: exists and is not a file of pairs to vote on"),
        ):
            done = prefcast_here("label", left, right, *SURFACE, *options)
            assert done.returncode == 2
            assert said in done.stderr, done.stderr
            assert "Traceback" not in done.stderr
            assert not (tmp_path / "x.csv").exists()


def test_a_file_of_pairs_can_be_voted_on(tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [kaggle_row(row, (f"Why {row}?",)) for row in range(8)])
    with serving(
        verb=("label", str(pairs), *SURFACE, "--votes", "5", "--page", "-o", str(tmp_path / "v.jsonl"))
    ) as server:
        shown = say(server.loaded(), "Ann").json["shown"]
        assert say(server, "Ann", ballot=shown["ballot"], vote="tie").json["voted"] == 1
        assert results(server)["names"] == ["A", "B"]
    (line,) = (tmp_path / "v.jsonl").read_text().splitlines()
    assert json.loads(line)["winner"] == "tie"
