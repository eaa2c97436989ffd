"""A few requests that show whether a server's scores are the model's own: raw, of the whole text, in order, and repeatable.

What is found is a fault (such scores must not be used) or a doubt (they can be used, and a person should know). The texts of
the probe are ours; none of a person's rows is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ServiceError, excerpt
from prefcast.pairs import Pair
from prefcast.scorers.remote.protocols import Item, Vllm
from prefcast.scorers.remote.server import RefusedError, Server
from prefcast.scorers.remote.texts import Texts

__all__ = ["Finding", "Report", "probe"]

Scores = NDArray[np.float64]
# Float32 of two servers agrees to this, and a float32 sigmoid cannot be nearer to 0 or 1 than the numbers that it rounds to.
_SAME = 1e-5
# Identical texts give identical scores where a server works on one text at a time.
_EQUAL = 1e-9
# A score that another batch changes by more is worth a word.
_STABLE = 1e-3
_HIDDEN = 16
# The longest text that is tried: more would cost as much as many rows.
_LONGEST = 8192
_ALONE = 6
_LEFT, _RIGHT = "red", "blue"


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


def probe(server: Server, texts: Texts) -> Report:
    """Ask the server about 15 times. Raises ServiceError for one that cannot be reached or does not score at all."""
    report, asking = Report(), _Asking(server, texts)
    items = [item for pair in _pairs() for item in texts.items_of(pair)]
    rows = asking.first(items)
    width = len(rows[0])
    if width != texts.width:
        what = (
            "these are hidden states, no scores" if width > _HIDDEN else "--labels and config.json say how many it has"
        )
        report.found(
            "outputs",
            f"the server gives {width} numbers for a text, and {texts.width} are expected: {what}",
            f"start it as {server.protocol.start}, with --tokenizer of the same model",
        )
        return report
    outputs = np.array(rows)
    _look_at_scale(report, asking, items, outputs)
    # The scale may have found the switch that works.
    outputs = np.array(asking.all(items))
    _look_at_batches(report, asking, items, outputs)
    _look_at_labels(report, asking, texts)
    _look_at_tokens(report, asking, items, texts)
    _look_at_long_texts(report, asking, texts)
    return report


class _Asking:
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


# The scale


def _look_at_scale(report: Report, asking: _Asking, items: Sequence[Item], outputs: Scores) -> None:
    protocol = asking.protocol
    found = _squashed(outputs)
    if found is None and np.ptp(outputs) == 0:
        report.found(
            "scale", f"every text has the same score, {outputs.flat[0]:.6g}", f"start the server as {protocol.start}"
        )
        return
    if found is None:
        report.sound("scale", f"raw: scores from {outputs.min():.4g} to {outputs.max():.4g} over {len(outputs)} texts")
        return
    for switch in protocol.switches:
        protocol.switch = switch
        raw = np.array(asking.all(items))
        # Where the switch has an effect, what it gives is raw, wherever that lies.
        if np.abs(raw - np.array(asking.all(items, raw=False))).max() > _SAME and _squashed(raw) != _ONE_LABEL:
            told = "" if switch == protocol.switches[0] else f" (this version calls the field {switch})"
            report.sound("scale", f"raw: {switch} changes the scores{told}")
            return
    if protocol.switches:
        protocol.switch = protocol.switches[0]
    report.found("scale", found, _MENDS[protocol.name])


_ONE_LABEL = "every score is exactly 1: a softmax over one label"
_MENDS = {
    "vllm": "start vLLM with --pooler-config '{\"use_activation\": false}', or a version that knows use_activation; if the "
    "model's own scores lie so, --probe warn uses them",
    "sglang": "ask its native /classify of a model that ends without an activation; if the model's own scores lie so, --probe "
    "warn uses them",
    "tei": "use a version that knows raw_scores; if the model's own scores lie so, --probe warn uses them",
    "openrlhf": "take the sigmoid out of the server; if the model's own scores lie so, --probe warn uses them",
}


def _squashed(outputs: Scores) -> str | None:
    """Why scores (n, width) look like those of an activation; None where they do not."""
    if outputs.shape[1] == 1 and np.abs(outputs - 1).max() < _SAME:
        return _ONE_LABEL
    if outputs.min() < 0 or outputs.max() > 1:
        return None
    if outputs.shape[1] > 1 and np.abs(outputs.sum(1) - 1).max() < 1e-3:
        return "the scores of each text add up to 1: a softmax over the labels"
    return f"all {len(outputs)} scores lie between 0 and 1, as after a sigmoid"


# Batches


def _look_at_batches(report: Report, asking: _Asking, items: Sequence[Item], outputs: Scores) -> None:
    if asking.most == 1:
        report.sound("batch", "one text a request")
        return
    places = np.linspace(0, len(items) - 1, _ALONE).astype(int)
    alone = np.array([asking.one(items[place])[0] for place in places])
    off = np.abs(alone - outputs[places]).max(axis=1)
    spread = float(outputs.std()) or 1.0
    # A score alone that is another text's in the batch.
    nearest = np.array([np.abs(outputs - each).max(axis=1).min() for each in alone])
    moved = (off > 0.02 * spread) & (nearest < 0.1 * off)
    if moved.sum() >= 2 and moved.sum() >= (off > 0.02 * spread).sum() - 1:
        report.found(
            "order",
            "the answers of a request with several texts are not in the order of the texts",
            "--request-size 1 sends one text a request",
        )
        return
    report.sound("order", "answers come in the order of the texts")
    change = f"a text alone and among {min(asking.most, len(items))} differs by at most {off.max():.3g}"
    if off.max() > _STABLE:
        mend = "start vLLM with --max-num-seqs 1" if asking.protocol.name == "vllm" else "let the server batch one text"
        report.found("batch", f"scores depend on the batch: {change}", f"{mend} for scores that repeat", fault=False)
    else:
        report.sound("batch", change)


# Labels


def _look_at_labels(report: Report, asking: _Asking, texts: Texts) -> None:
    if texts.width == 1:
        return
    ours, theirs = texts.labels, asking.protocol.about.labels
    rows = [item for pair in _pairs() for item in texts.items_of(pair)]
    largest = [int(each.argmax()) for each in asking.all(rows)]
    named = {(place, label) for place, label in zip(largest, asking.labels, strict=False) if label is not None}
    if ours is None or (theirs is None and not named):
        report.sound("labels", "the server does not name its outputs; their order is that of config.json or --labels")
        return
    wrong = theirs is not None and theirs != ours
    said = list(theirs or ())
    if theirs is None:
        wrong = any(ours[place] != label for place, label in named)
        said = [f"{place}: {label}" for place, label in sorted(named)]
    if wrong:
        report.found(
            "labels",
            f"the server names its outputs {excerpt(said)}, the tokenizer's config.json names them {excerpt(list(ours))}",
            "name the served model's own folder with --tokenizer",
        )
    else:
        report.sound("labels", f"the server names its outputs as config.json does: {excerpt(list(ours))}")


# Tokens


def _look_at_tokens(report: Report, asking: _Asking, items: Sequence[Item], texts: Texts) -> None:
    item, protocol = items[0], asking.protocol
    sent = len(item.ids or ())
    told = asking.one(item)[1]
    if item.ids is None:
        _look_at_chat_tokens(report, asking, item)
    elif told is not None:
        _compare(report, told - sent, sent)
    elif protocol.name == "openrlhf":
        _look_at_silent_tokens(report, asking, item, texts)
    else:
        report.sound("tokens", "the server does not say how many tokens it reads")
    if protocol.name == "tei" and len(item.texts) == 1:
        _compare_ids(report, asking.server, item)


_FIRST_MEND = {
    True: "add_special_tokens must be false in the server's tokenizer call, because the text begins with that token already",
    False: "name the served model's own folder with --tokenizer",
}


def _compare(report: Report, more: int, sent: int) -> None:
    if more > 0:
        report.found(
            "tokens",
            f"the server adds {more} token(s) to the {sent} that were sent: a second first token",
            _FIRST_MEND[True],
        )
    elif more < 0:
        report.found(
            "cut", f"the server reads {sent + more} of {sent} tokens of a short text", "--max-tokens sends fewer"
        )
    else:
        report.sound("tokens", f"the server reads the {sent} tokens that were sent, none is added")


def _compare_ids(report: Report, server: Server, item: Item) -> None:
    said = server.get("POST", "/tokenize", {"inputs": item.texts[0], "add_special_tokens": True})
    rows = said[0] if isinstance(said, list) and said and isinstance(said[0], list) else None
    if rows is None or not all(isinstance(each, dict) and isinstance(each.get("id"), int) for each in rows):
        return
    ids, meant = [each["id"] for each in rows], list(item.ids or ())
    if ids == meant:
        report.sound("tokenizer", f"the server makes the same {len(ids)} tokens of a text")
    elif ids[1:] == meant or ids == [meant[0], *meant]:
        report.found("tokens", "the server puts a second first token before the text", _FIRST_MEND[True])
    else:
        report.found("tokenizer", "the server makes other tokens of a text than the tokenizer here", _FIRST_MEND[False])


def _look_at_chat_tokens(report: Report, asking: _Asking, item: Item) -> None:
    body = {
        "model": asking.protocol.about.model,
        "messages": [dict(each) for each in item.messages],
        "add_special_tokens": False,
        "add_generation_prompt": False,
    }
    said = asking.server.get("POST", "/tokenize", body)
    tokens = said.get("tokens") if isinstance(said, dict) else None
    if not isinstance(tokens, list) or len(tokens) < 2:
        report.sound("tokens", "the server makes the text itself, and does not show its tokens")
    elif tokens[0] == tokens[1]:
        report.found(
            "tokens", "the server's chat template gives a second first token", "mend the chat template of the server"
        )
    else:
        report.sound("tokens", f"the server makes {len(tokens)} tokens of a conversation, with one first token")


def _look_at_silent_tokens(report: Report, asking: _Asking, item: Item, texts: Texts) -> None:
    """A server that tells nothing: an empty text has a score only where the server adds tokens of its own."""
    first, last = texts.ends
    text = item.texts[0]
    if first is not None and text.startswith(first) and not isinstance(asking.perhaps(Item(texts=("",))), str):
        report.found(
            "tokens",
            "the server scores an empty text, so it adds a token of its own: a second first token",
            _FIRST_MEND[True],
            fault=False,
        )
        return
    if last is not None and not text.rstrip().endswith(last):
        plain, ended = asking.one(item)[0], asking.perhaps(Item(texts=(text + last,)))
        if not isinstance(ended, str) and np.abs(plain - ended).max() <= _EQUAL:
            report.found(
                "tokens",
                f"the server puts {excerpt(last)} behind a text that does not end so; such a text is not the model's own",
                "use a server that reads texts as they are, or a template that ends so (--template)",
                fault=False,
            )
            return
    report.sound("tokens", "nothing shows that the server adds tokens")


# Long texts


def _look_at_long_texts(report: Report, asking: _Asking, texts: Texts) -> None:
    """Two long texts that differ only at one end have two scores, unless that end is cut off."""
    limit = min(texts.max_tokens or asking.protocol.about.limit or 2048, _LONGEST)
    item, make = _long(texts, limit)
    try:
        whole, told = asking.one(item)
    except RefusedError as error:
        report.sound("long texts", f"a text that is too long is refused: {excerpt(error.said, 100)}")
        return
    tokens = len(item.ids) if item.ids is not None else None
    shown = f"{tokens:,} tokens" if tokens is not None else "several thousand characters"
    if told is not None and tokens is not None:
        if told < tokens:
            report.found(
                "cut",
                f"the server reads {told:,} of {tokens:,} tokens of a long text, without a word",
                f"switch truncation off in the server, or --max-tokens {told}",
            )
        else:
            report.sound("long texts", f"a text of {shown} is read whole")
        return
    for where, other in (("end", make(_LEFT, _RIGHT)), ("beginning", make(_RIGHT, _LEFT))):
        if np.abs(asking.one(other)[0] - whole).max() <= _EQUAL * max(1.0, float(np.abs(whole).max())):
            report.found(
                "cut",
                f"two texts of {shown} that differ only at their {where} have the same score: the server cuts the {where} off",
                "raise the server's longest text, or send shorter ones with --max-tokens",
            )
            return
    report.sound("long texts", f"a text of {shown} is read whole")


def _long(texts: Texts, limit: int) -> tuple[Item, Callable[[str, str], Item]]:
    """An item that has almost `limit` tokens, and what makes it with other first and last words."""

    def made(count: int, first: str = _LEFT, last: str = _LEFT) -> Item:
        # Numbers: a text that repeats itself could have the score of a shorter one.
        middle = " ".join(f"word {number}" for number in range(count))
        answer = f"{middle} the last word is {last}"
        return texts.items_of(Pair.of(f"The first word is {first}. Go on.", answer, answer, reference=answer))[0]

    def size(item: Item) -> int:
        return (
            len(item.ids) if item.ids is not None else 3 * sum(len(each["content"].split()) for each in item.messages)
        )

    count = max(1, limit // 4)
    while count > 1 and size(made(count)) > limit - 8:
        count = min(count - 1, int(count * 0.98 * (limit - 8) / size(made(count))))
    return made(max(count, 1)), lambda first, last: made(max(count, 1), first, last)


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
