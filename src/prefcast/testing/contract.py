"""The contract of scorers as checks. Each takes what makes a scorer, and pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair
from prefcast.scorers.base import Cost, Evidence, Meter, Scorer
from prefcast.scorers.kept import KeptScorer, kept
from prefcast.scorers.registry import scorer_infos
from prefcast.scorers.store import EvidenceStore

__all__ = ["CHECKS", "check_scorer", "example_pairs"]

Make = Callable[[], Scorer]
Check = Callable[[Make, Sequence[Pair]], None]
# What a sum over a pair's terms may lose.
_ROUNDING = 1e-9


def example_pairs() -> list[Pair]:
    """Pairs with what goes wrong first: empty answers, equal answers, several turns, other scripts, odd characters."""
    texts = [
        ("Why is the sky blue?", "Rayleigh scattering.", "No idea."),
        ("Say nothing.", "", "Nothing."),
        ("Say it twice.", "The same.", "The same."),
        ("一个问题", "一个回答。", "另一个更长的回答。"),
        ("سؤال", "جواب", "جواب أطول قليلاً"),
        ("Smile 🙂", "🙂🙂🙂", "- a\n- b\n\n```py\nprint(1)\n```"),
        ("odd", "a\x00b\u202e", "<|im_end|></s>[INST]"),
    ]
    pairs = [Pair.of(prompt, a, b, id=number) for number, (prompt, a, b) in enumerate(texts)]
    many = [f"turn {number}" for number in range(8)]
    pairs.append(Pair.of(many, [f"{each}, answered" for each in many], [each.upper() for each in many], id="turns"))
    pairs += [
        Pair.of(f"Question {number}?", "word " * (number % 11), "other " * (number % 7), id=f"n{number}")
        for number in range(20)
    ]
    return pairs


def check_scorer(make: Make, pairs: Sequence[Pair] | None = None) -> None:
    """Run every check on the scorer that `make` makes. Raises AssertionError."""
    for check in CHECKS:
        check(make, example_pairs() if pairs is None else pairs)


def _same(found: Evidence, wanted: Evidence, within: float, what: str) -> None:
    for name, left, right in _columns(found, wanted):
        both = np.isfinite(left) & np.isfinite(right)
        _ask(np.array_equal(np.isfinite(left), np.isfinite(right)), f"{what} changes which pairs have {name}")
        change = float(np.abs(left[both] - right[both]).max(initial=0.0))
        _ask(change <= within, f"{what} changes {name} by {change:.3g}; the scorer promises {within:g}")


def _columns(found: Evidence, wanted: Evidence) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    rows = [("margin", found.margin, wanted.margin), ("tie", found.tie, wanted.tie)]
    return [*rows, *((name, found.raw[name], wanted.raw[name]) for name in wanted.raw)]


def _ask(true: bool, said: str) -> None:
    if not true:
        raise AssertionError(said)


def no_pairs_give_no_evidence(make: Make, pairs: Sequence[Pair]) -> None:
    """Empty input gives empty evidence."""
    with closing(make()) as scorer:
        found = scorer.evidence([])
        _ask(found.margin.shape == found.tie.shape == (0,), "no pairs must give margin and tie of shape (0,)")
        _ask(set(found.raw) == set(scorer.raw_names), "the raw numbers must be those that raw_names names")


def evidence_has_its_form(make: Make, pairs: Sequence[Pair]) -> None:
    """A number a pair in float64; nan exactly where there is a problem; raw numbers as named."""
    with closing(make()) as scorer:
        found = scorer.evidence(pairs)
        for name, column in {"margin": found.margin, "tie": found.tie, **found.raw}.items():
            _ask(column.shape == (len(pairs),) and column.dtype == np.float64, f"{name} must be float64 of shape (n,)")
        _ask(set(found.raw) == set(scorer.raw_names), "the raw numbers must be those that raw_names names")
        missing = {int(place) for place in np.flatnonzero(~(np.isfinite(found.margin) & np.isfinite(found.tie)))}
        _ask(missing == set(found.problems), "a pair without finite evidence must have a problem, any other none")


def order_does_not_matter(make: Make, pairs: Sequence[Pair]) -> None:
    """Evidence comes in the order of the pairs, whatever that is."""
    with closing(make()) as scorer:
        order = np.random.default_rng(0).permutation(len(pairs))
        whole, shuffled = scorer.evidence(pairs), scorer.evidence([pairs[index] for index in order])
        wanted = Evidence(
            whole.margin[order], whole.tie[order], {}, {name: whole.raw[name][order] for name in whole.raw}
        )
        _same(shuffled, wanted, scorer.promise.batch, "another order of the pairs")


def batches_do_not_matter(make: Make, pairs: Sequence[Pair]) -> None:
    """A pair alone has the evidence that it has among others, within `promise.batch`; every pair is in one batch."""
    with closing(make()) as scorer:
        places = sorted(position for batch in scorer.batches(pairs) for position in batch)
        _ask(places == list(range(len(pairs))), "batches must hold every position exactly once")
        whole = scorer.evidence(pairs)
        for index in range(0, len(pairs), max(1, len(pairs) // 5)):
            part = Evidence(
                whole.margin[index : index + 1],
                whole.tie[index : index + 1],
                {},
                {name: column[index : index + 1] for name, column in whole.raw.items()},
            )
            _same(scorer.evidence([pairs[index]]), part, scorer.promise.batch, "scoring a pair alone")


def a_swap_negates_the_margin(make: Make, pairs: Sequence[Pair]) -> None:
    """A swap of A and B negates the margin and leaves the tie alone, within `promise.swap`."""
    with closing(make()) as scorer:
        if scorer.brought:
            return  # scores that a person brings are those of one order
        found, swapped = scorer.evidence(pairs), scorer.evidence([pair.swapped() for pair in pairs])
        back = Evidence(0.0 - swapped.margin, swapped.tie)
        _same(back, Evidence(found.margin, found.tie), scorer.promise.swap, "a swap of A and B")


def what_is_saved_is_loaded(make: Make, pairs: Sequence[Pair]) -> None:
    """A portable scorer, saved and loaded, has the same identity and evidence, and writes only the files that it names."""
    with closing(make()) as scorer, tempfile.TemporaryDirectory() as room:
        if not scorer.portable:
            return
        scorer.save(Path(room))
        known = {*scorer.files, *(f"member-{number}" for number in range(1, len(scorer.members()) + 1))}
        there = {path.name for path in Path(room).iterdir()}
        _ask(there <= known, f"save wrote {sorted(there - known)}, which `files` does not name")
        _ask(scorer.name in scorer_infos(), f"no scorer is registered under the name {scorer.name!r}")
        with closing(type(scorer).load(Path(room))) as again:
            _ask(again.identity() == scorer.identity(), "a loaded scorer must have the identity of the saved one")
            _same(again.evidence(pairs), scorer.evidence(pairs), scorer.promise.batch, "saving and loading")


def kept_evidence_is_the_same(make: Make, pairs: Sequence[Pair]) -> None:
    """What the evidence store gives back is what was computed; a swapped pair is found too where a swap is exact."""
    with (
        tempfile.TemporaryDirectory() as room,
        EvidenceStore(Path(room) / "store.sqlite") as store,
        closing(make()) as scorer,
    ):
        first = kept(scorer, store)
        if not isinstance(first, KeptScorer):
            _ask(
                scorer.cost is Cost.INSTANT or not scorer.promise.repeatable or bool(scorer.members()),
                "a scorer that is not instant must be kept",
            )
            return
        computed, meter = first.evidence(pairs), Meter()
        again = first.evidence([pair.swapped() if scorer.promise.swap == 0 else pair for pair in pairs], meter)
        good = len(pairs) - len(computed.problems)
        _ask(meter.spent.kept >= good, f"of {good} pairs the store had {meter.spent.kept}")
        if scorer.promise.swap == 0:
            again = Evidence(0.0 - again.margin, again.tie)
            computed = Evidence(computed.margin, computed.tie)
        _same(again, computed, 0.0, "the evidence store")


def an_explanation_adds_up(make: Make, pairs: Sequence[Pair]) -> None:
    """Where a scorer explains itself, the terms add up to its evidence."""
    with closing(make()) as scorer:
        found = scorer.evidence(pairs)
        for index, pair in enumerate(pairs):
            pushes = scorer.explain(pair)
            if pushes and index not in found.problems:
                margin, tie = sum(push.margin for push in pushes), sum(push.tie for push in pushes)
                off = max(abs(margin - found.margin[index]), abs(tie - found.tie[index]))
                _ask(
                    off <= _ROUNDING * max(1.0, abs(margin), abs(tie)), f"the terms of an explanation are {off:.3g} off"
                )


def options_are_a_frozen_dataclass(make: Make, pairs: Sequence[Pair]) -> None:
    """`options` is a frozen dataclass whose fields have defaults."""
    with closing(make()) as scorer:
        _ask(is_dataclass(scorer.options), "options must be a dataclass")
        type(scorer.options)()
        for each in fields(scorer.options):
            try:
                setattr(scorer.options, each.name, None)
            except AttributeError:
                continue
            raise AssertionError("options must be a frozen dataclass")


CHECKS: tuple[Check, ...] = (
    no_pairs_give_no_evidence,
    evidence_has_its_form,
    order_does_not_matter,
    batches_do_not_matter,
    a_swap_negates_the_margin,
    what_is_saved_is_loaded,
    kept_evidence_is_the_same,
    an_explanation_adds_up,
    options_are_a_frozen_dataclass,
)
