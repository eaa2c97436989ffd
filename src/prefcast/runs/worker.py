"""A process with one scorer: pairs come on standard input, their evidence goes out on standard output.

Questions and answers have the form of `base/frames.py`; nothing is pickled.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

from prefcast.base.frames import receive, send
from prefcast.base.processes import answering
from prefcast.errors import PrefcastError, UsageError
from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import Problem, Scorer
from prefcast.scorers.registry import scorer_class

__all__ = ["main"]


def main() -> None:
    """Serve until standard input ends. `sys.argv[1]` is the scorer's `spec`, and the `threads` to compute on."""
    answers = answering()
    try:
        spec = json.loads(sys.argv[1])
        scorer = scorer_class(spec["name"]).from_spec(spec)
        if spec.get("threads") is not None:
            scorer.use_threads(spec["threads"])
        send(answers, {"ready": True})
        while True:
            header, _ = receive(sys.stdin.buffer)
            _answer(answers, scorer, header)
    except (EOFError, BrokenPipeError):
        return
    except PrefcastError as error:
        send(answers, {"refused": str(error)})


def _answer(answers: IO[bytes], scorer: Scorer, asked: dict[str, Any]) -> None:
    if "conversations" in asked:
        try:
            send(answers, {}, [scorer.score(asked["conversations"])])
        except UsageError as error:
            send(answers, {"usage": str(error)})
        return
    found = scorer.evidence([Pair(tuple(Turn(*turn) for turn in turns)) for turns in asked["pairs"]])
    arrays = {"margin": found.margin, "tie": found.tie, **found.raw}
    problems = {
        place: [problem, problem.kind if isinstance(problem, Problem) else "pair"]
        for place, problem in found.problems.items()
    }
    send(answers, {"names": list(arrays), "problems": problems}, list(arrays.values()))


if __name__ == "__main__":
    main()
