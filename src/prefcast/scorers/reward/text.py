"""From conversations to the token ids that a model scores.

Texts are untrusted: an answer may contain `<|im_end|>` and forge a turn. With `special_tokens="literal"` (the default)
only the template may write special tokens; those inside a text are read letter by letter. With "original" they are
parsed as special tokens, as the published code of most models does. Both give the same ids for a text without special
tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Encoding, Tokenizer

from prefcast.errors import ModelError, UsageError, excerpt, shown_path
from prefcast.pairs import Turn, clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Message", "PairTemplate", "TextEncoder", "checked", "conversations", "known_templates", "pair_template"]

SPECIAL_TOKENS = ("literal", "original")
Message = Mapping[str, str]
_TEMPLATES = Path(__file__).parent / "templates"


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


def conversations(turns: Sequence[Turn]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The two conversations of a pair as message lists: (A's, B's)."""
    a: list[dict[str, str]] = []
    b: list[dict[str, str]] = []
    for turn in turns:
        for messages, response in ((a, turn.response_a), (b, turn.response_b)):
            messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": response}]
    return a, b


class TextEncoder:
    """Encodes texts with one model's tokenizer. It never truncates and never pads. Several threads may use it."""

    def __init__(self, backend: Tokenizer, special_tokens: str = "literal", template: object = None) -> None:
        if special_tokens not in SPECIAL_TOKENS:
            raise UsageError(f"unknown special_tokens {special_tokens!r}; there are {', '.join(SPECIAL_TOKENS)}")
        self.special_tokens = special_tokens
        special = {
            index: token for index, token in backend.get_added_tokens_decoder().items() if _controls(token, template)
        }
        # Copies, because truncation and padding are switched off in them.
        self._parsing = Tokenizer.from_str(backend.to_str())
        self._literal = _all_special(backend, {token.content for token in special.values()})
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
        self._forbidden = frozenset(special)
        self._meant = {self._literal.token_to_id(twins[token.content]): index for index, token in special.items()}
        self._special = _any_of(self._marks)
        self._rendered = twins | {mark: name for name, mark in self._marks.items()}
        self._in_rendered = _any_of(self._rendered)

    def protect(self, text: str) -> str:
        """An untrusted text in the form in which it goes into a template."""
        if self.special_tokens == "original":
            return text
        return self._special.sub(lambda match: self._marks[match.group()], text)

    def encode(self, rendered: str, *, frame: bool = False) -> list[int]:
        """The ids of a rendered template whose texts were protected.

        With `frame` the tokenizer's post-processor puts its special tokens around them.
        """
        if self.special_tokens == "original":
            return self._parsing.encode(rendered, add_special_tokens=frame).ids
        found = self._plain(self._in_rendered.sub(lambda match: self._rendered[match.group()], rendered))
        if frame:
            found = self._literal.post_process(found, add_special_tokens=True)
        return [self._meant.get(index, index) for index in found.ids]

    def encode_two(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids and token types of two texts, joined by the tokenizer's post-processor with its special tokens."""
        if self.special_tokens == "original":
            found = self._parsing.encode(first, second, add_special_tokens=True)
        else:
            one, two = (self._plain(text) for text in (first, second))
            found = self._literal.post_process(one, two, add_special_tokens=True)
        return found.ids, found.type_ids

    def _plain(self, text: str) -> Encoding:
        """The encoding of a text without any special token.

        Where the vocabulary makes a special token of a piece of the text, the piece is read in two halves.
        """
        found = self._literal.encode(text, add_special_tokens=False)
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
        return self._literal.encode(text, add_special_tokens=False).offsets

    def id_of(self, text: str) -> int:
        """The id of a text that is one token. Raises ModelError for a text that is not."""
        ids = self._parsing.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ModelError(
                f"the tokenizer has no single token {text!r}; an A/B preference model needs the tokens A and B"
            )
        return ids[0]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the names; of two names at one place it finds the longer one."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _controls(token: AddedToken, template: object) -> bool:
    """Whether an added token is read as special: it is marked so, it has the form <|...|>, or the chat template has it."""
    content = token.content
    return bool(
        token.special or re.fullmatch(r"<\|.*\|>", content) or (content.strip() and content in str(template or ""))
    )


def _all_special(backend: Tokenizer, names: set[str]) -> Tokenizer:
    """A copy of the tokenizer in which the tokens `names` are special: `encode_special_tokens` then applies to them."""
    data = json.loads(backend.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    return Tokenizer.from_str(json.dumps(data))


class PairTemplate:
    """A Jinja template that puts a prompt and both responses into one text. It runs in a sandbox.

    Its variables are `turns` (with prompt, response_a, response_b), `prompts`, `responses_a`, `responses_b`,
    `bos_token`, `eos_token` and `add_eos_token`. Its function `chat(text)` makes a user message of a text with the
    model's chat template; `bos=false` leaves out the first token.
    """

    def __init__(self, name: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.source = name, source
        self._tokenizer = tokenizer
        # The tokenizer of an encoder puts its own tokens around a text; the template must not write them.
        self.frame = getattr(tokenizer, "cls_token", None) is not None
        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, MemoryError) as error:
            raise UsageError(f"template {name}: {excerpt(str(error) or type(error).__name__, 200)}") from None

    def render(self, turns: Sequence[Turn], reader: TextEncoder) -> str:
        """The text of the turns. Raises UsageError if the template fails."""
        safe = [Turn(*map(reader.protect, (turn.prompt, turn.response_a, turn.response_b))) for turn in turns]
        try:
            return self._template.render(
                turns=safe,
                prompts=[turn.prompt for turn in safe],
                responses_a=[turn.response_a for turn in safe],
                responses_b=[turn.response_b for turn in safe],
                bos_token="" if self.frame else self._tokenizer.bos_token or "",
                eos_token="" if self.frame else self._tokenizer.eos_token or "",
                add_eos_token=bool(getattr(self._tokenizer, "add_eos_token", False)),
                chat=self._chat,
            )
        except Exception as error:
            # A template is a program of the checkpoint: it may raise any exception.
            raise UsageError(f"template {self.name}: {excerpt(str(error) or type(error).__name__, 200)}") from None

    def _chat(self, text: str, bos: bool = True) -> str:
        if not self._tokenizer.chat_template:
            return text
        messages = [{"role": "user", "content": text}]
        rendered = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        first = self._tokenizer.bos_token
        return rendered.replace(first, "") if first and not bos else rendered


def known_templates() -> list[str]:
    """The names of the templates for both answers of a pair."""
    return sorted(each.stem for each in _TEMPLATES.glob("*.jinja"))


def pair_template(template: str | Path | None, default: str, tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
    """The template with the name or in the file `template`, or the default. Raises UsageError."""
    name = str(template or default)
    path = _TEMPLATES / f"{name}.jinja" if re.fullmatch(r"\w+", name) else Path(name)
    if not path.is_file():
        path = Path(name)
    try:
        return PairTemplate(shown_path(name), path.read_text(encoding="utf-8"), tokenizer)
    except (OSError, ValueError) as error:
        known = ", ".join(known_templates())
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"template {shown_path(name)}: {reason}; there are {known}, or name a Jinja file") from None
