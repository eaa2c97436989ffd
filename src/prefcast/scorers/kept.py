"""A scorer whose evidence is kept in the evidence store; evidence that is there is not computed again.

A key is a hash of the scorer's identity and of the pair as it was read. Where a scorer is exact under a swap of A and B, a
pair and its swap share one key. Evidence is kept for whole pairs, so that kept and computed evidence agree to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Conversation, Cost, Evidence, Meter, Part, Problem, Scorer, plain_conversation
from prefcast.scorers.store import EvidenceStore
from prefcast.scorers.wrapped import WrappedScorer

__all__ = ["KeptScorer", "kept", "pair_key", "worth_keeping"]

# Raise it when the meaning of a value changes.
_COMPUTATION = 1
_NUMBERS, _PROBLEM, _CONVERSATION = b"\0", b"\1", b"\2"
_SCORE = struct.Struct("<d")
_KEY_BYTES = 16


def kept(scorer: Scorer, store: EvidenceStore | None, *, fresh: bool = False) -> Scorer:
    """The same scorer with its evidence, or its members', in `store`; as it is without a store.

    With `fresh` nothing is taken from the store, but everything is put there.
    """
    if store is None or not store.usable:
        return scorer
    if members := scorer.members():
        return scorer.with_members([kept(member, store, fresh=fresh) for member in members])
    return KeptScorer(scorer, store, fresh=fresh) if worth_keeping(scorer) else scorer


def worth_keeping(scorer: Scorer) -> bool:
    """Whether the evidence of a scorer, or of one of its members, is kept."""
    if members := scorer.members():
        return any(map(worth_keeping, members))
    return scorer.cost is not Cost.INSTANT and scorer.promise.repeatable


class KeptScorer(WrappedScorer):
    """The `inner` scorer with its evidence in `store`."""

    def __init__(self, inner: Scorer, store: EvidenceStore, *, fresh: bool = False) -> None:
        super().__init__(inner)
        self._store, self._fresh = store, fresh
        inner.keep_parts(store, fresh=fresh)
        self._space: bytes | None = None
        self._pack = struct.Struct(f"<{2 + len(self.raw_names)}d")
        self._turn = _turning(("margin", "tie", *self.raw_names))

    def again(self, inner: Scorer) -> Scorer:
        return KeptScorer(inner, self._store, fresh=self._fresh)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        keys = [self._key(pair) for pair in pairs]
        places: dict[bytes, list[int]] = {}
        for position, (key, _) in enumerate(keys):
            places.setdefault(key, []).append(position)
        values = {} if self._fresh else self._store.get(list(places))
        found = {key: value for key, value in values.items() if self._serves(value)}
        if found:
            there = [position for key in found for position in places[key]]
            yield there, self._decoded([(found[keys[position][0]], keys[position][1]) for position in there])
            meter.advance(len(there), kept=True)
        # Of equal pairs one is computed.
        new = [same[0] for key, same in places.items() if key not in found]
        for part, evidence in self.inner.stream([pairs[position] for position in new], meter.aside()):
            encoded = self._encoded(evidence, [keys[new[index]][1] for index in part])
            self._store.put(
                (keys[new[index]][0], value) for index, value in zip(part, encoded, strict=True) if value is not None
            )
            positions, rows, turned = list[int](), list[int](), list[bool]()
            for row, index in enumerate(part):
                same = places[keys[new[index]][0]]
                positions += same
                rows += [row] * len(same)
                turned += [keys[position][1] != keys[new[index]][1] for position in same]
            yield positions, _taken(evidence, rows, np.array(turned), self._turn)
            meter.advance(len(positions))

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        keys = [
            hashlib.blake2b(
                json.dumps(plain_conversation(each), sort_keys=True).encode(), digest_size=16, key=self.space
            ).digest()
            for each in conversations
        ]
        found = {} if self._fresh else self._store.get(keys)
        known = {
            key: _SCORE.unpack(value[1:])[0]
            for key, value in found.items()
            if value[:1] == _CONVERSATION and len(value) == 9
        }
        # Of equal conversations one is computed.
        new = {key: each for key, each in zip(keys, conversations, strict=True) if key not in known}
        if new:
            scores = dict(zip(new, self.inner.score(list(new.values())).tolist(), strict=True))
            known |= scores
            self._store.put(
                (key, _CONVERSATION + _SCORE.pack(score)) for key, score in scores.items() if isfinite(score)
            )
        return np.array([known[key] for key in keys], dtype=np.float64)

    @property
    def space(self) -> bytes:
        """The namespace of this scorer's keys."""
        if self._space is None:
            said = [_COMPUTATION, self.identity(), self.raw_names]
            self._space = hashlib.sha256(json.dumps(said).encode()).digest()
        return self._space

    def _key(self, pair: Pair) -> tuple[bytes, bool]:
        return pair_key(pair, self.space, either_way=self.promise.swap == 0)

    def _serves(self, value: bytes) -> bool:
        """Whether a value is one that is used: a row that took too long may have more time now."""
        if value[:1] == _NUMBERS:
            return len(value) == 1 + self._pack.size
        limit = struct.unpack_from("<d", value, 1)[0] if len(value) > 9 else np.nan
        now = self.time_limit
        return value[:1] == _PROBLEM and (limit == np.inf or (now is not None and now <= limit))

    def _encoded(self, evidence: Evidence, turned: Sequence[bool]) -> list[bytes | None]:
        """Each row as bytes; None for a row that is not kept."""
        columns = np.column_stack([evidence.margin, evidence.tie, *(evidence.raw[name] for name in self.raw_names)])
        swapped: NDArray[np.bool_] = np.array(turned, dtype=bool)
        rows: NDArray[np.float64] = np.where(swapped[:, None], self._turn(columns), columns)
        whole = np.asarray(np.isfinite(columns[:, :2]).all(axis=1))
        values: list[bytes | None] = []
        for index, row in enumerate(rows.astype("<f8")):
            problem = evidence.problems.get(index)
            if problem is None and whole[index]:
                values.append(_NUMBERS + row.tobytes())
            elif isinstance(problem, Problem) and problem.kind == "worker":
                limit = np.inf if problem.limit is None else problem.limit
                values.append(_PROBLEM + struct.pack("<d", limit) + problem.encode())
            else:
                values.append(None)
        return values

    def _decoded(self, values: Sequence[tuple[bytes, bool]]) -> Evidence:
        numbers = np.full((len(values), 2 + len(self.raw_names)), np.nan)
        problems: dict[int, str] = {}
        for row, (value, _) in enumerate(values):
            if value[:1] == _NUMBERS:
                numbers[row] = self._pack.unpack_from(value, 1)
            else:
                problems[row] = Problem(value[9:].decode("utf-8", "replace"), "worker")
        turned = np.array([each for _, each in values])
        numbers = np.where(turned[:, None], self._turn(numbers), numbers)
        raw = {name: numbers[:, 2 + place] for place, name in enumerate(self.raw_names)}
        return Evidence(numbers[:, 0], numbers[:, 1], problems, raw)


def pair_key(pair: Pair, space: bytes, *, either_way: bool = False) -> tuple[bytes, bool]:
    """The key of a pair in a namespace of at most 64 bytes, and whether it is that of the swapped pair.

    With `either_way` a pair and its swap have the same key, and one of the two is the swapped one.
    """
    a, b = pair.response_a, pair.response_b
    turned = either_way and a > b
    texts = (*pair.prompt, *b, *a) if turned else (*pair.prompt, *a, *b)
    # Lengths first: no text can pass for the border between two.
    said = f"{','.join(map(str, map(len, texts)))};{''.join(texts)}"
    if pair.tools is not None:
        tools = pair.tools[::-1] if turned else pair.tools
        said = f"{json.dumps([pair.system, pair.reference, *tools])};{said}"
    elif pair.system or pair.reference is not None:
        # Only then: the keys of all other pairs stay what they were.
        said = f"{json.dumps([pair.system, pair.reference])};{said}"
    content = said.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=space).digest(), turned


class _turning:  # noqa: N801 - a function with a table
    """What a swap of A and B does to columns (n, k) with these names."""

    def __init__(self, names: Sequence[str]) -> None:
        place: Mapping[str, int] = {name: index for index, name in enumerate(names)}
        twin = {"_a": "_b", "_b": "_a"}
        self._order = [place.get(f"{name[:-2]}{twin.get(name[-2:], name[-2:])}", place[name]) for name in names]
        self._negated = np.array([name.startswith("margin") for name in names])

    def __call__(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        # 0 - x, not -x: a margin of 0 has no sign.
        turned: NDArray[np.float64] = np.where(self._negated, 0.0 - columns[:, self._order], columns[:, self._order])
        return turned


def _taken(evidence: Evidence, rows: Sequence[int], turned: NDArray[np.bool_], turn: _turning) -> Evidence:
    """The evidence of some rows, perhaps several times, where `turned` with A and B swapped."""
    names = list(evidence.raw)
    columns = np.column_stack([evidence.margin, evidence.tie, *(evidence.raw[name] for name in names)])[list(rows)]
    columns = np.where(turned[:, None], turn(columns), columns)
    problems = {place: evidence.problems[row] for place, row in enumerate(rows) if row in evidence.problems}
    raw = {name: columns[:, 2 + place] for place, name in enumerate(names)}
    return Evidence(columns[:, 0], columns[:, 1], problems, raw)
