"""How well `prefcast check` finds faults that were planted in real pairs, and leaks that are known.

    python benchmarks/doctor.py near FILE...            edited copies of rows, among all rows
    python benchmarks/doctor.py flips [--votes V] [--model M] FILE...   votes exchanged at random
    python benchmarks/doctor.py bound PROBABILITIES     the same with the forecasts of another model: columns of a submission and label
    python benchmarks/doctor.py leaks FILE AGAINST      rows of FILE whose prompt AGAINST has too

The seeds are fixed: the same files give the same figures.
"""

from __future__ import annotations

import argparse
import random
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from prefcast.errors import RowError
from prefcast.forecasts.resolve import Choice, resolve_scorer
from prefcast.measuring.doctor import Doctor, Request
from prefcast.measuring.doctor.ballots import Ballots, read_votes
from prefcast.measuring.doctor.leaks import Leaks
from prefcast.measuring.doctor.repeats import NearRepeats, Repeats
from prefcast.measuring.doctor.unlikely import Unlikely, planted
from prefcast.pairs import Pair, Turn
from prefcast.pairs.formats import open_pairs
from prefcast.pairs.pair import pair_key

Edit = Callable[[str, random.Random], str]
SENTENCE = "I hope that this helps, and please ask if anything is unclear."
SHARES = (0.05, 0.1, 0.2, 0.3)


def cased(text: str, draw: random.Random) -> str:
    return text.upper() if draw.random() < 0.5 else text.lower()


def spaced(text: str, draw: random.Random) -> str:
    return "".join(each * draw.choice((1, 1, 2)) if each.isspace() else each for each in f" {text}\n")


def without_punctuation(text: str, draw: random.Random) -> str:
    return "".join(each for each in text if unicodedata.category(each)[0] != "P")


def one_word(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    if len(words) < 10:
        return text  # in a shorter answer the word may be the answer
    words[draw.randrange(len(words))] = draw.choice(("indeed", "other", "quickly", "这个"))
    return " ".join(words)


def longer(text: str, draw: random.Random) -> str:
    return f"{text} {SENTENCE}" if len(text) > 400 else text


def cut(text: str, draw: random.Random) -> str:
    return text[: int(len(text) * 0.9)] if len(text) > 100 else text


# What is done to the prompt and to the two answers: at most what leaves them the same for a person.
EDITS: dict[str, tuple[Edit | None, Edit | None]] = {
    "case": (cased, cased),
    "spaces": (spaced, spaced),
    "punctuation left out": (without_punctuation, without_punctuation),
    "one word replaced in each answer": (None, one_word),
    "a sentence added to each answer": (None, longer),
    "the last tenth of each answer cut": (None, cut),
    "A and B exchanged, spaces": (spaced, spaced),
}


def edited(pair: Pair, kind: str, row: int, draw: random.Random) -> Pair:
    """A copy of a pair that a person would call the same."""
    prompt, answer = EDITS[kind]
    turns = []
    for turn in pair.turns:
        texts = [
            edit(text, draw) if edit else text for edit, text in zip((prompt, answer, answer), turn.texts, strict=True)
        ]
        turns.append(Turn(*texts))
    copy = replace(pair, turns=tuple(turns), row=row, id=f"copy of {pair.id}")
    return copy.swapped() if "exchanged" in kind else copy


def read(files: Sequence[str]) -> list[Pair]:
    with open_pairs(list(files)) as file:
        return [pair for pair in file if not isinstance(pair, RowError)]


def near(files: Sequence[str], copies: int = 350) -> None:
    """Recall of edited copies, by kind, and the precision of what is named."""
    pairs, draw = read(files), random.Random(1)  # noqa: S311
    kinds = [list(EDITS)[number % len(EDITS)] for number in range(copies)]
    rows = max(pair.row for pair in pairs)
    chosen = draw.sample(pairs, copies)
    made = [
        edited(pair, kind, rows + 1 + number, draw)
        for number, (pair, kind) in enumerate(zip(chosen, kinds, strict=True))
    ]
    origin = {copy.row: pair.row for copy, pair in zip(made, chosen, strict=True)}
    start = time.process_time()
    exact, nearly = Repeats(), NearRepeats(0.8, len(pairs) + copies)
    for pair in [*pairs, *made]:
        key, turned = pair_key(pair)
        exact.see(pair, key, turned=turned)
        nearly.see(pair, key)
    list(exact.findings())
    seconds = time.process_time() - start
    exactly = {int(exact._row[i]): int(exact._row[exact._first[i]]) for i in np.flatnonzero(exact._again)}
    found = {int(row): int(other) for block in nearly._found.blocks() for row, other in block[:, :2].tolist()} | exactly
    # A copy of a row that was a near-duplicate already is found as a copy of the first of them.
    right = {row for row, other in found.items() if row in origin and other in (origin[row], found.get(origin[row]))}
    natural = {row: other for row, other in found.items() if row not in origin}
    print(f"{len(pairs)} pairs and {copies} edited copies; {seconds:.1f} s of processor time")
    for kind in EDITS:
        mine = [copy.row for copy, each in zip(made, kinds, strict=True) if each == kind]
        print(f"  {kind:<36}{sum(row in right for row in mine)} of {len(mine)}")
    print(f"  recall {len(right) / copies:.3f}; found {len(found)}, of them {len(right)} copies of the right row")
    print(
        f"  precision if no other row is a near-duplicate {len(right) / max(1, len(found)):.3f}; others: {len(natural)}"
    )
    by_row = {pair.row: pair for pair in pairs}
    for row, other in list(natural.items())[:12]:
        one, two = by_row[row], by_row[other]
        print(
            f"    {one.id} / {two.id}: {one.prompt[0][:50]!r} / {two.prompt[0][:50]!r}; A {one.response_a[0][:30]!r} / {two.response_a[0][:30]!r}"
        )


def flips(files: Sequence[str], votes: str | None, model: str) -> None:
    """What planted exchanges of votes show, for several shares of them."""
    scorer, budget = resolve_scorer(Choice(model))
    ballots = Ballots(None if votes is None else read_votes(votes))
    part = Unlikely(ballots, scorer, budget, 0.1)
    for pair in read(files):
        key, turned = pair_key(pair)
        ballots.see(pair, key, None, turned=turned)
        part.see(pair)
    given, _ = part.votes()
    print(f"{len(given)} votes, {int(given.decided.sum())} decided; evidence of {model}")
    several = bool((np.bincount(given.pair) > 1).any())
    for models, others in ((False, False), (True, several)):
        for share in SHARES:
            test = planted(given, share, models=models, others=others, repeats=5)
            half = float(test.right[int(np.searchsorted(test.held, 0.5))])
            reached = test.reached(0.8)
            print(
                f"  models {models!s:<5} other votes {others!s:<5} {share:.0%} exchanged: precision of a list as long "
                f"{test.precision:.2f} [{test.low:.2f}, {test.high:.2f}], of one that holds half {half:.2f}; "
                f"held at precision .8: {0 if reached is None else reached[1]:.2f}; area {test.area:.3f}",
                flush=True,
            )


def bound(path: str) -> None:
    """What another model's forecasts would find."""
    import pandas as pd

    table = pd.read_csv(path)
    p = table[[name for name in table.columns if name.startswith("winner")]].to_numpy()
    label = table["label"].to_numpy()
    decided = label < 2
    p, label = p[decided], label[decided]
    rng = np.random.default_rng(0)
    print(f"{len(label)} decided votes; accuracy {((p[:, 0] > p[:, 1]) == (label == 0)).mean():.3f}")
    for share in (*SHARES, 0.5):
        mark = rng.random(len(label)) < share
        said = np.where(mark, 1 - label, label)
        each = np.arange(len(label))
        order = np.argsort(np.log(p[each, said] + 1e-6) - np.log(p[each, 1 - said] + 1e-6), kind="stable")
        right, held = np.cumsum(mark[order]) / (each + 1), np.cumsum(mark[order]) / mark.sum()
        good = held[(right >= 0.8) & (each >= 30)]
        print(
            f"  {share:.0%} exchanged: precision of a list as long {right[int(share * len(label))]:.2f}, of one that holds half "
            f"{right[int(np.searchsorted(held, 0.5))]:.2f}; held at precision .8: {good.max(initial=0.0):.2f}"
        )


def leaks(file: str, against: str) -> None:
    """What leaks from a file to another, and how long it takes."""
    start = time.process_time()
    with open_pairs(file) as pairs:
        doctor = Doctor(pairs, Request(most=0), leaks=[Leaks(open_pairs(against), 0.8, 20_000)])
        for pair in pairs:
            if not isinstance(pair, RowError):
                doctor.see(pair)
        said = doctor.findings()[-1]
    print(f"{said.name}: {said.text}; {time.process_time() - start:.1f} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("near", "flips", "bound", "leaks"))
    parser.add_argument("files", nargs="+")
    parser.add_argument("--votes")
    parser.add_argument("--model", default="surface")
    args = parser.parse_args()
    if args.what == "near":
        near(args.files)
    elif args.what == "flips":
        flips(args.files, args.votes, args.model)
    elif args.what == "bound":
        bound(args.files[0])
    else:
        leaks(args.files[0], args.files[1])


if __name__ == "__main__":
    main()
