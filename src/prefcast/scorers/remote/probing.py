"""What every part of the probe uses: its texts, its questions to the server, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ServiceError, UsageError
from prefcast.pairs import Pair
from prefcast.scorers.remote.protocols import Item, Vllm
from prefcast.scorers.remote.server import RefusedError, Server
from prefcast.scorers.remote.texts import Texts

__all__ = ["EQUAL", "Asking", "Finding", "Report", "probe_items"]

Scores = NDArray[np.float64]
# Identical texts give identical scores where a server works on one text at a time.
EQUAL = 1e-9


@dataclass(frozen=True)
class Finding:
    """What was found: its `kind` in a word, the fact, what mends it, and whether it is a fault or a doubt."""

    kind: str
    fact: str
    mend: str
    fault: bool = True

    @property
    def line(self) -> str:
        """The finding as one line."""
        return f"{self.fact}; {self.mend}"


@dataclass
class Report:
    """What a probe found, and what it looked at: (subject, result)."""

    findings: list[Finding] = field(default_factory=list)
    looked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """The findings for which a server is refused."""
        return [each for each in self.findings if each.fault]

    def found(self, kind: str, fact: str, mend: str, *, fault: bool = True) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, fact, mend, fault))
        self.looked.append((kind, fact))

    def sound(self, kind: str, fact: str) -> None:
        """Add what is as it should be."""
        self.looked.append((kind, fact))


class Asking:
    """Asks for the scores of items, as many a request as the server takes."""

    def __init__(self, server: Server, texts: Texts) -> None:
        self.server, self.protocol = server, server.introduced()
        self.most = 1 if texts.alone else self.protocol.most
        self.labels: list[str | None] = []
        self.largest: list[int] = []

    def first(self, items: Sequence[Item]) -> list[Scores]:
        """As `all`; of vLLM it finds whether the model is one that has a score for each token."""
        try:
            return self.all(items)
        except (RefusedError, ServiceError) as error:
            tokenwise = isinstance(self.protocol, Vllm) and not items[0].messages
            if not tokenwise or not (isinstance(error, RefusedError) or error.status in (404, 405)):
                raise self._dead(error) from None
            assert isinstance(self.protocol, Vllm)  # noqa: S101
            self.protocol.tokenwise = True
            try:
                return self.all(items)
            except (RefusedError, ServiceError):
                self.protocol.tokenwise = False
                raise self._dead(error) from None

    def _dead(self, error: RefusedError | ServiceError) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        return ServiceError(
            f"{self.server.shown}: refuses a plain text ({error.said}); start it as {self.protocol.start}", 400
        )

    def all(self, items: Sequence[Item], *, raw: bool = True) -> list[Scores]:
        """The outputs of each item."""
        found: list[Scores] = []
        self.labels = []
        for start in range(0, len(items), self.most):
            reply = self.server.reply(items[start : start + self.most], raw=raw)
            found += reply.outputs
            self.labels += reply.labels
        return found

    def one(self, item: Item) -> tuple[Scores, int | None]:
        """The outputs of one item in a request of its own, and how many tokens the server read."""
        reply = self.server.reply([item])
        return reply.outputs[0], reply.tokens

    def perhaps(self, item: Item) -> Scores | str:
        """The outputs of one item, or why the server gives none."""
        try:
            return self.one(item)[0]
        except RefusedError as error:
            return error.said
        except ServiceError as error:
            if error.status in (0, 401, 403):
                raise
            return error.problem


def probe_items(texts: Texts) -> list[Item]:
    """The items of the short texts. Raises UsageError where none can be read."""
    rows, problems = texts.items(_pairs())
    if not rows:
        raise UsageError(f"the probe's own texts cannot be read: {problems[0]}")
    return [item for items in rows.values() for item in items]


def _pairs() -> list[Pair]:
    """Pairs of many kinds, so that raw scores differ much."""
    several = [
        ("What is 2 + 2?", "4", "Five, I think."),
        ("Why is the sky blue?", "Because air scatters blue light more than red light.", "No idea."),
        (
            "Write a haiku about rain.",
            "Rain on the tin roof / a drum that no hand touches / the night keeps the time",
            "rain rain rain",
        ),
        ("Translate 'good morning' into French.", "Bonjour.", "Buenos días."),
        (
            "How do I boil an egg?",
            "Put it into boiling water for eight minutes, then into cold water.",
            "You are stupid.",
        ),
        ("Name three primes.", "- 2\n- 3\n- 5", "1, 4 and 9"),
        ("print hello in Python", "```python\nprint('hello')\n```", '```c\nputs("hello");\n```'),
        ("你好吗?", "我很好,谢谢你。", "asdf qwer zxcv"),
        ("Is the earth flat?", "No. It is an ellipsoid, a little flatter at the poles.", "YES!!! WAKE UP!!!"),
        ("Say yes.", "Yes.", "I am sorry, but I cannot help with that."),
        ("Sum up the plot of Hamlet.", "A prince avenges his father, and nearly everybody dies.", "0"),
        ("Give me a synonym of happy.", "Glad", "happy happy happy happy happy happy happy happy"),
    ]
    return [replace(Pair.of(*each), reference=each[1]) for each in several]
