"""The scorer `judge`: a language model behind an API that reads both answers in both orders.

Each verdict is in the evidence store as soon as it came, so that nothing is paid for twice, however a run ends.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import numpy as np

from prefcast.base.files import read_whole
from prefcast.base.http import Answer, Connection, Retrying, read_key
from prefcast.errors import ForecasterError, PrefcastError, ResourceError, ServiceError, UsageError, excerpt, printable
from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Cost, Evidence, Meter, Part, Problem, Scorer, Spent, failed, unforeseen
from prefcast.scorers.judge import APIS, FILES, PREFIX, Options
from prefcast.scorers.judge.forms import Ask, Form, NoLogprobsError, Reply, form_of
from prefcast.scorers.judge.known import is_known, remember
from prefcast.scorers.judge.questions import Question, Rubric, read_rubric
from prefcast.scorers.judge.spending import Purse, parse_price
from prefcast.scorers.judge.verdicts import RAW, NoVerdict, Verdict, evidence_of, packed, unpacked
from prefcast.scorers.options import given_values, saved_options, to_save, which
from prefcast.scorers.store import EvidenceStore

__all__ = ["JudgeScorer", "judge_of"]

_FORMAT = 1
# Raise it when the evidence of the same verdicts changes.
_EVIDENCE = 1
# What a server says when it has no room, or is at fault itself. 529 is Anthropic's.
_AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)
_MOST_BYTES = 4_000_000
# A verdict that is drawn may come after some thoughts.
_MOST_SAMPLED, _MOST_LETTER = 1024, 1
# If the first so many requests are refused, the settings are at fault, not the rows.
_REFUSED_FIRST = 3
# If none of the first so many replies has a verdict, money would be spent on nothing.
_WASTED_FIRST = 20
# Words of a refusal that is about the length of this row.
_LONG = ("context length", "context window", "prompt is too long", "input is too long", "input token")
_HERE = ("127.0.0.1", "localhost", "::1")
_PROBLEMS = {
    "refusal": "the judge refused to give a verdict",
    "unreadable": "the judge's reply has no verdict that can be read",
}


@dataclass(frozen=True)
class _Kept:
    """Where verdicts are kept. With `fresh` none is taken from there."""

    store: EvidenceStore
    fresh: bool


class JudgeScorer(Scorer):
    """Evidence from the verdicts of the judge `model` at `address`.

    The margin is half the difference of the log-odds of the two orders, so that a judge that always prefers what it reads
    first has margin 0; `position` is half their sum. `margin_a` and `margin_b` are the log-odds for A where A and where B
    is read first, `uncovered` is the mean probability of replies that are no verdict. `named`: a person named the address
    now; otherwise a folder did, which may come from a stranger. Raises UsageError.
    """

    name: ClassVar[str] = "judge"
    files: ClassVar[tuple[str, ...]] = FILES
    cost = Cost.PAID
    may_lie_elsewhere = True
    # The budget and the price are this run's; another process would not know what was spent.
    portable = False
    takes_system = True
    # While the last pairs of a piece are waited for, the next piece is under way.
    workers = 2
    raw_names = RAW

    def __init__(self, address: str, model: str, options: Options, rubric: Rubric, *, named: bool = True) -> None:
        if options.judge_api not in APIS:
            raise UsageError(f"--judge-api is {excerpt(options.judge_api)}; there are {', '.join(APIS)}")
        if not model or len(model) > 200 or not model.isprintable():
            raise UsageError(f"{excerpt(model)} is not the name of a judge's model")
        self.address, self.options, self.rubric = address, options, rubric
        self.model = self.judge = model
        self._form: Form = form_of(options.judge_api)
        if options.judge_choice and not self._form.choice:
            raise UsageError(f"the API {options.judge_api} cannot be told which replies are allowed: --judge-choice")
        repeats = self._form.repeats if options.judge_repeats is None else options.judge_repeats
        if repeats == 0 and self._form.repeats:
            raise UsageError(f"the API {options.judge_api} has no log probabilities: --judge-repeats must be 1 or more")
        self.sampled, self._repeats = repeats > 0, max(1, repeats)
        self._most = options.judge_tokens or (_MOST_SAMPLED if self.sampled else _MOST_LETTER)
        self._purse = Purse(parse_price(options.price), options.budget_money, options.budget_tokens)
        self._named = named
        self.spent: Spent = Spent()
        self._kept: _Kept | None = None
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._connection: Connection | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._key: str | None = None
        self._answered = self._refused = self._read = self._wasted = 0
        _check_address(address)

    # Evidence

    def keep_parts(self, store: EvidenceStore, *, fresh: bool = False) -> None:
        self._kept = _Kept(store, fresh)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        if not pairs:
            return
        threads = self._connected()
        tasks: dict[Future[Evidence], int] = {
            threads.submit(self._judged, pair, meter): place for place, pair in enumerate(pairs)
        }
        try:
            for task in as_completed(tasks):
                found = task.result()
                meter.advance(1)
                yield [tasks[task]], found
        finally:
            for task in tasks:
                task.cancel()

    def _judged(self, pair: Pair, meter: Meter) -> Evidence:
        """The evidence of one pair."""
        try:
            orders: list[list[Verdict]] = []
            asked: Question | None = None
            for turned in (False, True):
                question = self.rubric.ask(pair, turned=turned, sampled=self.sampled)
                # Equal answers make one question of both orders.
                if question != asked:
                    orders.append(self._verdicts(question, meter))
                asked = question
            margin, tie, raw = evidence_of(orders[0], orders[-1])
        except PrefcastError:
            raise
        except _NoEvidenceError as error:
            return failed(self, error.problem)
        except Exception as error:  # whatever a reply does, the other pairs are to be judged
            return failed(self, unforeseen(error))
        named = {name: np.array([value]) for name, value in zip(RAW, raw, strict=True)}
        return Evidence(np.array([margin]), np.array([tie]), {}, named)

    def _verdicts(self, question: Question, meter: Meter) -> list[Verdict]:
        """The verdicts on a question. Raises _NoEvidenceError if no reply has one."""
        found = [self._verdict(question, number, meter) for number in range(self._repeats)]
        good = [each for each in found if isinstance(each, Verdict)]
        if good:
            return good
        kind = next(each.kind for each in found if isinstance(each, NoVerdict))
        more = f" ({len(found)} replies)" if self.sampled else ""
        raise _NoEvidenceError(f"{_PROBLEMS[kind]}{more}")

    def _verdict(self, question: Question, number: int, meter: Meter) -> Verdict | NoVerdict:
        """What the judge replied to the request with this number, now or before."""
        options = self.options
        seed = None if options.judge_seed is None else options.judge_seed + number
        ask = Ask(question, self.model, self.sampled, self._most, options.judge_temperature, seed, options.judge_choice)
        path, said = self._form.path(self.model), self._form.body(ask)
        body = json.dumps(said, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
        where = json.dumps([self.name, options.judge_api, self._form.version, self.address, path, number]).encode()
        key = hashlib.blake2b(where + b"\0" + body, digest_size=16).digest()
        if self._kept and not self._kept.fresh and (known := unpacked(self._kept.store.get([key]).get(key, b""))):
            return known
        reply, money = self._asked(path, body, ask)
        if self._kept:
            self._kept.store.put([(key, packed(reply.found))])
        meter.paid(1, read=reply.read, written=reply.written, money=money)
        self.spent.paid(1, reply.read, reply.written, money)
        self._check_worth(reply.found)
        return reply.found

    def _check_worth(self, found: Verdict | NoVerdict) -> None:
        """Raise UsageError if the first replies hold no verdict, all of them."""
        with self._lock:
            self._read += isinstance(found, Verdict)
            self._wasted += isinstance(found, NoVerdict) and found.kind == "unreadable"
            wasted = not self._read and self._wasted >= _WASTED_FIRST
        if wasted:
            more = "" if self.sampled else "; a model that thinks first needs --judge-repeats N, where it is counted"
            raise UsageError(
                f"none of the first {_WASTED_FIRST} replies of the judge has a verdict that can be read{more}"
            )

    # Requests

    def _connected(self) -> ThreadPoolExecutor:
        """The threads that ask; the connection is made with the first."""
        with self._lock:
            if self._threads is None or self._connection is None:
                # A scorer that was closed may be used again.
                self._stopped = threading.Event()
                options = self.options
                parts = urlsplit(self.address)
                if self._named:
                    remember(self.address, options.judge_api)
                elif parts.hostname not in _HERE and not is_known(self.address, options.judge_api):
                    raise UsageError(
                        f"the forecaster asks a judge at {printable(self.address)}, an address that nobody named on this machine; if "
                        f"the texts may go there, name it: --judge {printable(self.address)}"
                    )
                self._key = read_key(options.key_env, options.key_file, self._form.key)
                self._connection = Connection(
                    self.address,
                    self._form.headers(self._key),
                    Retrying(options.retries, options.wait, options.timeout, _AGAIN),
                    most_bytes=_MOST_BYTES,
                    connections=options.concurrency,
                    proxies=True,
                    sleep=self._sleep,
                )
                self._threads = ThreadPoolExecutor(options.concurrency, thread_name_prefix="prefcast-judge")
            return self._threads

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise ServiceError("the run was stopped")

    def _asked(self, path: str, body: bytes, ask: Ask) -> tuple[Reply, float]:
        """The reply to a request, and its money."""
        try:
            reserved = self._purse.reserve(len(body), ask.most)
        except ResourceError as error:
            kept = "every verdict is kept" if self._kept else "nothing is kept without an evidence store"
            raise ResourceError(f"{error}; {kept}: give the same command with a larger budget to go on") from None
        read = written = 0
        money = 0.0
        try:
            connection = self._connection
            if self._stopped.is_set() or connection is None:
                raise ServiceError("the run was stopped")
            reply = self._meant(connection.ask("POST", path, body), ask)
            read, written = reply.read, reply.written
        finally:
            money = self._purse.settle(reserved, read, written)
        return reply, money

    def _meant(self, answer: Answer, ask: Ask) -> Reply:
        """The meaning of an answer. Raises PrefcastError for a fault of the server or the settings, _NoEvidenceError
        for one of the row."""
        try:
            said: Any = json.loads(answer.body)
        except (ValueError, RecursionError):
            said = None
        if answer.status == 200:
            try:
                reply = self._form.read(said, ask)
            except NoLogprobsError:
                raise UsageError(self._without_logprobs("")) from None
            except ServiceError as error:
                raise ServiceError(f"{printable(self.address)}: {error}", answer.status) from None
            self._answered += 1
            return reply
        words = self._form.problem(said)
        if self._key:
            # A server may repeat what it was sent.
            words = words.replace(self._key, "***")
        if answer.status in (400, 413, 422) and "api key" not in words.lower():
            if "logprob" in words.lower() and not ask.sampled:
                raise UsageError(self._without_logprobs(words))
            self._refused += 1
            row = answer.status == 413 or any(each in words.lower() for each in _LONG)
            if row or self._answered or self._refused < _REFUSED_FIRST:
                raise _NoEvidenceError(f"the judge's server refused the request: {answer.status} {words}".rstrip())
        raise ServiceError(f"{printable(self.address)}: {answer.status} {words}".rstrip(), answer.status)

    def _without_logprobs(self, words: str) -> str:
        said = f" ({words})" if words else ""
        return (
            f"the judge {printable(self.model)} gives no log probabilities{said}; count its verdicts instead: "
            "--judge-repeats N (a model that thinks first may need --judge-tokens too)"
        )

    def close(self) -> None:
        self._stopped.set()
        with self._lock:
            threads, connection = self._threads, self._connection
            self._threads = self._connection = None
        if threads is not None:
            # What was sent is paid for: its verdicts are waited for, and kept. The threads may need the lock.
            threads.shutdown(cancel_futures=True)
        if connection is not None:
            connection.close()

    # Saving

    def identity(self) -> str:
        options = {**to_save(self.options), "judge_model": self.model, "judge_repeats": self._repeats * self.sampled}
        options["judge_tokens"] = self._most
        said = [_EVIDENCE, self._form.version, self.address, self.rubric.source, sorted(options.items()), RAW]
        return hashlib.sha256(json.dumps(said).encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, folder: Path) -> None:
        options = {**to_save(self.options), "judge_model": self.model}
        data = {"format": _FORMAT, "address": self.address, "options": options}
        (folder / FILES[0]).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (folder / FILES[1]).write_text(self.rubric.source, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        path = folder / FILES[0]
        data = json.loads(read_whole(path).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{path}: format {data['format']!r} is not one that this version reads")
        options = saved_options(Options, data["options"], str(path))
        address, model = data["address"], options.judge_model
        if not isinstance(address, str) or model is None:
            raise ForecasterError(f"{path}: damaged: it names no judge")
        if moved is not None:
            address, named = _parts(moved)
            if named not in (None, model):
                raise UsageError(f"the forecaster was fitted to the judge {model}, not to {printable(str(named))}")
        rubric = Rubric(read_whole(folder / FILES[1]).decode(), str(folder / FILES[1]))
        return cls(address, model, options, rubric, named=moved is not None)

    def with_options(self, options: Any) -> Scorer:
        values: Mapping[str, Any] = given_values(options)
        known = which(Options)
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"a judge has no option --{name.replace('_', '-')}")
            if (known[name].saved or name == "rubric") and value != getattr(self.options, name):
                raise UsageError(
                    f"--{name.replace('_', '-')}: the outcome model was fitted to other verdicts; fit anew"
                )
        changed = replace(self.options, **values)
        return JudgeScorer(self.address, self.model, changed, self.rubric, named=self._named)


class _NoEvidenceError(Exception):
    """A row without evidence."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = Problem(problem)


def judge_of(model: str, options: Options) -> JudgeScorer:
    """The judge called `judge:ADDRESS` or `judge:ADDRESS#MODEL`. Raises UsageError."""
    address, named = _parts(model)
    name = named or options.judge_model
    if name is None:
        raise UsageError("a judge needs the name of its model: --judge-model NAME")
    return JudgeScorer(address, name, options, read_rubric(options.rubric))


def _parts(model: str) -> tuple[str, str | None]:
    """The address and the model that the name of a judge holds."""
    if not model.startswith(PREFIX):
        raise UsageError(f"{excerpt(model)} is not the name of a judge; expected judge:ADDRESS")
    address, _, named = model.removeprefix(PREFIX).partition("#")
    return address.rstrip("/"), named or None


def _check_address(address: str) -> None:
    """Raise UsageError for what is no address, before anything is asked."""
    Connection(address, {}, Retrying()).close()
