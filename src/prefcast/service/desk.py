"""Who votes on which pair, and what of it a rater gets to see. It knows nothing of HTTP.

A rater sees the two answers in an order that depends on the rater, and nothing that says whose they are: no name, no id, no
forecast, no inclusion probability.
"""

from __future__ import annotations

import hashlib
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefcast.errors import FileError, PrefcastError, UsageError
from prefcast.pairs import Pair
from prefcast.pairs.formats.vote_files import SIDES, Vote, VoteFile
from prefcast.service.refusals import Refusal

__all__ = ["SAID", "Desk", "Shown", "Standing", "rater_of"]

# What a rater can say of two answers.
SAID = ("1", "2", "tie", "skip")
LONGEST_NAME = 40
_MOST_RATERS = 500
# Seconds for which a pair that one rater sees is not given to others.
_SHOWN = 900.0


@dataclass(frozen=True)
class Shown:
    """A pair as one rater sees it. `ballot` names the pair and the rater, and tells neither the id nor the sides. A turn is a
    prompt and the two answers."""

    ballot: str
    system: str
    turns: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Standing:
    """Where a rater stands: how many pairs they voted on and skipped, how many are left for them, the pair to vote on (None: there
    is none), and the ballot of their last vote (None: there is none to take back)."""

    rater: str
    voted: int
    skipped: int
    left: int
    shown: Shown | None
    last: str | None


class Desk:
    """Gives out the drawn `pairs`, in their order, and keeps what raters say in `file`. All methods may be called from any thread.

    The share `overlap` of the pairs gets the votes of two raters, every other pair that of one. `changed` counts the changes of
    the file. `report` hears why a vote could not be kept.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        file: VoteFile,
        *,
        seed: int = 0,
        overlap: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pairs, self._file, self._clock = pairs, file, clock
        self.report: Callable[[PrefcastError], None] = lambda error: None
        self.ids = [str(pair.id) for pair in pairs]
        # They depend on the texts too, so that who only knows an id and the seed cannot tell the sides.
        self._marks = [_mark(str(seed), id, repr(pair.turns)) for id, pair in zip(self.ids, pairs, strict=True)]
        # Evenly over the draw, so that a longer draw leaves them as they are.
        self._wanted = [1 + int((place + 1) * overlap) - int(place * overlap) for place in range(len(pairs))]
        self._shown: dict[str, tuple[int, float]] = {}
        # The pair whose vote a rater took back last: it is theirs again, even if it has enough votes of others.
        self._taken_back: dict[str, int] = {}
        self._lock = threading.Lock()
        self._votes: dict[str, dict[str, Vote]] = {}
        self.changed = 0
        self._index()

    def standing(self, rater: str) -> Standing:
        """Where a rater stands; the pair that is shown stays theirs until they vote on it."""
        with self._lock:
            return self._standing(self._named(rater))

    def say(self, rater: str, ballot: str, said: str) -> Standing:
        """Keep what a rater says of a pair. The same again changes nothing. Raises Refusal if the ballot is not one of this
        rater, if the rater said something else of this pair before, or if the vote cannot be kept."""
        with self._lock:
            rater = self._named(rater)
            place = self._place(rater, ballot)
            winner = self._winner(rater, place, said)
            before = self._given(place).get(rater)
            if before is None:
                if rater not in self.raters and len(self.raters) >= _MOST_RATERS:
                    raise Refusal("invalid", f"there are {_MOST_RATERS} raters already; no more are taken", "rater")
                self._keep(rater, place, Vote(winner, _now(self._last_at(rater))))
            elif before.winner != winner:
                raise Refusal("voted_already", "you have voted on this pair before; take that vote back first")
            self._shown.pop(rater, None)
            self._taken_back.pop(rater, None)
            return self._standing(rater)

    def take_back(self, rater: str, ballot: str) -> Standing:
        """Take a rater's vote on a pair back, and show the pair again. Raises Refusal as `say` does."""
        with self._lock:
            rater = self._named(rater)
            place = self._place(rater, ballot)
            if rater in self._given(place):
                self._keep(rater, place, None)
            self._shown[rater] = place, self._clock()
            self._taken_back[rater] = place
            return self._standing(rater)

    def votes(self) -> tuple[int, list[dict[str, Vote]]]:
        """How often the file has changed, and the votes on each pair, by rater."""
        with self._lock:
            return self.changed, [dict(self._given(place)) for place in range(len(self.ids))]

    @property
    def file_name(self) -> str:
        return self._file.path.name

    def file_bytes(self) -> bytes:
        """The file of votes as it is."""
        return self._file.path.read_bytes()

    def _index(self) -> None:
        self._votes = {}
        for (id, rater), vote in self._file.votes.items():
            self._votes.setdefault(id, {})[rater] = vote
        self.raters = {rater: None for _, rater in self._file.votes}

    def _given(self, place: int) -> dict[str, Vote]:
        return self._votes.get(self.ids[place], {})

    def _named(self, rater: str) -> str:
        """The name as it is written in the file, if it stands there in other letters."""
        return next((other for other in self.raters if other.casefold() == rater.casefold()), rater)

    def _keep(self, rater: str, place: int, vote: Vote | None) -> None:
        try:
            self._file.put((self.ids[place], rater), vote)
        except (UsageError, FileError) as error:
            self.report(error)
            raise Refusal("not_kept", "the server could not write the vote to its disk") from None
        self._index()
        self.changed += 1

    def _standing(self, rater: str) -> Standing:
        mine = {place: self._given(place)[rater] for place in range(len(self.ids)) if rater in self._given(place)}
        free = [place for place in range(len(self.ids)) if self._free(place, rater)]
        now = self._clock()
        self._shown = {other: seen for other, seen in self._shown.items() if now - seen[1] < _SHOWN}
        place = self._next(rater, free)
        if place is not None:
            self._shown[rater] = place, now
        last = max(mine, key=lambda each: mine[each].at, default=None)
        return Standing(
            rater,
            sum(bool(vote.winner) for vote in mine.values()),
            sum(not vote.winner for vote in mine.values()),
            len(free),
            None if place is None else self._as_seen(rater, place),
            None if last is None else self._ballot(rater, last),
        )

    def _free(self, place: int, rater: str) -> bool:
        given = self._given(place)
        if rater in given:
            return False
        enough = sum(bool(vote.winner) for vote in given.values()) >= self._wanted[place]
        return not enough or self._taken_back.get(rater) == place

    def _next(self, rater: str, free: Sequence[int]) -> int | None:
        """The pair that the rater sees already, or the first that others leave to them; at the end one that another rater sees
        as well, for that rater may have gone."""
        seen, _ = self._shown.get(rater, (-1, 0.0))
        if seen in free:
            return seen
        looking: dict[int, int] = {}
        for other, (place, _) in self._shown.items():
            if other != rater and other not in self._given(place):
                looking[place] = looking.get(place, 0) + 1
        for place in free:
            given = sum(bool(vote.winner) for vote in self._given(place).values())
            if given + looking.get(place, 0) < self._wanted[place]:
                return place
        return free[0] if free else None

    def _ballot(self, rater: str, place: int) -> str:
        return _mark(self._marks[place], "ballot", rater.casefold())

    def _place(self, rater: str, ballot: str) -> int:
        for place in range(len(self.ids)):
            if self._ballot(rater, place) == ballot:
                return place
        raise Refusal("invalid", "is not a pair of this vote; load the page again", "ballot")

    def _left_first(self, rater: str, place: int) -> bool:
        return int(_mark(self._marks[place], "side", rater.casefold())[0], 16) < 8

    def _as_seen(self, rater: str, place: int) -> Shown:
        pair = self.pairs[place]
        turns = pair.turns if self._left_first(rater, place) else pair.swapped().turns
        return Shown(self._ballot(rater, place), pair.system, tuple(turn.texts for turn in turns))

    def _winner(self, rater: str, place: int, said: str) -> str:
        if said == "skip":
            return ""
        if said == "tie":
            return SIDES[2]
        return SIDES[0] if (said == "1") == self._left_first(rater, place) else SIDES[1]

    def _last_at(self, rater: str) -> str:
        return max((vote.at for (_, other), vote in self._file.votes.items() if other == rater), default="")


def rater_of(name: str) -> str:
    """A name as it is kept: one form of each letter, single spaces. Raises Refusal for a name that a table could not hold: it
    begins with a letter or a digit, so that no spreadsheet runs it, and has no invisible characters."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or not name[0].isalnum():
        raise Refusal(
            "invalid",
            f"expected a name of 1 to {LONGEST_NAME} letters, digits and signs that begins with a letter or a digit",
            "rater",
        )
    return name


def _now(after: str) -> str:
    """The time, later than `after` even if the clock was set back."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return now if now > after else f"{after}+"


def _mark(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
