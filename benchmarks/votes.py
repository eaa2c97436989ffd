"""Do the intervals of `compare --votes` hold, and how much do forecasts narrow them?

    python benchmarks/votes.py [--data DIR] [--model surface | embedded]

Simulated: systems that a forecaster misjudges as a whole, votes on 50, 100 and 200 of 1,000 pairs, drawn uniformly and with
unequal probabilities, and streams that are looked at after every vote. Real: every pair of systems in the training files with
at least 60 votes; all votes but 50 are hidden, 200 times: a uniform sample and one drawn as `label` draws it. The weights of `embedded`
are fitted again for each file, without it and without its prompts. Writes Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import prefcast
from prefcast import Pair
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.selection import davidson_link
from prefcast.forecasts.forecaster import Forecaster
from prefcast.measuring.sampling import draw
from prefcast.measuring.voted import voted
from prefcast.outcomes.models import Davidson
from prefcast.outcomes.statistics.sampled import anytime
from prefcast.pairs import Outcome
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.formats.side_votes import SideVote, SideVotes
from prefcast.pairs.pair import group_key
from prefcast.scorers.embedded import EmbeddedScorer
from prefcast.scorers.embedded.encoder import ENCODER
from prefcast.scorers.embedded.texts import TOKENIZER, PairTokenizer
from prefcast.scorers.store import EvidenceStore
from prefcast.scorers.surface import feature_arrays
from prefcast.training.data import read_labelled
from prefcast.training.fit import Rows, evidence, fit
from prefcast.training.vectors import read_vectors

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


def drawn(ids: list[str], forecasts: Floats, n: int, seed: int, sample: str) -> tuple[NDArray[np.int64], Floats]:
    """The rows with votes, and the inclusion probability of every row. `planned` is as `label` draws, `skewed` far from any plan."""
    if sample != "skewed":
        found = draw(ids, forecasts, n, seed=seed, uniform=sample == "uniform")
        return found.places, found.inclusion
    size = 0.3 + np.abs(forecasts[:, 1] - forecasts[:, 0])
    inclusion = np.minimum(1, n * size / size.sum())
    return np.flatnonzero(np.random.default_rng(seed).random(ROWS) < inclusion), inclusion


def simulated(repeats: int) -> Iterator[str]:
    """A row for each setting: how often the interval holds the expected rate, and its width beside votes alone."""
    ids = [str(row) for row in range(ROWS)]
    groups = np.arange(ROWS, dtype=np.uint64)
    for bias, shift in ((0.0, 0.1), (1.5, 0.1), (-1.5, 0.6)):
        for sample in ("uniform", "planned", "skewed"):
            for n in (50, 100, 200):
                rng = np.random.default_rng(n)
                held, widths = 0, []
                for repeat in range(repeats):
                    votes, forecasts, truth = population(rng, bias, shift)
                    rows, inclusion = drawn(ids, forecasts, n, repeat, sample)
                    given = [SideVote(ids[row], Outcome(int(votes[row])), None, float(inclusion[row])) for row in rows]
                    found = voted(ids, forecasts, groups, SideVotes("votes", given))
                    held += found.net.low <= truth <= found.net.high
                    widths.append([each.high - each.low for each in (found.net, found.alone)])
                width, alone = np.mean(widths, axis=0)
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
    for name, forecaster in forecasters(data, model):
        sides: dict[tuple[str, str], list[Pair]] = {}
        for pair in open_pairs(data / "train" / f"{name}.csv.gz"):
            if isinstance(pair, Pair) and pair.outcome is not None and pair.model_a and pair.model_b:
                turned = pair if pair.model_a < pair.model_b else pair.swapped()
                sides.setdefault((str(turned.model_a), str(turned.model_b)), []).append(turned)
        for (left, right), pairs in sides.items():
            if len(pairs) >= 60:
                yield hidden(name, f"{right} against {left}", pairs, forecaster.forecast(pairs).probabilities)


def forecasters(data: Path, model: str) -> Iterator[tuple[str, Forecaster]]:
    """A forecaster for each file. The weights of `embedded` are fitted without the file and its prompts, and the link to dev votes
    that the weights do not know."""
    if model != "embedded":
        forecaster = prefcast.load_forecaster(model)
        yield from ((name, forecaster) for name in FILES)
        return
    old = prefcast.load_forecaster(model).scorer
    if not isinstance(old, EmbeddedScorer):
        raise SystemExit(f"{model} is no embedded forecaster")
    labelled = read_labelled([data])
    used = np.flatnonzero((labelled.weight > 0) | labelled.calibration)
    pairs = [labelled.pairs[row] for row in used.tolist()]
    digest = hashlib.sha256()
    for file in (ENCODER, TOKENIZER):
        digest.update((old.folder / file).read_bytes())
    texts = PairTokenizer(old.folder / TOKENIZER, old.reader.limit).read(pairs)
    with EvidenceStore() as store:
        vectors = read_vectors(texts, old.encoder, digest.hexdigest(), store)
    source, link, group = labelled.source[used], labelled.calibration[used], labelled.group[used]
    target, weight = labelled.target[used], labelled.weight[used]
    rows = Rows(
        *feature_arrays(pairs), vectors, target, weight, source, labelled.tieless[source], labelled.scaled[source]
    )
    for name in FILES:
        mine = source == labelled.names.index(name)
        model_of = fit(rows.where((weight > 0) & ~np.isin(group, group[mine])))
        found = LabelledEvidence(1)
        margin, tie = evidence(model_of, rows.where(link))
        found.add(margin[:, None], tie[:, None], target[link], group[link].astype(np.uint64))
        scale, level, tie_weight = map(float, davidson_link(found).theta)
        scorer = EmbeddedScorer(model_of, old.encoder, old.folder, old.reader.limit)
        yield name, Forecaster(scorer, Davidson(scale, level, tie_weight))


def hidden(name: str, title: str, pairs: list[Pair], probabilities: Floats) -> str:
    outcomes = [pair.outcome for pair in pairs]
    y = np.array([(each is Outcome.B) - float(each is Outcome.A) for each in outcomes])
    f = probabilities[:, 1] - probabilities[:, 0]
    groups = np.array([group_key(pair.prompt[0]) for pair in pairs], dtype=np.uint64)
    ids = [str(row) for row in range(len(pairs))]
    held, widths = np.zeros(2), np.zeros((2, 2, 200))
    for kind in range(2):
        for seed in range(200):
            sample = draw(ids, probabilities, 50, seed=seed, uniform=kind == 0)
            given = [
                SideVote(ids[row], Outcome(int(outcomes[row] or 0)), None, float(sample.inclusion[row]))
                for row in sample.places
            ]
            found = voted(ids, probabilities, groups, SideVotes("votes", given))
            held[kind] += found.net.low <= y.mean() <= found.net.high
            widths[kind, :, seed] = [each.high - each.low for each in (found.net, found.alone)]
    ratios = widths[0, 0] / widths[0, 1]
    rho = float(np.corrcoef(y, f)[0, 1])
    allowed = 1 - np.sqrt(1 - max(rho, 0.0) ** 2)
    planned = 1 - widths[1, 0].mean() / widths[0, 0].mean()
    return (
        f"| {name} | {title} | {len(pairs)} | {y.mean():+.2f} | {held[0] / 200:.1%} | {rho:.2f} | {1 - np.mean(ratios):.1%} | "
        f"{allowed:.1%} | {max(ratios):.3f} | {held[1] / 200:.1%} | {planned:.1%} |"
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
            "\n| file | systems | pairs | win minus loss | interval holds | correlation | narrower by | possible | widest | "
            "planned: holds | planned: narrower by |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for line in real(asked.data, asked.model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
