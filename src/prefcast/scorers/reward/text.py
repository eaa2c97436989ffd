"""From conversations to the token ids that a model scores.

Texts are untrusted: an answer may contain `<|im_end|>` and forge a turn. With `special_tokens="literal"` (the default)
only the template may write special tokens; those inside a text are read letter by letter. With "original" they are
parsed as special tokens, as the published code of most models does. Both give the same ids for a text without special
tokens. The token for an unknown character is none that controls anything: any text may have it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from prefcast.errors import ModelError, UsageError, excerpt
from prefcast.pairs import Pair, clean
from prefcast.scorers.patience import Patience, patterns_of, silent_stderr, trials

__all__ = ["Message", "TextEncoder", "checked", "conversations", "plain_tokens"]

SPECIAL_TOKENS = ("literal", "original")
_BARRED = re.compile(r"<\|.*\|>")
Message = Mapping[str, str]


def checked(conversation: Sequence[Message]) -> list[dict[str, str]]:
    """The messages of a conversation as plain dicts of clean text. Raises UsageError for other values."""
    if isinstance(conversation, Mapping | str) or not isinstance(conversation, Sequence) or not conversation:
        raise UsageError(
            f"a conversation is a list of messages like {{'role': 'user', 'content': 'Hi'}}, found {excerpt(conversation)}"
        )
    for message in conversation:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UsageError(f"a message needs the texts 'role' and 'content', found {excerpt(message)}")
    return [{"role": clean(message["role"]), "content": clean(message["content"])} for message in conversation]


def conversations(pair: Pair) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The two conversations of a pair as message lists: (A's, B's)."""
    if pair.tools is not None:
        return _with_tools(pair, pair.tools[0]), _with_tools(pair, pair.tools[1])
    a: list[dict[str, str]] = [{"role": "system", "content": pair.system}] if pair.system else []
    b = list(a)
    for turn in pair.turns:
        for messages, response in ((a, turn.response_a), (b, turn.response_b)):
            messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": response}]
    return a, b


def _with_tools(pair: Pair, messages: str) -> list[dict[str, Any]]:
    """Messages as templates expect them: the arguments of a call as an object, where their JSON is one."""
    found: list[dict[str, Any]] = json.loads(messages)
    for message in found:
        for call in message.get("tool_calls", ()):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                with suppress(ValueError, RecursionError):
                    parsed = json.loads(function["arguments"])
                    function["arguments"] = parsed if isinstance(parsed, dict) else function["arguments"]
    if pair.system and found[0]["role"] != "system":
        return [{"role": "system", "content": pair.system}, *found]
    return found


class TextEncoder:
    """Encodes texts with one model's tokenizer. It never truncates and never pads. Several threads may use it.

    Special are the tokens that the tokenizer calls so, those of the form <|...|>, and those in the source of the
    `template`. `read` names tokens that stay in a text although the template has them, since it looks for them there. `ends`
    names the tokens that begin and end texts.
    """

    def __init__(
        self,
        backend: Tokenizer,
        special_tokens: str = "literal",
        template: str = "",
        read: Collection[str] = (),
        ends: Collection[str] = (),
    ) -> None:
        if special_tokens not in SPECIAL_TOKENS:
            raise UsageError(f"unknown special_tokens {special_tokens!r}; there are {', '.join(SPECIAL_TOKENS)}")
        self.special_tokens = special_tokens
        special = {
            index: token
            for index, token in backend.get_added_tokens_decoder().items()
            if _controls(token, "" if token.content in read else template)
        }
        # Copies, because truncation and padding are switched off in them.
        self._parsing = Tokenizer.from_str(backend.to_str())
        data = json.loads(backend.to_str())
        self._patterns, self._patience = patterns_of(data), Patience()
        # An unknown character is read as the token for such, and that is no forgery.
        self._forbidden = frozenset(special) - _unknown(backend, data, template, ends)
        self._literal = _all_special(data, {token.content for token in special.values()})
        for tokenizer in (self._parsing, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._literal.encode_special_tokens = True
        # Two names that no text can guess stand for each special token. A mark replaces it in a text while a template is
        # rendered. A twin replaces it in the rendered template, and its id is then read as the special token's.
        secret = secrets.token_hex(8)
        self._marks = {token.content: f"\ue000{secret}{index}\ue001" for index, token in special.items()}
        twins = {token.content: f"\ue002{secret}{index}\ue003" for index, token in special.items()}
        self._literal.add_tokens(
            [
                AddedToken(
                    twins[token.content],
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=False,
                    special=False,
                )
                for token in special.values()
            ]
        )
        self._meant = {self._literal.token_to_id(twins[token.content]): index for index, token in special.items()}
        self._special = _any_of(self._marks)
        self._names = {mark: name for name, mark in self._marks.items()}
        self._rendered = twins | self._names
        self._in_rendered = _any_of(self._rendered)

    def protect(self, text: str) -> str:
        """An untrusted text in the form in which it goes into a template."""
        if self.special_tokens == "original":
            return text
        return self._special.sub(lambda match: self._marks[match.group()], text)

    def protect_all(self, value: Any) -> Any:
        """`value`, as JSON has it, with every text in it protected."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, list):
            return [self.protect_all(each) for each in value]
        return (
            {self.protect(name): self.protect_all(each) for name, each in value.items()}
            if isinstance(value, dict)
            else value
        )

    def has_special(self, text: str) -> bool:
        """Whether the name of a special token is in an untrusted text."""
        return self._special.search(text) is not None

    def shown(self, rendered: str) -> str:
        """A rendered template with the names of the special tokens in the place of their marks."""
        return self._in_rendered.sub(lambda match: self._names.get(match.group(), match.group()), rendered)

    def encode(self, rendered: str, *, frame: bool = False) -> list[int]:
        """The ids of a rendered template whose texts were protected.

        With `frame` the tokenizer's post-processor puts its special tokens around them.
        """
        if self.special_tokens == "original":
            return self._encoded(self._parsing, rendered, frame=frame).ids
        found = self._plain(self._in_rendered.sub(lambda match: self._rendered[match.group()], rendered))
        if frame:
            found = self._literal.post_process(found, add_special_tokens=True)
        return [self._meant.get(index, index) for index in found.ids]

    def parse(self, text: str, *, frame: bool = False) -> list[int]:
        """The ids of a text that is in the model's template already: special tokens in the text are parsed."""
        return self._encoded(self._parsing, text, frame=frame).ids

    def plainly(self, texts: Sequence[str], *, frame: bool = False) -> list[int]:
        """The ids of one text or two as any other program reads them, which parses special tokens inside them."""
        first, *second = texts
        item = (first, *second) if second else first
        size = sum(map(len, texts))
        return self._patience.of(size, lambda: self._parsing.encode_batch([item], add_special_tokens=frame)[0]).ids

    def encode_two(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids and token types of two texts, joined by the tokenizer's post-processor with its special tokens."""
        if self.special_tokens == "original":
            found = self._patience.of(
                len(first) + len(second), lambda: self._parsing.encode_batch([(first, second)])[0]
            )
        else:
            one, two = (self._plain(text) for text in (first, second))
            found = self._literal.post_process(one, two, add_special_tokens=True)
        return found.ids, found.type_ids

    def _encoded(self, tokenizer: Tokenizer, text: str, *, frame: bool = False) -> Encoding:
        # A batch of one: only a batch is read without Python's lock, so that the time can be watched.
        return self._patience.of(len(text), lambda: tokenizer.encode_batch([text], add_special_tokens=frame)[0])

    def try_out(self) -> None:
        """Raise UsageError if a regular expression of the tokenizer takes too long."""
        if self._patterns:
            with silent_stderr():
                for text in trials(self._patterns):
                    self._encoded(self._literal, text)

    def _plain(self, text: str) -> Encoding:
        """The encoding of a text without any special token.

        Where the vocabulary makes a special token of a piece of the text, the piece is read in two halves.
        """
        found = self._encoded(self._literal, text)
        for index, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if index in self._forbidden:
                if stop - start < 2:
                    raise UsageError(
                        f"{excerpt(text[start:stop])} can only be read as a special token (--special-tokens original)"
                    )
                middle = (start + stop) // 2
                return Encoding.merge([self._plain(text[:middle]), self._plain(text[middle:])], growing_offsets=True)
        return found

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text that is read literally begins and ends, in characters."""
        return self._encoded(self._literal, text).offsets

    def id_of(self, text: str) -> int:
        """The id of a text that is one token. Raises ModelError for a text that is not."""
        ids = self._encoded(self._parsing, text).ids
        if len(ids) != 1:
            raise ModelError(
                f"the tokenizer has no single token {text!r}; an A/B preference model needs the tokens A and B"
            )
        return ids[0]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the names; of two names at one place it finds the longer one."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _controls(token: AddedToken, template: str) -> bool:
    """Whether an added token is read as special: it is marked so, it has the form <|...|>, or the chat template has it."""
    content = token.content
    return bool(token.special or _BARRED.fullmatch(content) or (content.strip() and content in template))


def plain_tokens(backend: Tokenizer) -> list[str]:
    """The names of the added tokens that are special only if a template makes them so."""
    return [
        token.content
        for token in backend.get_added_tokens_decoder().values()
        if token.content.strip() and not _controls(token, "")
    ]


def _unknown(backend: Tokenizer, data: Mapping[str, Any], template: str, ends: Collection[str]) -> set[int]:
    """The id that the model gives to what is not in its vocabulary; empty where that token also controls something."""
    model, after = data["model"], json.dumps(data.get("post_processor"))
    name = model.get("unk_token")
    index = model.get("unk_id") if name is None else backend.token_to_id(name)
    name = backend.id_to_token(index) if isinstance(index, int) else None
    if index is None or name is None or name in ends or name in template or json.dumps(name) in after:
        return set()
    return {index}


def _all_special(data: Mapping[str, Any], names: set[str]) -> Tokenizer:
    """The tokenizer in which the tokens `names` are special: `encode_special_tokens` then applies to them."""
    for token in data["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    return Tokenizer.from_str(json.dumps(data))
