"""A process with one scorer: reads pairs from standard input, answers with their evidence on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO

from prefcast.base.frames import receive, send
from prefcast.base.processes import answering
from prefcast.errors import PrefcastError, printable
from prefcast.pairs import Pair, Turn
from prefcast.scorers import scorer_class
from prefcast.scorers.base import Scorer

_MOST = 200


def main() -> None:
    """Serve until standard input ends."""
    answers = answering()
    try:
        said = json.loads(sys.argv[1])
        scorer = scorer_class(said["scorer"]).load(Path(said["folder"]))
        if said["threads"] is not None:
            scorer.use_threads(said["threads"])
        send(answers, {"ready": True})
        while True:
            header, _ = receive(sys.stdin.buffer)
            _answer(answers, scorer, [_pair(each) for each in header["pairs"]])
    except (EOFError, BrokenPipeError):
        return
    except PrefcastError as error:
        send(answers, {"refused": str(error)})


def _pair(said: list[list[str]]) -> Pair:
    return Pair(tuple(Turn(*turn) for turn in said))


def _answer(answers: IO[bytes], scorer: Scorer, pairs: list[Pair]) -> None:
    try:
        found = scorer.evidence(pairs)
    except PrefcastError:
        raise
    except MemoryError:
        send(answers, {"fault": "needs more memory than there is"})
        return
    except Exception as error:  # whatever a row does to a scorer, the other rows are to be scored
        send(answers, {"fault": f"cannot be scored: {type(error).__name__}: {printable(str(error))[:_MOST]}"})
        return
    arrays = {"margin": found.margin, "tie": found.tie, **found.raw}
    problems = {str(place): problem for place, problem in found.problems.items()}
    send(answers, {"names": list(arrays), "problems": problems}, list(arrays.values()))


if __name__ == "__main__":
    main()
