"""Do the intervals of `compare --votes` hold, and how much do forecasts narrow them?

    python benchmarks/votes.py [--data DIR] [--model surface]

Simulated: systems that a forecaster misjudges as a whole, votes on 50, 100 and 200 of 1,000 pairs, drawn uniformly and with
unequal probabilities, and streams that are looked at after every vote. Real: every pair of systems in the training files with
at least 60 votes; all votes but 50 are hidden, 200 times. Writes Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import prefcast
from prefcast import Pair
from prefcast.measuring.voted import voted
from prefcast.outcomes.statistics.sampled import anytime
from prefcast.pairs import Outcome
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.formats.side_votes import SideVote, SideVotes
from prefcast.pairs.pair import group_key

Floats = NDArray[np.float64]
FILES = ("mtbench_human", "tulu_human_eval", "vicuna80_human", "arena33k_sample574", "arena33k_writing1277")
ROWS = 1000


def population(rng: np.random.Generator, bias: float, shift: float) -> tuple[NDArray[np.int64], Floats, float]:
    """Votes (n,) and forecasts (n, 3) of pairs, and the expected win minus loss of RIGHT; `bias` moves every forecast."""
    quality = 2 * rng.normal(shift, 1, ROWS)
    seen = 0.6 * quality + 1.6 * rng.normal(0, 1, ROWS) + bias

    def three(strength: Floats) -> Floats:
        right = 0.7 / (1 + np.exp(-strength))
        return np.column_stack([0.7 - right, right, np.full(ROWS, 0.3)])

    p = three(quality)
    votes = (rng.random(ROWS)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    return votes, three(seen), float((p[:, 1] - p[:, 0]).mean())


def drawn(rng: np.random.Generator, n: int, forecasts: Floats, *, planned: bool) -> tuple[NDArray[np.int64], Floats]:
    """The rows with votes, and the inclusion probability of every row."""
    if not planned:
        return rng.choice(ROWS, n, replace=False), np.full(ROWS, n / ROWS)
    size = 0.3 + np.abs(forecasts[:, 1] - forecasts[:, 0])
    inclusion = np.minimum(1, n * size / size.sum())
    return np.flatnonzero(rng.random(ROWS) < inclusion), inclusion


def simulated(repeats: int) -> Iterator[str]:
    """A row for each setting: how often the interval holds the expected rate, and its width beside votes alone."""
    ids = [str(row) for row in range(ROWS)]
    groups = np.arange(ROWS, dtype=np.uint64)
    for bias, shift in ((0.0, 0.1), (1.5, 0.1), (-1.5, 0.6)):
        for planned in (False, True):
            for n in (50, 100, 200):
                rng = np.random.default_rng(n)
                held, widths = 0, []
                for _ in range(repeats):
                    votes, forecasts, truth = population(rng, bias, shift)
                    rows, inclusion = drawn(rng, n, forecasts, planned=planned)
                    given = [
                        SideVote(ids[row], Outcome(int(votes[row])), None, float(inclusion[row]) if planned else None)
                        for row in rows
                    ]
                    found = voted(ids, forecasts, groups, SideVotes("votes", given))
                    held += found.net.low <= truth <= found.net.high
                    widths.append([each.high - each.low for each in (found.net, found.alone)])
                width, alone = np.mean(widths, axis=0)
                sample = "unequal" if planned else "uniform"
                yield f"| {bias:+.1f} | {sample} | {n} | {held / repeats:.1%} | {width:.3f} | {alone:.3f} |"


def looked_at_always(repeats: int) -> Iterator[str]:
    for bias in (0.0, 1.5):
        rng = np.random.default_rng(7)
        held = 0
        for _ in range(repeats):
            votes, forecasts, _ = population(rng, bias, 0.1)
            y = (votes == 1).astype(float) - (votes == 0)
            f = forecasts[:, 1] - forecasts[:, 0]
            order = rng.permutation(ROWS)[:200]
            low, high = anytime(y[order], f[order], float(f.mean()), ROWS)
            held += bool(((low <= y.mean() + 1e-9) & (high >= y.mean() - 1e-9)).all())
        yield f"| {bias:+.1f} | {repeats} | {held / repeats:.1%} |"


def real(data: Path, model: str) -> Iterator[str]:
    """A row for each pair of systems."""
    forecaster = prefcast.load_forecaster(model)
    for name in FILES:
        sides: dict[tuple[str, str], list[Pair]] = {}
        for pair in open_pairs(data / "train" / f"{name}.csv.gz"):
            if isinstance(pair, Pair) and pair.outcome is not None and pair.model_a and pair.model_b:
                turned = pair if pair.model_a < pair.model_b else pair.swapped()
                sides.setdefault((str(turned.model_a), str(turned.model_b)), []).append(turned)
        for (left, right), pairs in sides.items():
            if len(pairs) >= 60:
                yield hidden(name, f"{right} against {left}", pairs, forecaster.forecast(pairs).probabilities)


def hidden(name: str, title: str, pairs: list[Pair], probabilities: Floats) -> str:
    outcomes = [pair.outcome for pair in pairs]
    y = np.array([(each is Outcome.B) - float(each is Outcome.A) for each in outcomes])
    f = probabilities[:, 1] - probabilities[:, 0]
    groups = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
    ids = [str(row) for row in range(len(pairs))]
    rng = np.random.default_rng(0)
    held, ratios = 0, []
    for _ in range(200):
        rows = rng.choice(len(pairs), 50, replace=False)
        given = [SideVote(ids[row], Outcome(int(outcomes[row] or 0))) for row in rows]
        found = voted(ids, probabilities, groups, SideVotes("votes", given))
        held += found.net.low <= y.mean() <= found.net.high
        ratios.append((found.net.high - found.net.low) / (found.alone.high - found.alone.low))
    rho = float(np.corrcoef(y, f)[0, 1])
    allowed = 1 - np.sqrt(1 - max(rho, 0.0) ** 2)
    return (
        f"| {name} | {title} | {len(pairs)} | {y.mean():+.2f} | {held / 200:.1%} | {rho:.2f} | "
        f"{1 - np.mean(ratios):.1%} | {allowed:.1%} | {max(ratios):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="surface")
    parser.add_argument("--repeats", type=int, default=500)
    asked = parser.parse_args()
    print("| error of the forecaster | sample | votes | interval holds | width | width of votes alone |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", *simulated(asked.repeats), sep="\n")
    print("\n| error of the forecaster | streams | hold at every vote |\n| --- | ---: | ---: |")
    print(*looked_at_always(2 * asked.repeats), sep="\n")
    if asked.data is not None:
        print(
            "\n| file | systems | pairs | win minus loss | interval holds | correlation | narrower by | possible | widest |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for line in real(asked.data, asked.model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
