"""The kinds of reward models: which sequences each makes of a pair, and which evidence its outputs give."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ModelError, PrefcastError, UsageError, excerpt
from prefcast.pairs import Pair
from prefcast.scorers.base import Conversation, Evidence
from prefcast.scorers.options import which
from prefcast.scorers.reward import Options
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind, open_checkpoint
from prefcast.scorers.reward.engine import Group, Scores
from prefcast.scorers.reward.families import decided
from prefcast.scorers.reward.labels import label_columns
from prefcast.scorers.reward.networks import one_line, packs, trained_padding
from prefcast.scorers.reward.prompts import ChatTemplate, PairTemplate, known_templates, pair_template
from prefcast.scorers.reward.scorer import RewardScorer
from prefcast.scorers.reward.text import Message, TextEncoder, checked, conversations
from prefcast.scorers.reward.tokenizers import check_ids

__all__ = ["CausalScorer", "PairScorer", "PointwiseScorer", "build_scorer", "checkpoint_for"]

_log = logging.getLogger("prefcast")
TRIAL = Pair.of("Why?", "Because.", "No idea.", reference="Because.")
_NO_REFERENCE = "{}: compares an answer with a reference answer: it scores pairs that have one, no single conversations"


def _ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


class PointwiseScorer(RewardScorer):
    """One score a conversation: margin = score(A) - score(B), and tie = 0.

    The tokenizer's chat template, or the one that a person gave, makes the text of a conversation. A model without a chat
    template reads two texts, the question and the answer, as OpenAssistant's do.
    """

    raw_names = ("score_a", "score_b")
    pointwise = True

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        super().__init__(checkpoint, options)
        self.takes_system = self.chat is not None and self.chat.takes_system
        self.takes_tools = self.chat is not None and self.chat.takes_tools
        self._check_day(None if self.chat is None else self.chat.source)

    @property
    def _own_chat(self) -> str | None:
        template: str | None = self.options.template
        return template

    @property
    def two_texts(self) -> bool:
        """Whether the model reads question and answer as two texts, because it has no chat template."""
        return self.chat is None

    def encode(self, conversation: Sequence[Message]) -> list[int]:
        """The token ids of a conversation that are scored. They are never truncated."""
        return self._encode(checked(conversation))[0]

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        """Scores (n,), float64, of n conversations (lists of messages with `role` and `content`, or texts and ids as
        `Scorer.score` takes them). Higher is better.

        Conversations are not truncated. Raises UsageError for a value that is no conversation and for a conversation
        with more tokens than the model has positions. Raises ModelError if scoring fails.
        """
        groups = []
        for conversation in conversations:
            group = self.sequence_of(conversation)
            hard = None if packs(self.checkpoint) else self.checkpoint.limit
            if hard is not None and group.tokens > hard:
                raise UsageError(
                    f"a conversation has {group.tokens} tokens; {self.checkpoint.name} reads at most {hard}"
                )
            groups.append(group)
        scores = np.full(len(groups), np.nan)
        for batch in self.planned(groups):
            for index, result in zip(batch, self.engine.run([groups[index] for index in batch]), strict=True):
                if isinstance(result, str):
                    raise ModelError(f"conversation {index}: {result}")
                scores[index] = result[0, 0]
        return scores

    def _encode(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int] | None]:
        messages = self._with_system(messages)
        if self.chat is None:
            if messages[-1]["role"] != "assistant":
                raise UsageError("the last message must be the assistant's: the model scores it")
            question = "\n".join(message["content"] for message in messages[:-1])
            ids, types = self.reader.encode_two(question, messages[-1]["content"])
            return ids, types if "token_type_ids" in self.tokenizer.model_input_names else None
        ids = self.reader.encode(self._text(self.chat, messages, self.reader), frame=self.chat.frame)
        return self._ended(ids), None

    def _templated(self, said: Mapping[str, Any]) -> list[int]:
        """The token ids of a conversation that is in the template already. Raises UsageError."""
        if "ids" in said:
            ids = list(said["ids"])
            if not all(type(each) is int and each >= 0 for each in ids):
                raise UsageError("token ids are whole numbers from 0")
            try:
                check_ids(self.checkpoint, ids)
            except ModelError:
                raise UsageError(f"a token id is larger than any that {self.checkpoint.name} has") from None
        else:
            ids = self.reader.parse(said["text"], frame=bool(said.get("frame")))
        if not ids:
            raise UsageError("a text without tokens has no score")
        return self._ended(ids)

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids with the token at which the model's score stands."""
        reward = self.checkpoint.config.get("reward_token_id") if self.checkpoint.kind is Kind.INTERNLM2 else None
        if reward is not None and (not ids or ids[-1] != reward):
            ids.append(int(reward))
        return ids

    def _columns(self) -> tuple[int, ...] | None:
        return (0,) if self.checkpoint.kind is Kind.LOGIT else None

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The messages with a leading system message joined to the next one, where the template takes none."""
        if self.takes_system or len(messages) < 2 or messages[0]["role"] != "system":
            return messages
        self._say_joined()
        first = messages[1]
        joined = f"{messages[0]['content']}\n\n{first['content']}" if messages[0]["content"] else first["content"]
        return [{"role": first["role"], "content": joined}, *messages[2:]]

    @staticmethod
    def _text(chat: ChatTemplate, messages: Sequence[Message], reader: TextEncoder | None) -> str:
        if reader is None:
            return chat.render(messages)
        return chat.render(reader.protect_all(list(messages)))

    def _rendered(self, pair: Pair, reader: TextEncoder | None) -> list[str]:
        if self.chat is None:
            return []
        return [self._text(self.chat, messages, reader) for messages in conversations(pair)]

    def written(self, pair: Pair) -> list[tuple[str, ...]]:
        return [self.texts_of(messages) for messages in conversations(pair)]

    def texts_of(self, conversation: Sequence[Message]) -> tuple[str, ...]:
        """The text of a conversation as it goes into the tokenizer; question and answer where the model reads two texts."""
        messages = self._with_system(checked(conversation))
        if self.chat is None:
            return "\n".join(message["content"] for message in messages[:-1]), messages[-1]["content"]
        return (self._text(self.chat, messages, self.reader),)

    @property
    def framed(self) -> bool:
        return self.chat is None or self.chat.frame

    def sequence_of(self, conversation: Conversation) -> Group:
        """The one sequence of a conversation, as `Scorer.score` takes it. Raises UsageError."""
        if isinstance(conversation, Mapping):
            return Group((_ids(self._templated(conversation)),))
        ids, types = self._encode(checked(conversation))
        return Group((_ids(ids),), None if types is None else (_ids(types),))

    def group(self, pair: Pair) -> Group:
        encoded = [self._encode(messages) for messages in conversations(pair)]
        types = tuple(_ids(types) for _, types in encoded if types is not None)
        return Group(tuple(_ids(ids) for ids, _ in encoded), types or None)

    def reduced(self, outputs: Sequence[Scores]) -> Evidence:
        a, b = (np.array([each[side, 0] for each in outputs], dtype=np.float64) for side in (0, 1))
        return Evidence(a - b, np.zeros(len(a)), raw={"score_a": a, "score_b": b})


class ReferenceScorer(PointwiseScorer):
    """One score for an answer beside a reference answer, as POLAR gives: how near the two are.

    The text is prompt, reference, `<|reward|>`, prompt, answer. The prompt is all messages before the last answer.
    """

    pointwise = False

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        if options.template is not None:
            raise UsageError(f"{checkpoint.name}: compares an answer with a reference; it takes no --template")
        super().__init__(checkpoint, options)
        self.takes_system, self.takes_tools = True, False

    def encode(self, conversation: Sequence[Message]) -> list[int]:
        raise UsageError(_NO_REFERENCE.format(self.checkpoint.name))

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        raise UsageError(_NO_REFERENCE.format(self.checkpoint.name))

    def _rendered(self, pair: Pair, reader: TextEncoder | None) -> list[str]:
        if pair.reference is None:
            raise UsageError(
                "has no reference answer, with which this model compares; the column reference holds it (--columns "
                "reference=NAME)"
            )
        protect = (lambda text: text) if reader is None else reader.protect
        texts = []
        for messages in conversations(pair):
            *before, answer = (protect(message["content"]) for message in messages)
            prompt = "\n".join(before)
            texts.append(f"{self.tokenizer.bos_token}{prompt}\n{protect(pair.reference)}<|reward|>{prompt}\n{answer}")
        return texts

    def group(self, pair: Pair) -> Group:
        reward = int(self.checkpoint.config["reward_token_id"])
        return Group(tuple(_ids([*self.reader.encode(text), reward]) for text in self._rendered(pair, self.reader)))


class _BothOrders(RewardScorer):
    """A model that reads both answers in one text. It is asked twice, with the answers in both orders."""

    template: PairTemplate
    columns: tuple[int, ...]

    def _rendered(self, pair: Pair, reader: TextEncoder | None) -> list[str]:
        return [self.template.render(each, reader) for each in (pair, pair.swapped())]

    def group(self, pair: Pair) -> Group:
        rendered = self._rendered(pair, self.reader)
        return Group(tuple(_ids(self.reader.encode(text, frame=self.template.frame)) for text in rendered))

    @property
    def framed(self) -> bool:
        return self.template.frame

    @property
    def width(self) -> int:
        return max(self.columns) + 1

    def _use(self, template: PairTemplate) -> None:
        self.template, self.takes_system = template, template.takes_system
        self._check_day(template.source, None if self.chat is None else self.chat.source)

    def try_out(self) -> None:
        text = self.template.render(Pair.of("Why?", "Because.", "No idea."), self.reader)
        if not all(part in text for part in ("Why?", "Because.", "No idea.")):
            raise UsageError(f"template {self.template.name}: leaves out the prompt or an answer")

    def reduced(self, outputs: Sequence[Scores]) -> Evidence:
        """With logits (a, b, t) of both orders: margin = mean of (a - b), tie = mean of (t - (a + b) / 2)."""
        logits = np.array(outputs, dtype=np.float64).reshape(len(outputs), 2, self.width)
        a, b = self.columns[0], self.columns[1]
        logit_a = (logits[:, 0, a] + logits[:, 1, b]) / 2
        logit_b = (logits[:, 0, b] + logits[:, 1, a]) / 2
        raw = {"logit_a": logit_a, "logit_b": logit_b}
        tie = np.zeros(len(outputs))
        if len(self.columns) == 3:
            raw["logit_tie"] = logits[:, :, self.columns[2]].mean(1)
            tie = raw["logit_tie"] - (logit_a + logit_b) / 2
        return Evidence(logit_a - logit_b, tie, raw=raw)


class PairScorer(_BothOrders):
    """A classifier with the labels A, B and perhaps tie over a prompt that holds both answers."""

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.columns = label_columns(checkpoint.config, options.labels, checkpoint.name)
        self.raw_names = ("logit_a", "logit_b", "logit_tie")[: len(self.columns)]
        super().__init__(checkpoint, options)
        own = checkpoint.folder / "pair_template.jinja"
        name = options.template or (str(own) if own.is_file() else "lmsys")
        self._use(pair_template(name, self.tokenizer, self.day, self.chat))


class CausalScorer(_BothOrders):
    """A language model that names the better answer with the token A or B, as RLHFlow's do."""

    raw_names = ("logit_a", "logit_b")
    columns = (0, 1)

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        super().__init__(checkpoint, options)
        own = checkpoint.folder / "pair_template.jinja"
        name = options.template or (str(own) if own.is_file() else "rlhflow")
        self._use(pair_template(name, self.tokenizer, self.day, self.chat))
        self._tokens = (self.reader.id_of("A"), self.reader.id_of("B"))

    def _columns(self) -> tuple[int, ...]:
        return self._tokens


def build_scorer(model: str | os.PathLike[str], options: Options, *, weights: bool = True) -> RewardScorer:
    """The scorer of a reward model in a folder or of a hub id. Without `weights` it makes sequences of pairs, and evidence of
    outputs that another program computes: only the tokenizer and config.json are read. Raises UsageError and ModelError."""
    if options.quantize == "none":
        options = replace(options, quantize=None)
    _check_values(options)
    checkpoint = checkpoint_for(model, options, weights=weights)
    if checkpoint.adapter is not None:
        # A saved forecaster finds the base model from any folder.
        options = replace(options, base=str((checkpoint.base or checkpoint.folder).resolve()))
    if checkpoint.kind is not Kind.PAIR and options.labels is not None:
        raise UsageError(f"{checkpoint.name}: is of the kind {checkpoint.kind}; labels are for pair classifiers")
    if checkpoint.kind is Kind.CUSTOM:
        _log.warning(
            "%s: --trust-remote-code: Python code of the checkpoint runs here with all your rights", checkpoint.name
        )
    try:
        kinds: dict[Kind, type[RewardScorer]] = {Kind.PAIR: PairScorer, Kind.CAUSAL: CausalScorer}
        pointwise = ReferenceScorer if checkpoint.compares else PointwiseScorer
        scorer = kinds.get(checkpoint.kind, pointwise)(checkpoint, options)
        try:
            scorer.reader.try_out()
        except UsageError as error:
            raise ModelError(f"{checkpoint.name}: {error}") from None
        scorer.try_out()
    except PrefcastError:
        raise
    except Exception as error:
        # A damaged config.json may raise any exception.
        raise ModelError(f"{checkpoint.name}: cannot be used: {one_line(error)}") from error
    trial = [ids for ids in scorer.group(TRIAL).ids if len(ids)]
    # The token that InternLM2 scores is checked with its network.
    scored = checkpoint.config.get("reward_token_id")
    check_ids(checkpoint, [int(each) for ids in trial for each in ids if each != scored])
    if weights:
        _say_position(scorer, {int(ids[-1]) for ids in trial})
    if isinstance(scorer, PointwiseScorer) and scorer.two_texts and packs(checkpoint):
        _log.warning(
            "%s: has no chat template; question and answer are joined as its tokenizer joins two texts (--template sets one)",
            checkpoint.name,
        )
    if options.spread and len(scorer.devices) < 2:
        raise UsageError("--spread spreads a model over several devices; name them with --devices")
    return scorer


def checkpoint_for(model: str | os.PathLike[str], options: Options, *, weights: bool = True) -> Checkpoint:
    """The checkpoint of a model, with the kind that the options decide. Raises UsageError and ModelError."""
    found = open_checkpoint(
        model, trust_remote_code=options.trust_remote_code, base=options.base, weights=weights, kind=options.kind
    )
    named = options.template in known_templates() or (found.folder / "pair_template.jinja").exists()
    return replace(found, kind=decided(found.kind, options.kind, named, found.name))


def _say_position(scorer: RewardScorer, ends: set[int]) -> None:
    """Tell once where the token that was trained to be scored is not the last one."""
    if scorer.options.score_position != "trained":
        return
    padding = trained_padding(scorer.checkpoint)
    if padding in ends:
        _log.warning(
            "%s: its texts end with its padding token %s; it was trained to score the token before that, and so it is scored "
            "(--score-position last scores the last token)",
            scorer.checkpoint.name,
            excerpt(scorer.tokenizer.convert_ids_to_tokens(padding)),
        )


def _check_values(options: Options) -> None:
    for name, about in which(Options).items():
        value = getattr(options, name)
        if value is None:
            continue
        if about.choices and value not in about.choices:
            raise UsageError(f"unknown {name} {excerpt(value)}; there are {', '.join(about.choices)}")
        if about.least is not None and value < about.least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {about.least}, found {value}")
