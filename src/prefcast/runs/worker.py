"""A process with one scorer: pairs come on standard input, their evidence goes out on standard output.

Questions and answers have the form of `base/frames.py`; nothing is pickled.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

from prefcast.base.frames import receive, send
from prefcast.base.processes import answering
from prefcast.errors import ModelError, PrefcastError, UsageError, printable
from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import Evidence, Problem, Scorer
from prefcast.scorers.registry import scorer_class

__all__ = ["main", "pairs_of", "plain_pair", "problems_of"]

# So much of an unforeseen exception's message is shown.
_MOST = 200


def main() -> None:
    """Answer until standard input ends. `sys.argv[1]` is the scorer's `spec` with the `threads` to compute on."""
    answers = answering()
    try:
        scorer = _scorer(json.loads(sys.argv[1]))
        send(answers, {"ready": True})
        while True:
            header, _ = receive(sys.stdin.buffer)
            _answer(answers, scorer, header)
    except (EOFError, BrokenPipeError):
        return
    except PrefcastError as error:
        send(answers, {"refused": str(error)})


def _scorer(spec: dict[str, Any]) -> Scorer:
    """The scorer, loaded: loading takes no time of the first batch, and a load that fails is no pair's fault."""
    try:
        scorer = scorer_class(spec["name"]).from_spec(spec)
        if spec.get("threads") is not None:
            scorer.use_threads(spec["threads"])
        scorer.prepare()
    except PrefcastError:
        raise
    except Exception as error:  # a file may be damaged in any way
        said = printable(str(error))[:_MOST]
        raise ModelError(
            f"the model {spec['name']} cannot be loaded in a worker process: {type(error).__name__}: {said}"
        ) from error
    return scorer


def _answer(answers: IO[bytes], scorer: Scorer, asked: dict[str, Any]) -> None:
    if "conversations" in asked:
        try:
            send(answers, {}, [scorer.score(asked["conversations"])])
        except UsageError as error:
            send(answers, {"usage": str(error)})
        return
    found = scorer.evidence(pairs_of(asked["pairs"]))
    arrays = {"margin": found.margin, "tie": found.tie, **found.raw}
    send(answers, {"names": list(arrays), "problems": problems_of(found)}, list(arrays.values()))


def plain_pair(pair: Pair) -> list[Any]:
    """What a scorer reads of a pair, as `pairs_of` takes it."""
    return [pair.system, pair.reference, pair.tools, *(turn.texts for turn in pair.turns)]


def pairs_of(pairs: list[list[Any]]) -> list[Pair]:
    """Pairs from what `plain_pair` made of them: system message, reference answer, messages with tools, and the texts of each turn."""
    return [
        Pair(
            tuple(Turn(*turn) for turn in turns),
            system=system,
            reference=reference,
            tools=None if tools is None else (tools[0], tools[1]),
        )
        for system, reference, tools, *turns in pairs
    ]


def problems_of(found: Evidence) -> dict[int, list[Any]]:
    """The arguments of each `Problem`, by the pair's position."""
    problems = {
        place: problem if isinstance(problem, Problem) else Problem(problem)
        for place, problem in found.problems.items()
    }
    return {place: [str(each), each.kind, each.limit, each.about] for place, each in problems.items()}


if __name__ == "__main__":
    main()
