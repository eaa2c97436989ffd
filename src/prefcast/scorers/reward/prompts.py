"""The templates that make the text that a model reads: of a conversation, or of a pair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import nodes

from prefcast.errors import ModelError, UsageError, excerpt, shown_path
from prefcast.pairs import Pair, Turn
from prefcast.scorers.reward import DEFAULT_DAY
from prefcast.scorers.reward.sandbox import Sandbox
from prefcast.scorers.reward.text import Message, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatTemplate",
    "PairTemplate",
    "chat_template",
    "known_templates",
    "pair_template",
    "template_day",
    "template_source",
]

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_BYTES = 4_000_000
# Texts that no template has.
_SYSTEM, _PROMPT, _ANSWER = "Qsystemq", "Qpromptq", "Qanswerq"
_TEXT_METHODS = {"split", "rsplit", "partition", "rpartition", "startswith", "endswith", "replace", "find", "rfind"}
_TEXT_METHODS |= {"index", "rindex", "count", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "trim"}


def template_day(said: str | None) -> date:
    """The day that `--template-date` names. Raises UsageError."""
    if said is None:
        return date.fromisoformat(DEFAULT_DAY)
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", said):
            raise ValueError
        return date.fromisoformat(said)
    except ValueError:
        raise UsageError(f"--template-date is {excerpt(said)}; expected a day like 2026-11-28") from None


class ChatTemplate:
    """A Jinja template that makes the text of a conversation. It runs in a sandbox, on the day `day`.

    `frame`: the tokenizer puts its own first and last tokens around the text. `own`: the checkpoint brought it.
    """

    def __init__(
        self, source: str, tokenizer: PreTrainedTokenizerBase, day: date, *, name: str = "", frame: bool = False
    ) -> None:
        self.source, self.name, self.frame, self.own = source, name, frame, not name
        self._about = f"template {name}" if name else "the model's chat template"
        special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        # A tokenizer that puts its own tokens around a text: the template must not write them.
        self._tokens = special | ({"bos_token": "", "eos_token": ""} if frame else {})
        self._sandbox = Sandbox(day)
        self.steps = self._sandbox.steps
        try:
            self._template = self._sandbox.template(source)
        except UsageError as error:
            raise UsageError(f"{self._about} {error}") from None

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """The text of a conversation, with `asks` up to where an answer begins. Raises UsageError if the template fails."""
        said = {"messages": [dict(each) for each in messages], "tools": None, "documents": None}
        try:
            return self._sandbox.render(self._template, {**self._tokens, **said, "add_generation_prompt": asks})
        except UsageError as error:
            raise UsageError(f"{self._about} refuses the conversation: {error}") from None

    @cached_property
    def takes_system(self) -> bool:
        """Whether the text of a system message is in the text of its conversation. A template may leave it out or raise."""
        said = [{"role": "system", "content": _SYSTEM}, *_plain()]
        try:
            return _SYSTEM in self.render(said)
        except UsageError:
            return False

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the text has the call of a tool and what the tool gave."""
        call = {
            "type": "function",
            "function": {"name": "qcallq", "arguments": {"qargumentq": "qvalueq"}},
            "id": "qcall0000",
        }
        said: list[dict[str, Any]] = [
            *_plain()[:1],
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "Qresultq", "name": "qcallq", "tool_call_id": "qcall0000"},
            *_plain()[1:],
        ]
        try:
            rendered = self.render(said)
        except UsageError:
            return False
        return all(text in rendered for text in ("qcallq", "qargumentq", "qvalueq", "Qresultq", _ANSWER))

    def reads(self, names: Sequence[str], every: Sequence[str]) -> frozenset[str]:
        """Those of the tokens `names` that the template looks for inside a text, as Qwen3's does with `</think>`.

        A token with which the template begins or ends a turn is not among them. `every` has all tokens that can do that.
        """
        with suppress(UsageError):
            asked = self.render(_plain()[:1])
            answered = self.render(_plain())
            before, found, after = answered.partition(_ANSWER)
            if not found:
                return frozenset()
            begins = before[len(asked) :] if before.startswith(asked) else before
            # Where one token is the beginning of another, the longer one is meant.
            there = [(begins.index(name), -len(name), name) for name in every if name in begins]
            first = min(there)[2] if there else ""
            turns = {name for name in names if name in asked or name in after or name == first}
            looked_for = list(self._looked_for())
            return frozenset(
                name for name in names if name not in turns and any(name in constant for constant in looked_for)
            )
        return frozenset()

    def _looked_for(self) -> Iterator[str]:
        """The literal texts that the template compares with, splits at, or removes."""
        parsed = self._sandbox.parse(self.source)
        for compared in parsed.find_all(nodes.Compare):
            yield from _constants([compared.expr, *(operand.expr for operand in compared.ops)])
        for called in parsed.find_all(nodes.Call):
            method = called.node
            if isinstance(method, nodes.Getattr) and method.attr in _TEXT_METHODS:
                yield from _constants(called.args)
        for assigned in parsed.find_all(nodes.Assign):
            # A name for such a text.
            if isinstance(assigned.node, nodes.Const):
                yield from _constants([assigned.node])
        for filtered in parsed.find_all(nodes.Filter):
            if filtered.name in _TEXT_METHODS:
                yield from _constants(filtered.args)


def _constants(found: Sequence[nodes.Node]) -> Iterator[str]:
    for node in found:
        for constant in (node, *node.find_all(nodes.Const)):
            if isinstance(constant, nodes.Const) and isinstance(constant.value, str):
                yield constant.value


def _plain() -> list[dict[str, str]]:
    return [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": _ANSWER}]


def chat_template(tokenizer: PreTrainedTokenizerBase, day: date, said: str | Path | None = None) -> ChatTemplate | None:
    """The chat template with the name or in the file `said`, or the tokenizer's own; None where it has none.

    Raises UsageError, and ModelError for a template of the tokenizer that cannot be used.
    """
    frame = getattr(tokenizer, "cls_token", None) is not None
    if said is not None:
        name, source = _named(said, _TEMPLATES / "chat")
        return ChatTemplate(source, tokenizer, day, name=name, frame=frame)
    if not tokenizer.chat_template:
        return None
    try:
        return ChatTemplate(tokenizer.get_chat_template(), tokenizer, day)
    except (UsageError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from None


class PairTemplate:
    """A Jinja template that puts a prompt and both responses into one text. It runs in a sandbox.

    Its variables are `turns` (with prompt, response_a, response_b), `prompts`, `responses_a`, `responses_b`, `system`,
    `bos_token`, `eos_token` and `add_eos_token`. Its function `chat(text)` makes a user message of a text with the
    model's chat template; `bos=false` leaves out the first token.
    """

    def __init__(
        self, name: str, source: str, tokenizer: PreTrainedTokenizerBase, day: date, chat: ChatTemplate | None
    ) -> None:
        self.name, self.source = name, source
        self._tokenizer, self._chat_template = tokenizer, chat
        # The tokenizer of an encoder puts its own tokens around a text; the template must not write them.
        self.frame = getattr(tokenizer, "cls_token", None) is not None
        self._sandbox = Sandbox(day, chat=False, steps=None if chat is None else chat.steps)
        try:
            self._template = self._sandbox.template(source)
        except UsageError as error:
            raise UsageError(f"template {name}: {error}") from None
        parsed = self._sandbox.parse(source)
        self.takes_system = any((each.name, each.ctx) == ("system", "load") for each in parsed.find_all(nodes.Name))

    def render(self, pair: Pair, reader: TextEncoder | None) -> str:
        """The text of a pair, with its texts protected by `reader`. Raises UsageError if the template fails."""
        protect = (lambda text: text) if reader is None else reader.protect
        safe = [Turn(*map(protect, turn.texts)) for turn in pair.turns]
        said: dict[str, Any] = {
            # Plain values: a template gets no objects of ours.
            "turns": [dict(zip(("prompt", "response_a", "response_b"), turn.texts, strict=True)) for turn in safe],
            "prompts": [turn.prompt for turn in safe],
            "responses_a": [turn.response_a for turn in safe],
            "responses_b": [turn.response_b for turn in safe],
            "system": protect(pair.system),
            "bos_token": "" if self.frame else self._tokenizer.bos_token or "",
            "eos_token": "" if self.frame else self._tokenizer.eos_token or "",
            "add_eos_token": bool(getattr(self._tokenizer, "add_eos_token", False)),
            "chat": self._chat,
        }
        try:
            return self._sandbox.render(self._template, said)
        except UsageError as error:
            raise UsageError(f"template {self.name}: {error}") from None

    def _chat(self, text: str, bos: bool = True) -> str:
        if self._chat_template is None:
            return text
        rendered = self._chat_template.render([{"role": "user", "content": text}], asks=True)
        first = self._tokenizer.bos_token
        return rendered.replace(first, "") if first and not bos else rendered


def known_templates() -> list[str]:
    """The names of the templates for both answers of a pair."""
    return sorted(each.stem for each in _TEMPLATES.glob("*.jinja"))


def pair_template(
    said: str | Path, tokenizer: PreTrainedTokenizerBase, day: date, chat: ChatTemplate | None
) -> PairTemplate:
    """The template of pairs with the name or in the file `said`. Raises UsageError."""
    return PairTemplate(*_named(said, _TEMPLATES), tokenizer, day, chat)


def template_source(said: str | Path, *, pairs: bool) -> str:
    """The source of a template of `pairs` or of conversations, by its name or file. Raises UsageError."""
    return _named(said, _TEMPLATES if pairs else _TEMPLATES / "chat")[1]


def _named(said: str | Path, folder: Path) -> tuple[str, str]:
    """The name and the source of the template that is called so, or is in that file."""
    name = str(said)
    path = folder / f"{name}.jinja" if re.fullmatch(r"[\w-]+", name) else Path(name)
    if not path.is_file():
        path = Path(name)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"template {shown_path(name)}: is not a file")
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"template {shown_path(name)}: has more than {_MOST_BYTES:,} bytes")
        return shown_path(name), path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(each.stem for each in folder.glob("*.jinja")))
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"template {shown_path(name)}: {reason}; there are {known}, or name a Jinja file") from None
