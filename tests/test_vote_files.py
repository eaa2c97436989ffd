"""The file into which a voting page writes: it has every vote that was acknowledged, whatever happens, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefcast.errors import FileError, UsageError
from prefcast.pairs.formats import vote_files
from prefcast.pairs.formats.ballots import COLUMNS as BALLOT
from prefcast.pairs.formats.side_votes import read_side_votes
from prefcast.pairs.formats.vote_files import Key, Vote, VoteFile

INCLUSION = {"q1": 0.25, "q2": 0.5, "=q3": 1.0}
HEAD = "id,winner,rater,inclusion_probability,voted_at\n"
KEYS = st.tuples(st.sampled_from(list(INCLUSION)), st.sampled_from(["Ann", "Zoë", 'O\'Neil, "Bo"']))
WINNERS = st.sampled_from(["left", "right", "tie", ""])


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def dying(after: int) -> Iterator[Any]:
    """What `atomic_file` leaves if the process is killed after so many bytes: a part, and the file as it was."""

    @contextmanager
    def part(path: Path) -> Iterator[BinaryIO]:
        with path.with_name(".prefcast-left.part").open("w+b") as file:

            class Writer:
                def write(self, data: bytes) -> None:
                    file.write(data[:after])
                    raise Killed

                def fileno(self) -> int:
                    return file.fileno()

            yield Writer()  # type: ignore[misc]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vote_files, "atomic_file", part)
        yield


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, WINNERS),
        st.tuples(st.just("take back"), KEYS, st.none()),
        st.tuples(st.just("killed"), KEYS, st.integers(0, 300)),
        st.tuples(st.just("stopped"), KEYS, st.none()),
    ),
    max_size=12,
)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@given(steps=STEPS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_file_has_what_was_acknowledged(tmp_path: Path, ending: str, steps: list[Any]) -> None:
    path = tmp_path / f"votes{ending}"
    path.unlink(missing_ok=True)
    kept: dict[Key, Vote] = {}
    file = VoteFile(path)
    file.begin(INCLUSION)
    for number, (step, key, more) in enumerate(steps):
        vote = Vote(more, f"{number:03}") if step == "put" else None
        if step in ("put", "take back"):
            # The same once more, as a client does that saw no answer.
            file.put(key, vote)
            file.put(key, vote)
            kept.pop(key, None)
            kept |= {} if vote is None else {key: vote}
        else:
            if step == "killed":
                with dying(more), suppress(Killed):
                    file.put(key, Vote("left", "lost"))
            file.close()
            file = VoteFile(path)
            file.begin(INCLUSION)
        assert file.votes == kept
        found = read_side_votes(path).votes if any(vote.winner for vote in kept.values()) else []
        # In the order of the draw, and for one pair in that of time.
        assert [(vote.id, vote.rater) for vote in found] == sorted(
            (key for key, vote in kept.items() if vote.winner),
            key=lambda key: (list(INCLUSION).index(key[0]), kept[key].at),
        )
        assert all(vote.inclusion == INCLUSION[vote.id] for vote in found)
    file.close()
    assert not list(tmp_path.glob(".prefcast-*")) or steps[-1][0] == "killed"


DRIVER = """
import json, os, signal, sys
from pathlib import Path
from prefcast.base import files
from prefcast.pairs.formats import vote_files

path = Path(sys.argv[1])
inclusion = {f"q{n}": 0.5 for n in range(3)}

def vote(step, said):
    '''Votes on three pairs, and is killed before the call of that number by which a vote gets onto the disk.'''
    left = step

    def counted(name, module):
        real = getattr(module, name)
        def call(*args, **more):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)
        setattr(module, name, call)

    file = vote_files.VoteFile(path)
    file.begin(inclusion)
    for name in ("open", "dup", "fsync", "fchmod", "link", "close"):
        counted(name, os)
    counted("replace", Path)
    for n in range(3):
        file.put((f"q{n}", "Ann"), vote_files.Vote("left", str(n)))
        os.write(said, b"+")

for step in range(1, 100):
    path.unlink(missing_ok=True)
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        vote(step, said)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(said)
    acknowledged = len(os.read(heard, 10))
    with vote_files.VoteFile(path) as file:
        file.begin(inclusion)
        found = [id for id, _ in file.votes]
    print(json.dumps([acknowledged, found, sorted(os.listdir(path.parent))]))
    if not status:
        break
"""


def test_a_process_that_is_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "votes.csv")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for acknowledged, found, names in rows:
        # The vote that was on its way may be there too, whole.
        assert found in (["q0", "q1", "q2"][:acknowledged], ["q0", "q1", "q2"][: acknowledged + 1])
        assert names == ["votes.csv"]
    assert rows[-1][0] == 3
    assert len(rows) > 12
    assert {acknowledged for acknowledged, _, _ in rows} == {0, 1, 2, 3}
    assert any(len(found) == acknowledged + 1 for acknowledged, found, _ in rows)


def test_one_page_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    with VoteFile(path) as file:
        file.begin(INCLUSION)
        for at in range(3):
            with pytest.raises(UsageError, match="another voting page writes its votes there"):
                VoteFile(path)
            file.put(("q1", f"r{at}"), Vote("tie", str(at)))
    folder = Path("/proc/self/fd")
    before = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    for _ in range(3):
        with VoteFile(path) as file:
            file.begin(INCLUSION)
            file.put(("q2", "Ann"), None)
            assert len(file.votes) == 3
    assert not before or sum(1 for _ in folder.iterdir()) == before


@pytest.mark.parametrize("how", ["in place", "another file", "removed"])
def test_what_another_program_wrote_is_not_written_over(tmp_path: Path, how: str) -> None:
    path = tmp_path / "votes.csv"
    with VoteFile(path) as file:
        file.begin(INCLUSION)
        file.put(("q1", "Ann"), Vote("left", "1"))
        edited = path.read_text().replace("left", "right")
        if how == "another file":
            (tmp_path / "new").write_text(edited)
            (tmp_path / "new").rename(path)
        elif how == "in place":
            path.write_text(edited)
        else:
            path.unlink()
        with pytest.raises(FileError, match="another program changed it"):
            file.put(("q2", "Ann"), Vote("left", "2"))
        assert file.votes == {("q1", "Ann"): Vote("left", "1")}
    assert path.exists() == (how != "removed")
    assert how == "removed" or path.read_text() == edited


def test_a_vote_that_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "votes.csv"
    with VoteFile(path) as file:
        file.begin(INCLUSION)
        file.put(("q1", "Ann"), Vote("left", "1"))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises((UsageError, OSError)):
                file.put(("q2", "Ann"), Vote("left", "2"))
        assert path.read_bytes() == before
        assert list(file.votes) == [("q1", "Ann")]
        file.put(("q2", "Ann"), Vote("left", "2"))
        assert len(file.votes) == 2
        # The lock is still held.
        with pytest.raises(UsageError, match="another voting page"):
            VoteFile(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ballots.csv", ",".join(BALLOT) + "\n1,a,b,c,1,,left,0.5\n", "column 'voted_at' is missing"),
        ("mine.csv", "id,winner\n1,left\n", "exists and is not a file of votes that a voting page wrote"),
        (
            "more.csv",
            HEAD.replace("\n", ",note\n") + "q1,left,Ann,0.5,1,hello\n",
            "has a column that is not of such a file",
        ),
        ("side.csv", HEAD + "q1,middle,Ann,0.5,1\n", "row 1: winner is 'middle'; expected left, right, tie"),
        ("rater.csv", HEAD + "q1,left,,0.5,1\n", "row 1: has no rater"),
        ("twice.csv", HEAD + "q1,left,Ann,0.5,1\nq1,right,Ann,0.5,2\n", "row 2: is a second vote of one rater"),
        ("torn.jsonl", '{"id": "q1", "winner": "le', "exists and is not a file of votes"),
        ("votes.parquet", "x", "is written as .csv or .jsonl"),
        ("gone.csv", HEAD + "q9,left,Ann,0.5,1\n", "votes on 1 pairs that this draw does not have (the first: 'q9')"),
    ],
)
def test_another_file_is_refused_and_stays(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError) as caught, VoteFile(path) as file:
        file.begin(INCLUSION)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == content
    # It is not locked any more.
    with suppress(UsageError):
        VoteFile(path).close()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").mkdir()
    with pytest.raises(UsageError, match=r"votes\.csv"), VoteFile(tmp_path / "votes.csv") as file:
        file.begin(INCLUSION)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@given(
    ids=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_stay_as_they_are(tmp_path: Path, ending: str, ids: list[str]) -> None:
    path = tmp_path / f"ids{ending}"
    path.unlink(missing_ok=True)
    inclusion = dict.fromkeys(ids, 0.5)
    with VoteFile(path) as file:
        file.begin(inclusion)
        for id in ids:
            file.put((id, "Ann"), Vote("left", "1"))
    with VoteFile(path) as file:
        assert {id for id, _ in file.votes} == set(ids)
    assert {vote.id for vote in read_side_votes(path).votes} == set(ids)
