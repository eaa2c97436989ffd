"""Does a fit do harm? Fits to few labels beside the forecaster as shipped, and `--target` on real data: make bench-as-shipped DATA=DIR

Prints one table for each part: `votes` and `sources` are fits to few labels, `targets` are real labels with real targets, and
`shares` are targets whose share of ties alone differs. With --cache DIR the evidence of a file is kept there.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError
from prefcast.fitting.evidence import LabelledEvidence
from prefcast.fitting.gathered import Gathered
from prefcast.fitting.prior_shift import SIZE, shift, target_of, tie_shift
from prefcast.fitting.selection import Fit, davidson_link, fit_link
from prefcast.fitting.shipped import Shipped
from prefcast.forecasts.forecaster import load_forecaster
from prefcast.outcomes.models import FITTED_MODELS, Link
from prefcast.outcomes.statistics.mixture import mixture_test
from prefcast.pairs import Outcome
from prefcast.pairs.formats import open_pairs

Floats = NDArray[np.float64]
Rows = NDArray[np.float64]

DRAWS = 20
KNOWN = ("dev/arena_kaggle_random500.csv", "dev/arena_kaggle_batch99.csv")
UNKNOWN = "dev/arena_kaggle_random472.csv"
ARENA = ("train/arena33k_sample574.csv.gz", "train/arena33k_writing1277.csv.gz")
MTBENCH, TULU, PANDALM = (f"train/{name}.csv.gz" for name in ("mtbench_human", "tulu_human_eval", "pandalm_test"))
LLMFAO, LLAMA3 = "train/llmfao_crowd.csv.gz", "train/arena_llama3_70b.csv.gz"
AUTOJ, COHERE, HELPFUL = (
    f"train/{name}.csv.gz" for name in ("autoj_pairwise", "human_feedback_cohere", "hh_helpful_base_test")
)
SOURCES = {
    "arena33k": ARENA,
    "autoj": (AUTOJ,),
    "mtbench": (MTBENCH,),
    "tulu": (TULU,),
    "pandalm": (PANDALM,),
    "cohere": (COHERE,),
    "hh helpful": (HELPFUL,),
}
# Labels and target; with 1,000 and with 700 labels.
COMBINATIONS = [
    *(("mtbench", (MTBENCH,), name, path) for name, path in (("llmfao", LLMFAO), ("llama3", LLAMA3))),
    *(("mtbench", (MTBENCH,), name, path) for name, path in (("tulu", TULU), ("pandalm", PANDALM))),
    *(("arena33k", ARENA, name, path) for name, path in (("tulu", TULU), ("llmfao", LLMFAO))),
]
LABELS = (1000, 700)
TARGET_ROWS = 1000
LEAST = 1e-300


class Data:
    """Rows of evidence by a built-in model, read once a file."""

    def __init__(self, folder: Path, model: str, cache: Path | None) -> None:
        self.folder, self.model, self.cache = folder, model, cache
        self.made = load_forecaster(model)
        self.shipped = self.shipped_with(None)
        self._empty: LabelledEvidence | None = None
        self._kept: dict[str, Rows] = {}

    def shipped_with(self, link: Link | None) -> Shipped:
        """The shipped outcome model, or a stand-in for it."""
        if link is None:
            return Shipped(self.made.outcome, self.made.link, self.made.prior_tie)  # type: ignore[arg-type]
        named = link.renamed({"margin:0": "margin", "tie:0": "tie"})
        return Shipped(FITTED_MODELS[link.kind](*link.theta.tolist()), named, self.made.prior_tie)

    def rows(self, *paths: str) -> Rows:
        return np.concatenate([self._of(path) for path in paths])

    def _of(self, path: str) -> Rows:
        if path not in self._kept:
            name = Path(path).name.split(".")[0]
            place = None if self.cache is None else self.cache / f"{self.model}-{name}.npz"
            if place is not None and place.exists():
                self._kept[path] = np.load(place)["rows"]
            else:
                gathered = Gathered(None, None)
                with open_pairs(self.folder / path) as pairs:
                    gathered.of_pairs(pairs, [(self.made.scorer, self.made.budget)], [self.model], None)
                assert gathered.evidence is not None  # noqa: S101
                self._kept[path] = np.concatenate(list(gathered.evidence.table.blocks()))
                if place is not None:
                    np.savez(place, rows=self._kept[path], names=np.array(gathered.evidence.table.names))
        return self._kept[path]

    def table(self, rows: Rows, shipped: Shipped | None) -> LabelledEvidence:
        """The rows as evidence for a fit. Without `shipped` the fit does not know the shipped outcome model."""
        gathered = Gathered(None, None)
        gathered.of_pairs(
            [], [(self.made.scorer, self.made.budget)], [self.model], None, None if shipped is None else {0: shipped}
        )
        assert gathered.evidence is not None  # noqa: S101
        gathered.evidence.table.append(rows)
        return gathered.evidence


def losses(link: Link, data: LabelledEvidence) -> Floats:
    """The log loss (n,) of each row."""
    rows = np.concatenate(list(data.table.blocks()))
    p = link.probabilities(*data.columns(link, rows))
    found: Floats = -(data.votes(rows) * np.log(np.maximum(p, LEAST))).sum(axis=1)
    return found


def split(keys: NDArray[np.uint64], share: float, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The places of the rows of a share of the first prompts, in random order, and of the other rows."""
    prompts = random.permutation(np.unique(keys))
    some = np.isin(keys, prompts[: round(share * len(prompts))])
    return random.permutation(np.flatnonzero(some)), random.permutation(np.flatnonzero(~some))


def one_fit(data: Data, train: Rows, test: Rows, shipped: Shipped) -> tuple[float, float, float, str]:
    """The log loss on `test` of as shipped, of the fit, and of the fit that does not know as shipped; what was chosen."""
    held = data.table(test, None)
    found = fit_link(data.table(train, shipped), repeats=0)
    blind = fit_link(data.table(train, None), repeats=0)
    before, after, other = (losses(link, held).mean() for link in (shipped.as_link(0), found.link, blind.link))
    return float(before), float(after), float(other), found.chosen


def show(name: str, labels: int, found: list[tuple[float, float, float, str]]) -> None:
    values = np.array([each[:3] for each in found])
    change, other = values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    error = change.std(ddof=1) / np.sqrt(len(change))
    chosen = ", ".join(f"{count} {kind}" for kind, count in Counter(each[3] for each in found).most_common())
    print(
        f"{name:12} {labels:4} labels: as shipped {values[:, 0].mean():.4f}, fit {change.mean():+.4f} ± {error:.4f} "
        f"(worst draw {change.max():+.4f}), without shrinking {other.mean():+.4f}; {chosen}",
        flush=True,
    )


def votes(data: Data) -> None:
    """Fits to few of the dev votes: as shipped never saw the 472; the stand-in never saw any vote but 300 of the 1,060."""
    unknown = data.rows(UNKNOWN)
    print(
        f"\n{data.model}: draws of the {len(unknown)} votes that neither weights nor link were fitted to, tested on the others"
    )
    for labels in (50, 100, 200):
        found = []
        for draw in range(DRAWS):
            order = np.random.default_rng([1, labels, draw]).permutation(len(unknown))
            found.append(one_fit(data, unknown[order[:labels]], unknown[order[labels:]], data.shipped))
        show("votes", labels, found)
    if data.model != "surface":
        return
    every = data.rows(*KNOWN, UNKNOWN)
    print(
        f"\n{data.model}: as shipped is a link fitted to 300 of all {len(every)} votes; draws of the others, tested on the rest"
    )
    for labels in (50, 100, 200, 500):
        found = []
        for draw in range(DRAWS):
            order = np.random.default_rng([2, labels, draw]).permutation(len(every))
            link = davidson_link(data.table(every[order[:300]], None))
            rest = every[order[300:]]
            found.append(one_fit(data, rest[:labels], rest[labels:], data.shipped_with(link)))
        show("votes", labels, found)


def sources(data: Data) -> None:
    """Fits to few labels of other sources, tested on rows of other first prompts of the same source."""
    print(f"\n{data.model}: draws of half of a source's first prompts, tested on the other half")
    for name, paths in SOURCES.items():
        rows = data.rows(*paths)
        keys = data.table(rows, None).keys(rows)
        for labels in (50, 500):
            found = []
            for draw in range(DRAWS // 2):
                train, test = split(keys, 0.5, np.random.default_rng([3, labels, draw]))
                found.append(one_fit(data, rows[train[:labels]], rows[test], data.shipped))
            show(name, labels, found)


def moved(found: Fit, here: LabelledEvidence, there: LabelledEvidence) -> tuple[float, float, str]:
    """The log loss on the target before and after the move, and what was said."""
    before = float(losses(found.link, there).mean())
    try:
        told = tie_shift(found, here, target_of(found.link, there)[0], 0)
    except UsageError as refusal:
        kinds = {"in more than": "refused: differs in more", "first prompts": "refused: too few first prompts"}
        said = next((kind for text, kind in kinds.items() if text in str(refusal)), "refused: share too uncertain")
        return before, before, said
    after = float(losses(found.link.shifted(shift(found, here, told.share)), there).mean())
    return before, after, f"{told.labelled:.3f} to {told.share:.3f} (p {told.p_value:.2f})"


def targets(data: Data) -> None:
    """Real labels with real targets."""
    print(f"\n{data.model}: log loss on {TARGET_ROWS} pairs of a target, before and after --target")
    for name, paths, other, path in COMBINATIONS:
        for labels in LABELS:
            random = np.random.default_rng([4, labels])
            here = data.table(random.permutation(data.rows(*paths))[:labels], data.shipped)
            there = data.table(random.permutation(data.rows(path))[:TARGET_ROWS], None)
            found = fit_link(here)
            before, after, said = moved(found, here, there)
            ties = there.votes(np.concatenate(list(there.table.blocks())))[:, Outcome.TIE].mean()
            print(
                f"{name:9} to {other:8} {labels:4} labels: ties {found.shares[Outcome.TIE]:.3f} and {ties:.3f}; "
                f"{before:.4f}, {after:.4f}; {said}",
                flush=True,
            )


def shares(data: Data, repeats: int) -> None:
    """Targets of the same source whose share of ties alone differs: how often they are refused, and what the move gains."""
    print(
        f"\n{data.model}: 400 labels and 400 unlabelled rows of the same source with another share of ties; {repeats} repeats"
    )
    for name, paths in (("arena33k", ARENA), ("autoj", (AUTOJ,)), ("tulu", (TULU,))):
        rows = data.rows(*paths)
        keys, tie = data.table(rows, None).keys(rows), data.table(rows, None).votes(rows)[:, Outcome.TIE] > 0
        for share in (0.1, float(tie.mean()), 0.5):
            gains, said = [], Counter[str]()
            for repeat in range(repeats):
                random = np.random.default_rng([5, repeat])
                train, test = split(keys, 0.5, random)
                weights = np.where(tie[test], share / tie[test].mean(), (1 - share) / (1 - tie[test].mean()))
                drawn = random.choice(test, 400, p=weights / weights.sum())
                # Rows may be drawn twice: each draw is a row of its own prompt.
                copies = rows[drawn].copy()
                copies[:, data.table(rows[:0], None).place["key"]] = np.arange(400, dtype=np.uint64).view(np.float64)
                here = data.table(rows[train[:400]], data.shipped)
                before, after, what = moved(fit_link(here, repeats=50), here, data.table(copies, None))
                said[what if what.startswith("refused") else "moved"] += 1
                gains.append(after - before)
            counts = ", ".join(f"{count} {what}" for what, count in said.most_common())
            print(
                f"{name:9} {tie.mean():.2f} to {share:.2f} ties: change {np.mean(gains):+.4f} ± "
                f"{np.std(gains, ddof=1) / np.sqrt(repeats):.4f}, worst {max(gains):+.4f}; {counts}",
                flush=True,
            )


def size(data: Data, repeats: int) -> None:
    """How often the test refuses a target that differs in its share of ties alone; groups are drawn whole."""
    print(
        f"\n{data.model}: refusals at {SIZE:.0%} of targets that differ in their share of ties alone; {repeats} repeats"
    )
    link = data.shipped.as_link(0)
    for name, paths in (("arena33k", ARENA), ("mtbench", (MTBENCH,))):
        rows = data.rows(*paths)
        there, votes = target_of(link, data.table(rows, None))
        second = np.column_stack([votes[:, [Outcome.A, Outcome.B]].sum(axis=1), votes[:, Outcome.TIE]])
        by_prompt = [np.flatnonzero(there.keys == key) for key in np.unique(there.keys)]
        for share in (0.1, 0.5):
            odds = np.where(second[:, 1] > 0, share / second[:, 1].mean(), (1 - share) / second[:, 0].mean())
            values = []
            for repeat in range(repeats):
                random = np.random.default_rng([6, repeat])
                here_rows, here_keys = _grouped(by_prompt, random, 300, np.ones(len(rows)))
                there_rows, there_keys = _grouped(by_prompt, random, 300, odds / odds.max())
                values.append(
                    mixture_test(
                        there.features[here_rows],
                        second[here_rows],
                        here_keys,
                        there.features[there_rows],
                        there_keys + np.uint64(len(rows)),
                        repeats=199,
                        seed=repeat,
                    ).p_value
                )
            refused = np.array(values) <= SIZE
            error = np.sqrt(refused.mean() * (1 - refused.mean()) / repeats)
            print(
                f"{name:9} {second[:, 1].mean():.2f} to {share:.2f} ties: refused {refused.mean():.3f} ± {error:.3f}",
                flush=True,
            )


def _grouped(
    by_prompt: list[NDArray[np.intp]], random: np.random.Generator, rows: int, kept: Floats
) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Rows of first prompts that are drawn with replacement, each row kept with its chance `kept` (n,), and the draws' numbers."""
    found, keys = list[NDArray[np.intp]](), list[int]()
    while len(keys) < rows:
        prompt = by_prompt[random.integers(len(by_prompt))]
        some = prompt[random.random(len(prompt)) < kept[prompt]]
        found.append(some)
        keys += [len(found)] * len(some)
    return np.concatenate(found), np.array(keys, dtype=np.uint64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="surface")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--repeats", type=int, default=40, help="of the parts shares and size")
    parser.add_argument("parts", nargs="*", default=["votes", "sources", "targets", "shares", "size"])
    given = parser.parse_args()
    data = Data(given.data, given.model, given.cache)
    for part in given.parts:
        if part in ("shares", "size"):
            {"shares": shares, "size": size}[part](data, given.repeats)
        else:
            {"votes": votes, "sources": sources, "targets": targets}[part](data)


if __name__ == "__main__":
    main()
