"""Texts that are nearly the same: the same but for case, spaces, punctuation, a few words, or a sentence.

Two texts are near-duplicates if the Jaccard similarity of their sets of shingles is at least a threshold. MinHash signatures in
bands find the candidates (Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3). The similarity of each candidate is then computed from the two sets: exactly for texts
of up to 1,024 different shingles, for longer ones from their 1,024 smallest hashes (Bar-Yossef and others, "Counting distinct
elements in a data stream", 2002), with a standard error of at most 0.016.

A shingle is five characters in a row. It is three where it begins with a character of Chinese, Japanese or Korean, which write
a word with fewer. Texts are compared after NFKC and casefolding, without spaces and punctuation, up to 250,000 characters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import UsageError

__all__ = ["Bands", "Match", "NearDuplicates", "NearGroups", "Sketch", "near_groups", "normalised", "sketched"]

Codes = NDArray[np.uint32]
Hashes = NDArray[np.uint32]

_LONG, _SHORT = 5, 3
# The scripts from here on write a word in one to three characters; emoji, which are higher, tell as much.
_IDEOGRAPHS = 0x2E80
# NFKC brings almost all punctuation below this character.
_TABLED = 0x3100
# More of a text is not read: a text of any length takes the same memory and time.
_READ = 250_000
_KEPT = 1024
_PERMUTATIONS = 48
_RECALL = 0.99
# So many shingles are hashed at a time.
_PART = 8192
# A bucket holds so many texts, and a text is compared with so many: a million texts that are alike take linear time. Each is
# still found to be like the first of them.
_CROWD, _CANDIDATES = 32, 32


@cache
def _left_out() -> NDArray[np.bool_]:
    """Which characters up to `_TABLED` are left out: spaces, punctuation, and what no one sees."""
    found = np.zeros(_TABLED + 1, dtype=bool)
    for code in range(_TABLED):
        category = unicodedata.category(chr(code))
        found[code] = category[0] in "PZ" or category in ("Cc", "Cf") or chr(code).isspace()
    return found


def normalised(text: str) -> Codes:
    """The code points of `text` as they are compared. A text of punctuation alone keeps its punctuation."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text[:_READ]).casefold())
    codes = _codes(folded)
    kept = codes[~_left_out()[np.minimum(codes, _TABLED)]]
    return kept if len(kept) else _codes("".join(folded.split()))


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


# Odd, and different for each place in a shingle.
_MULTIPLIERS = [np.uint64(0x9E3779B97F4A7C15 * (2 * place + 1) ** 5 % (1 << 64)) for place in range(_LONG)]


def _shingles(codes: Codes) -> Iterator[Hashes]:
    """The hashes of the shingles, in parts, sorted, without doubles. A text that is shorter than a shingle is one shingle."""
    for start in range(0, len(codes), _PART):
        n = min(_PART, len(codes) - start)
        window = np.zeros(n + _LONG - 1, dtype=np.uint64)
        part = codes[start : start + len(window)]
        window[: len(part)] = part
        total = window[:n] * _MULTIPLIERS[0]
        for place in range(1, _SHORT):
            total += window[place : place + n] * _MULTIPLIERS[place]
        rest = window[_SHORT : _SHORT + n] * _MULTIPLIERS[_SHORT]
        for place in range(_SHORT + 1, _LONG):
            rest += window[place : place + n] * _MULTIPLIERS[place]
        short = codes[start : start + n] >= _IDEOGRAPHS
        total += np.where(short, np.uint64(0), rest)
        # The finalizer of SplitMix64: each bit of a hash depends on every character.
        total ^= total >> np.uint64(30)
        total *= np.uint64(0xBF58476D1CE4E5B9)
        total ^= total >> np.uint64(27)
        total *= np.uint64(0x94D049BB133111EB)
        fits = start + np.arange(n) + np.where(short, _SHORT, _LONG) <= len(codes)
        if start == 0:
            fits[0] = fits[0] or not fits.any()
        yield _different((total[fits] >> np.uint64(32)).astype(np.uint32))


def _different(hashes: Hashes) -> Hashes:
    """The different hashes, sorted. For so few numbers this is much quicker than np.unique."""
    ordered = np.sort(hashes)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


@dataclass(frozen=True, eq=False)
class Sketch:
    """A set of shingles: `hashes` are its smallest hashes, sorted, at most 1,024, and `whole` says whether these are all."""

    hashes: Hashes = field(repr=False)
    whole: bool = True

    @classmethod
    def joined(cls, sketches: Iterable[Sketch]) -> Sketch:
        """The sketch of the shingles that are in any of the sketches."""
        several = list(sketches)
        found = _different(np.concatenate([_NONE, *(each.hashes for each in several)]))
        return cls(found[:_KEPT].copy(), len(found) <= _KEPT and all(each.whole for each in several))

    def similarity(self, other: Sketch) -> float:
        """The Jaccard similarity of two sets: exact if both are whole, otherwise an estimate. Two empty sets are the same."""
        left, right = self.hashes, other.hashes
        # Up to the largest hash of a sketch that is not whole, every hash of its set is known.
        limit = min((each.hashes[-1] for each in (self, other) if not each.whole), default=None)
        if limit is not None:
            left, right = (each[: np.searchsorted(each, limit, side="right")] for each in (left, right))
        total = len(left) + len(right)
        ordered = np.sort(np.concatenate([left, right]))
        both = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
        return both / (total - both) if total else 1.0


_NONE = np.zeros(0, dtype=np.uint32)


def sketched(text: str) -> tuple[Sketch, Hashes]:
    """The sketch of a text and its MinHash signature (48,). The signature of several texts together is the smallest of theirs."""
    return _sketched(normalised(text))


def _sketched(codes: Codes) -> tuple[Sketch, Hashes]:
    from datasketch import MinHash

    minima = MinHash(_PERMUTATIONS, hashfunc=int, permutations=_permutations(), scheme="affine32")
    sketch = Sketch(_NONE)
    for part in _shingles(codes):
        minima.update_batch(part.tolist())
        sketch = Sketch.joined([sketch, Sketch(part)])
    values: Hashes = minima.hashvalues
    return sketch, values


@cache
def _permutations() -> NDArray[np.uint32]:
    from datasketch import MinHash

    found: NDArray[np.uint32] = MinHash(_PERMUTATIONS, scheme="affine32").permutations
    return found


class Bands:
    """Signatures in buckets: texts that are alike share a bucket.

    Of two texts whose similarity is at least `threshold`, the second finds the first with a probability of at least 0.99.
    Raises UsageError for a threshold outside (0, 1].
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"the similarity of near-duplicates must be above 0 and at most 1; found {threshold:g}")
        # The widest bands find the fewest candidates in vain.
        self._width = next((width for width in range(16, 1, -1) if _found(threshold, width) >= _RECALL), 1)
        self._buckets: dict[bytes, int | list[int]] = {}

    def _names(self, minima: Hashes) -> Iterator[bytes]:
        data, width = minima.tobytes(), 4 * self._width
        for number, start in enumerate(range(0, len(data) - width + 1, width)):
            yield bytes((number,)) + data[start : start + width]

    def add(self, number: int, minima: Hashes) -> None:
        """Put the signature (48,) of the text that is called `number` into its buckets."""
        for name in self._names(minima):
            held = self._buckets.setdefault(name, number)
            if isinstance(held, list):
                if len(held) < _CROWD:
                    held.append(number)
            elif held != number:
                self._buckets[name] = [held, number]

    def candidates(self, minima: Hashes) -> list[int]:
        """The texts that share a bucket with the signature (48,), those that share most first, at most 32."""
        counts: Counter[int] = Counter()
        for name in self._names(minima):
            held = self._buckets.get(name, ())
            counts.update((held,) if isinstance(held, int) else held)
        return [number for number, _ in counts.most_common(_CANDIDATES)]


def _found(similarity: float, width: int) -> float:
    """How probably two texts of this similarity share a bucket."""
    return float(1 - (1 - similarity**width) ** (_PERMUTATIONS // width))


@dataclass(frozen=True)
class Match:
    """A text that was added, by its key, and its similarity to the text that was asked about: 1 where both are read alike."""

    key: Hashable
    similarity: float


class NearDuplicates:
    """Texts, by key, among which the near-duplicates of a text are found.

    `threshold` is the least Jaccard similarity. Texts that are read alike are one text, and the first key stands for them.
    A text takes about 4 bytes a character, at most 4 kB, and 2 kB more. Raises UsageError for a threshold outside (0, 1].
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._bands = Bands(threshold)
        self._same: dict[bytes, int] = {}
        self._keys: list[Hashable] = []
        self._sketches: list[Sketch] = []

    def __len__(self) -> int:
        """How many different texts there are."""
        return len(self._keys)

    def add(self, key: Hashable, text: str) -> list[Match]:
        """Add a text. Returns the near-duplicates of it that were added before, as `matches` does."""
        codes = normalised(text)
        digest = _digest(codes)
        if digest in self._same:
            return [Match(self._keys[self._same[digest]], 1.0)]
        sketch, minima = _sketched(codes)
        found = self._matches(sketch, minima)
        number = self._same[digest] = len(self._keys)
        self._keys.append(key)
        self._sketches.append(sketch)
        self._bands.add(number, minima)
        return found

    def matches(self, text: str) -> list[Match]:
        """The near-duplicates of a text, the most similar first: at most 32. If a text is read alike, that one alone."""
        codes = normalised(text)
        digest = _digest(codes)
        if digest in self._same:
            return [Match(self._keys[self._same[digest]], 1.0)]
        return self._matches(*_sketched(codes))

    def _matches(self, sketch: Sketch, minima: Hashes) -> list[Match]:
        found = []
        for number in self._bands.candidates(minima):
            similarity = sketch.similarity(self._sketches[number])
            if similarity >= self.threshold:
                found.append(Match(self._keys[number], similarity))
        return sorted(found, key=lambda match: -match.similarity)


def _digest(codes: Codes) -> bytes:
    return blake2b(codes.tobytes(), digest_size=16).digest()


class NearGroups:
    """Texts that are grouped by their near-duplicates, at one threshold or several.

    Each different text is sketched once. It takes about 4 bytes a character, at most 4 kB, and 2 kB more.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        same: dict[bytes, int] = {}
        of: list[int] = []
        self._sketches: list[Sketch] = []
        self._minima: list[Hashes] = []
        for text in texts:
            codes = normalised(text)
            of.append(same.setdefault(_digest(codes), len(self._sketches)))
            if of[-1] == len(self._sketches):
                sketch, minima = _sketched(codes)
                self._sketches.append(sketch)
                self._minima.append(minima)
        self._of = np.array(of, dtype=np.int64)

    def at(self, threshold: float, among: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The groups (n,) of the texts at the places `among` (n,), by default of all: a text, its near-duplicates and theirs have
        one number, the place among the n of the first of them. Raises UsageError for a threshold outside (0, 1]."""
        bands, mine = Bands(threshold), self._of if among is None else self._of[among]
        numbers, places, inverse = np.unique(mine, return_index=True, return_inverse=True)
        first = {number: number for number in numbers.tolist()}
        place = dict(zip(numbers.tolist(), places.tolist(), strict=True))
        for number in first:
            for other in bands.candidates(self._minima[number]):
                # What is in one group already is not compared: a crowd of texts that are alike takes one comparison each.
                left, right = _root(first, other), _root(first, number)
                if left != right and self._sketches[number].similarity(self._sketches[other]) >= threshold:
                    left, right = (left, right) if place[left] < place[right] else (right, left)
                    first[right] = left
            bands.add(number, self._minima[number])
        roots = [place[_root(first, number)] for number in numbers.tolist()]
        return np.array(roots, dtype=np.int64)[inverse]


def near_groups(texts: Iterable[str], threshold: float = 0.8) -> NDArray[np.int64]:
    """The groups (n,) of n texts: a text, its near-duplicates and theirs have the number of the first of them.

    Cross-validation whose folds are made of these groups shares no text between folds.
    """
    return NearGroups(texts).at(threshold)


def _root(first: dict[int, int], number: int) -> int:
    while first[number] != number:
        first[number] = first[first[number]]
        number = first[number]
    return number
