"""The contract of scorers. A scorer reduces a pair to two numbers: evidence for A over B, and evidence for a tie.

The rest of the program knows a scorer through this module alone and never asks which kind it holds. A new scorer is a
subclass of `Scorer` with one method, `compute`; everything else has a default. `prefcast.testing` has the tests that
every scorer must pass.
"""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import PrefcastError, UsageError, printable
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget, Truncation
from prefcast.scorers.meter import SILENT, Meter, Spent
from prefcast.scorers.options import NoOptions, given

if TYPE_CHECKING:
    from prefcast.scorers.store import EvidenceStore

__all__ = [
    "EXACT",
    "SILENT",
    "Conversation",
    "Cost",
    "Evidence",
    "Meter",
    "Problem",
    "Promise",
    "Push",
    "Scorer",
    "Spent",
    "costs_money",
    "fingerprint",
    "gathered",
    "plain_conversation",
    "read_pair",
    "total_spent",
    "unforeseen",
]

Floats = NDArray[np.float64]
Conversation = Sequence[Mapping[str, str]] | Mapping[str, Any]
# So many characters of an unforeseen exception's message are shown.
_MOST = 200


class Problem(str):
    """Why a pair has no evidence. `kind` is "pair" (the pair is at fault), "worker" (the pair ended its worker process, or
    took too long), or "unforeseen" (an exception that the scorer did not expect).

    A worker's problem is kept in the evidence store; `limit` is the time limit in seconds that it is about. `about` is the
    type of an exception that nobody foresaw.
    """

    __slots__ = ("about", "kind", "limit")
    about: str
    kind: str
    limit: float | None

    def __new__(cls, text: str, kind: str = "pair", limit: float | None = None, about: str = "") -> Self:
        made = super().__new__(cls, text)
        made.kind, made.limit, made.about = kind, limit, about
        return made


@dataclass(frozen=True)
class Evidence:
    """What a scorer says of n pairs.

    `margin` (n,): evidence for A over B; a swap of A and B negates it. `tie` (n,): evidence for a tie; a swap leaves it
    alone; 0 where the scorer has no view. Both are nan for a pair that failed; `problems` says why, by the pair's
    position. `raw` holds the numbers that the evidence was made of, each (n,), by name. Of raw numbers a swap exchanges
    those whose names end in `_a` and `_b`, negates those whose names begin with `margin`, and leaves the others alone.
    """

    margin: Floats
    tie: Floats
    problems: Mapping[int, str] = field(default_factory=dict)
    raw: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.margin)


@dataclass(frozen=True)
class Push:
    """What one kind of feature did to one pair's evidence: the sums of its terms in margin and tie, and the values
    behind them (name, of A, of B)."""

    name: str
    margin: float
    tie: float
    values: tuple[tuple[str, float, float], ...] = ()


class Cost(StrEnum):
    """What evidence costs, which decides whether it is kept in the evidence store."""

    INSTANT = "instant"  # cheaper to compute than to look up: never kept
    KEPT = "worth keeping"
    PAID = "costs money"  # kept, and never paid for twice


@dataclass(frozen=True)
class Promise:
    """How exactly a scorer repeats itself: the largest absolute change of margin and tie under a swap of A and B, and
    under another choice of batches. 0 means: to the last bit. `repeatable`: equal identities give equal evidence; without
    that nothing is kept."""

    swap: float = 0.0
    batch: float = 0.0
    repeatable: bool = True


EXACT = Promise()


# Positions among the pairs that were given, and the evidence of those.
Part = tuple[Sequence[int], Evidence]


class Scorer(ABC):
    """Reduces pairs to evidence."""

    # What a forecaster folder calls it.
    name: ClassVar[str]
    # The files that `save` writes: a forecaster folder's fingerprint covers them.
    files: ClassVar[tuple[str, ...]] = ()
    cost: Cost = Cost.KEPT
    promise: Promise = EXACT
    # Whether `load` takes another place of its model: a reward model is not copied into the folder.
    may_lie_elsewhere: ClassVar[bool] = False
    # Whether another process or a Ray actor can load it from what `save` writes.
    portable: bool = True
    # What the scorer itself can read at most, in its own tokens; applied after the forecaster's budget.
    limit: Budget | None = None
    # The names of the evidence's `raw` numbers.
    raw_names: tuple[str, ...] = ()
    # How many batches it computes at a time.
    workers: int = 1
    # How many pairs `batches` puts together.
    batch_pairs: int = 256
    # The options that it was made with: a frozen dataclass (see `options.py`).
    options: Any = NoOptions()
    # The columns of scores that a person brings with each use; empty for a scorer that computes its own.
    brought: tuple[str, ...] = ()
    # Whether its evidence is a forecast's log-odds already.
    log_odds: bool = False
    # The name of the language model that judges, where one does.
    judge: str | None = None
    # What a scorer that is paid for took so far.
    spent: Spent | None = None
    # Whether single conversations have scores (`score`).
    pointwise: bool = False
    # Whether it reads a pair's system message in a role of its own; otherwise it is joined to the first prompt.
    takes_system: bool = False
    # Whether it reads the messages of answers that call tools; a pair with such answers otherwise has no evidence.
    takes_tools: bool = False
    # How many seconds a batch may take; None where there is no limit.
    time_limit: float | None = None

    @abstractmethod
    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        """The evidence of one batch of pairs, in their order; no pairs give empty evidence.

        Every pair has at least one turn. A pair that is at fault gets nan and a problem. An exception that is not a
        PrefcastError is a fault of single pairs: the batch is halved until they are found.
        """

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        """The positions of pairs that are computed together. Each position is in one batch."""
        return [
            range(start, min(start + self.batch_pairs, len(pairs))) for start in range(0, len(pairs), self.batch_pairs)
        ]

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        """The evidence of `pairs` in parts, each as soon as it is there, in any order."""
        for batch in self.batches(pairs):
            for positions, found in self._attempted(pairs, batch):
                meter.advance(len(positions))
                yield positions, found

    def _attempted(self, pairs: Sequence[Pair], batch: Sequence[int]) -> Iterator[Part]:
        try:
            found = self.compute([pairs[position] for position in batch])
        except PrefcastError:
            raise
        except Exception as error:  # whatever one pair does to a scorer, the others are to be scored
            if len(batch) > 1:
                middle = len(batch) // 2
                yield from self._attempted(pairs, batch[:middle])
                yield from self._attempted(pairs, batch[middle:])
            else:
                yield batch, failed(self, unforeseen(error))
        else:
            yield batch, found

    def evidence(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Evidence:
        """The evidence of `pairs`, in their order."""
        plain = [place for place, pair in enumerate(pairs) if pair.tools is None or self.takes_tools]
        parts = self.stream([self.taken(pairs[place]) for place in plain], meter)
        if len(plain) == len(pairs):
            return gathered(len(pairs), self.raw_names, parts)
        others = sorted(set(range(len(pairs))).difference(plain))
        meter.advance(len(others))
        problem = f"has answers that call tools, which {self.name} does not read"
        without = [([place], failed(self, problem)) for place in others]
        placed = (([plain[place] for place in positions], found) for positions, found in parts)
        return gathered(len(pairs), self.raw_names, chain(without, placed))

    def taken(self, pair: Pair) -> Pair:
        """`pair` in the form that the scorer reads."""
        return pair if self.takes_system else pair.joined()

    def score(self, conversations: Sequence[Conversation]) -> Floats:
        """Scores (n,) of n conversations, each a list of messages with `role` and `content`; higher is better.

        A conversation that is in the model's template already is `{"text": ...}`, with `"frame": True` where the tokenizer is to
        add its own special tokens, or its token ids, `{"ids": [...]}`. Special tokens in such a text are parsed.

        Raises UsageError where single conversations have no scores.
        """
        raise UsageError(f"the model {self.name} does not score single conversations")

    def explain(self, pair: Pair) -> list[Push]:
        """What moved the evidence of `pair`, the strongest first; empty where the scorer cannot say."""
        return []

    def identity(self) -> str:
        """A digest of all that the numbers depend on besides the pair: equal identities give equal evidence.

        By default it covers the files that `save` writes and the version of prefcast.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            said = f"{version('prefcast')}\0{fingerprint(Path(folder), self)}"
        return hashlib.sha256(said.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The scorer whose files lie in `folder`; `moved` says where its one reward model lies now.

        Raises ForecasterError, and UsageError where `moved` says nothing to this scorer.
        """
        cls._check_unmoved(folder, moved)
        return cls()

    @classmethod
    def _check_unmoved(cls, folder: Path, moved: str | None) -> None:
        if moved is not None:
            raise UsageError(f"{folder}: the model {cls.name} has no reward model that could lie elsewhere")

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`. Raises UsageError where it cannot be saved."""

    def spec(self, folder: Path) -> dict[str, Any]:
        """What another process on this machine needs to load the scorer, as JSON; its files are written into `folder`."""
        self.save(folder)
        return {"name": self.name, "folder": str(folder)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Scorer:
        """The scorer that `spec` described."""
        return cls.load(Path(spec["folder"]))

    def members(self) -> tuple[Scorer, ...]:
        """The scorers that this one is made of; empty for a scorer that stands alone."""
        return ()

    def with_members(self, members: Sequence[Scorer]) -> Scorer:
        """The same scorer made of `members`, which take the places of the present ones."""
        return self

    def bare(self) -> Scorer:
        """The scorer itself, without what a run wrapped around it: worker processes, the evidence store."""
        return self.with_members([member.bare() for member in self.members()]) if self.members() else self

    def with_options(self, options: Any) -> Scorer:
        """The same scorer with other options. Raises UsageError for an option that the scorer does not have, or that is
        fixed since an outcome model was fitted to it."""
        if named := given(options):
            raise UsageError(
                f"the model {self.name} has no option --{named[0].replace('_', '-')}; it is for models of another kind"
            )
        return self

    def with_scores(self, scores: Scorer) -> Scorer:
        """The same scorer with the scores that a person brings now, in the place of those it was fitted to."""
        return self.with_members([member.with_scores(scores) for member in self.members()])

    def replicas(self) -> Sequence[Any]:
        """The options of each worker process that the scorer asks for: more than one where it computes on several devices.
        Empty where this process is enough."""
        return ()

    def use_threads(self, threads: int) -> None:
        """Compute on so many threads of the CPU from now on. The default is one for each processor."""

    def keep_parts(self, store: EvidenceStore, *, fresh: bool = False) -> None:
        """Keep in `store` what a pair's evidence is made of, each part as soon as it is there; with `fresh` take none from
        it. For a scorer whose pairs take several requests that are paid for."""

    def prepare(self) -> None:
        """Load what the first pair would load. A worker process does this before its first batch, outside any time limit."""

    def close(self) -> None:
        """Give back what the scorer holds: threads, processes, memory of devices."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def plain_conversation(conversation: Conversation) -> Any:
    """A conversation as JSON has it."""
    if isinstance(conversation, Mapping):
        return dict(conversation)
    return [dict(message) for message in conversation]


def gathered(n: int, raw_names: Sequence[str], parts: Iterable[Part]) -> Evidence:
    """The parts of the evidence of n pairs as one."""
    values = {name: np.full(n, np.nan) for name in ("margin", "tie", *raw_names)}
    problems: dict[int, str] = {}
    for positions, found in parts:
        index = np.asarray(positions, dtype=np.intp)
        for name, column in {"margin": found.margin, "tie": found.tie, **found.raw}.items():
            # A number has no negative zero here: it would be another text in an output than 0.
            values[name][index] = column + 0.0
        problems |= {int(index[place]): problem for place, problem in found.problems.items()}
    margin, tie = values.pop("margin"), values.pop("tie")
    return Evidence(margin, tie, problems, values)


def failed(scorer: Scorer, problem: str) -> Evidence:
    """The evidence of one pair that has none."""
    nothing = np.full(1, np.nan)
    return Evidence(nothing, nothing, {0: problem}, dict.fromkeys(scorer.raw_names, nothing))


def unforeseen(error: Exception) -> Problem:
    """The problem of a pair whose scorer raised an exception that nobody expected."""
    if isinstance(error, MemoryError):
        return Problem("needs more memory than there is", "unforeseen", about="MemoryError")
    about = type(error).__name__
    return Problem(f"cannot be scored: {about}: {printable(str(error))[:_MOST]}", "unforeseen", about=about)


def costs_money(scorer: Scorer) -> bool:
    """Whether a scorer, or one of its members, is paid for."""
    members = scorer.members()
    return any(map(costs_money, members)) if members else scorer.cost is Cost.PAID


def total_spent(scorer: Scorer) -> Spent:
    """What a scorer and its members took so far that are paid for."""
    whole = Spent()
    for each in scorer.members() or (scorer.bare(),):
        part = total_spent(each) if scorer.members() else each.spent
        if part is not None:
            whole.paid(part.requests, part.tokens_read, part.tokens_written, part.money)
    return whole


def read_pair(pair: Pair, budget: Budget, scorer: Scorer) -> tuple[Pair, Truncation]:
    """The part of `pair` that `budget` and then the scorer's own limit let through, and the report of it."""
    read, truncation = budget.read(scorer.taken(pair))
    if scorer.limit is not None:
        read, again = scorer.limit.read(read)
        kept = min(truncation.kept, again.kept)
        truncation = replace(truncation, kept=kept, turns_kept=again.turns_kept, literal=again.literal)
    return read, truncation


def fingerprint(folder: Path, scorer: Scorer | type[Scorer]) -> str:
    """SHA-256 over the scorer's files, names and contents."""
    digest = hashlib.sha256()
    for name in scorer.files:
        data = read_whole(folder / name)
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
