"""The part of the probe that looks at what a server reads: no token more, and none less."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from prefcast.errors import ModelError, UsageError, excerpt
from prefcast.pairs import Pair
from prefcast.scorers.remote.probing import EQUAL, Asking, Report
from prefcast.scorers.remote.protocols import Item
from prefcast.scorers.remote.server import RefusedError, Server
from prefcast.scorers.remote.texts import Texts

__all__ = ["look_at_long_texts", "look_at_tokens"]

# The longest text that is tried: more would cost as much as many rows.
_LONGEST = 8192
# Tokens that a long text has less than the limit, because its last words may have more tokens than others.
_SPARE = 8
_LEFT, _RIGHT = "red", "blue"


def look_at_tokens(report: Report, asking: Asking, items: Sequence[Item], texts: Texts) -> None:
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


def _look_at_chat_tokens(report: Report, asking: Asking, item: Item) -> None:
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


def _look_at_silent_tokens(report: Report, asking: Asking, item: Item, texts: Texts) -> None:
    """A server that tells nothing: an empty text has a score only where the server adds tokens of its own."""
    first, last = texts.ends
    text = item.texts[0]
    if last is not None and not text.rstrip().endswith(last):
        plain, ended = asking.one(item)[0], asking.perhaps(Item(texts=(text + last,)))
        if not isinstance(ended, str) and np.abs(plain - ended).max() <= EQUAL:
            report.found(
                "tokens",
                f"the server puts {excerpt(last)} behind a text that does not end so; such a text is not the model's own",
                "use a server that reads texts as they are, or a template that ends so (--template)",
                fault=False,
            )
            return
    if first is not None and text.startswith(first) and not isinstance(asking.perhaps(Item(texts=("",))), str):
        report.found(
            "tokens",
            "the server scores an empty text, so it adds a token of its own: a second first token",
            _FIRST_MEND[True],
            fault=False,
        )
        return
    report.sound("tokens", "nothing shows that the server adds tokens")


# Long texts


def look_at_long_texts(report: Report, asking: Asking, texts: Texts) -> None:
    """Two long texts that differ only at one end have two scores, unless that end is cut off."""
    limit = min(texts.max_tokens or asking.protocol.about.limit or 2048, _LONGEST)
    try:
        item, make = _long(texts, limit)
    except UsageError:
        report.sound("long texts", f"not tried: a text with any content has more than {limit} tokens")
        return
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
        if np.abs(asking.one(other)[0] - whole).max() <= EQUAL * max(1.0, float(np.abs(whole).max())):
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

    def size(count: int) -> float:
        try:
            item = made(count)
        except (UsageError, ModelError):  # too long
            return math.inf
        return (
            len(item.ids) if item.ids is not None else 3 * sum(len(each["content"].split()) for each in item.messages)
        )

    few, more = 1, max(2, limit // 32)
    step = (size(more) - size(few)) / (more - few)
    count = few if not math.isfinite(step) else max(few, int((limit - _SPARE - size(few)) / step))
    while count > few and size(count) > limit - _SPARE:
        count = max(few, min(count - 1, int(count * 0.97)))
    return made(count), lambda first, last: made(count, first, last)
