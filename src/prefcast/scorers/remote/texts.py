"""What is sent for a pair: token ids, texts, or messages. The texts, the limit and the evidence are those of the same model in
this process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ModelError, UsageError
from prefcast.pairs import Pair
from prefcast.pairs.budget import Budget
from prefcast.scorers.base import Conversation, Evidence
from prefcast.scorers.options import which
from prefcast.scorers.remote import Options
from prefcast.scorers.remote.protocols import Item, Protocol

if TYPE_CHECKING:
    from prefcast.scorers.reward.engine import Group
    from prefcast.scorers.reward.kinds import PointwiseScorer
    from prefcast.scorers.reward.scorer import RewardScorer

__all__ = ["ChatTexts", "ModelTexts", "Texts", "texts_for"]

Numbers = NDArray[np.float64]
_MARKED = (
    "holds the name of a special token, and a server of this kind takes texts, in which it cannot be read letter by letter; "
    "--special-tokens original lets the server parse it"
)


class Texts(ABC):
    """Makes the items of a pair, and evidence of their outputs."""

    raw_names: tuple[str, ...] = ("score_a", "score_b")
    pointwise = True
    takes_system = True
    takes_tools = False
    limit: Budget | None = None
    max_tokens: int | None = None
    width = 1
    # Whether a request holds one item.
    alone: ClassVar[bool] = False
    template_date: str | None = None
    # The token that begins texts, and the one that ends them, where they are known.
    ends: tuple[str | None, str | None] = (None, None)
    # The names of the outputs, in their order, where config.json has them.
    labels: tuple[str, ...] | None = None
    where = ""

    @abstractmethod
    def items_of(self, pair: Pair) -> list[Item]:
        """The items of a pair. Raises UsageError and ModelError."""

    def items(self, pairs: Sequence[Pair]) -> tuple[dict[int, list[Item]], dict[int, str]]:
        """The items of the pairs that can be scored, and the problems of the others, by position."""
        found: dict[int, list[Item]] = {}
        problems: dict[int, str] = {}
        for index, pair in enumerate(pairs):
            try:
                found[index] = self.items_of(pair)
            except (UsageError, ModelError) as error:
                problems[index] = str(error)
        return found, problems

    @abstractmethod
    def item_of(self, conversation: Conversation) -> Item:
        """The item of one conversation, as `Scorer.score` takes it. Raises UsageError."""

    def reduced(self, outputs: Sequence[Numbers]) -> Evidence:
        """The evidence of n pairs from the outputs (items, width) of each."""
        a, b = (np.array([each[side, 0] for each in outputs], dtype=np.float64) for side in (0, 1))
        return Evidence(a - b, np.zeros(len(a)), raw={"score_a": a, "score_b": b})

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over all that the texts depend on."""


class ChatTexts(Texts):
    """Messages: the server makes the text of a conversation with its own chat template."""

    alone = True

    def __init__(self, protocol: Protocol) -> None:
        if not protocol.takes_messages:
            raise UsageError(f"--template chat: a server of the kind {protocol.name} takes no messages; vllm does")

    def items_of(self, pair: Pair) -> list[Item]:
        from prefcast.scorers.reward.text import conversations

        return [Item(messages=tuple(messages)) for messages in conversations(pair)]

    def item_of(self, conversation: Conversation) -> Item:
        from prefcast.scorers.reward.text import checked

        if isinstance(conversation, Mapping):
            raise UsageError("a text in the model's template cannot be sent as messages (--template chat)")
        return Item(messages=tuple(checked(conversation)))

    def fingerprint(self) -> str:
        return hashlib.sha256(b"chat").hexdigest()


class ModelTexts(Texts):
    """Texts as `scorer`, the model without its weights, makes them, for a server of a protocol."""

    def __init__(self, where: str, scorer: RewardScorer, protocol: Protocol) -> None:
        from prefcast.scorers.reward.networks import trained_padding

        self.where, self._scorer, self._protocol = where, scorer, protocol
        self.raw_names, self.pointwise = scorer.raw_names, scorer.pointwise
        self.takes_system, self.takes_tools = scorer.takes_system, scorer.takes_tools
        self.limit, self.max_tokens, self.width = scorer.limit, scorer.max_tokens, scorer.width
        self.template_date = scorer.options.template_date
        names = scorer.checkpoint.config.get("id2label")
        if isinstance(names, Mapping) and len(names) == self.width:
            listed = [names.get(str(index), names.get(index)) for index in range(self.width)]
            self.labels = tuple(map(str, listed)) if None not in listed else None
        # A server scores the last token; the model was trained to be scored before its padding.
        self._padding = trained_padding(scorer.checkpoint) if scorer.options.score_position == "trained" else None
        tokens = scorer.tokenizer
        # An end token that is padding changes no score, wherever it comes from.
        last = None if tokens.eos_token_id == self._padding else tokens.eos_token
        self.ends = tokens.bos_token, last

    def items_of(self, pair: Pair) -> list[Item]:
        groups, problems = self._scorer.grouped([pair])
        if problems:
            raise UsageError(problems[0])
        if self._protocol.takes_ids:
            return [self._of_ids(ids, groups[0].types is not None) for ids in groups[0].ids]
        return [
            self._of_texts(texts, ids) for texts, ids in zip(self._scorer.written(pair), groups[0].ids, strict=True)
        ]

    def item_of(self, conversation: Conversation) -> Item:
        pointwise: PointwiseScorer = self._scorer  # type: ignore[assignment]
        group: Group = pointwise.sequence_of(conversation)
        if self._protocol.takes_ids:
            return self._of_ids(group.ids[0], group.types is not None)
        if not isinstance(conversation, Mapping):
            return self._of_texts(pointwise.texts_of(conversation), group.ids[0])
        if "text" not in conversation:
            raise UsageError(f"token ids cannot be sent to a server of the kind {self._protocol.name}: it takes texts")
        return self._of_texts((conversation["text"],), group.ids[0])

    def _of_ids(self, ids: Sequence[int] | NDArray[np.int32], typed: bool) -> Item:
        if typed:
            raise UsageError(
                f"the model reads two texts with token types, which a server of the kind {self._protocol.name} does not take; "
                "tei does, and --template makes one text of the two"
            )
        found = list(map(int, ids))
        while self._padding is not None and len(found) > 1 and found[-1] == self._padding:
            found.pop()
        return Item(ids=tuple(found))

    def _of_texts(self, texts: tuple[str, ...], ids: Sequence[int] | NDArray[np.int32]) -> Item:
        if len(texts) == 2 and not self._protocol.takes_two:
            raise UsageError(
                f"the model has no chat template and reads two texts, of which a server of the kind {self._protocol.name} "
                "takes one; --template makes one text of them"
            )
        meant = tuple(map(int, ids))
        if tuple(self._scorer.reader.plainly(texts, frame=self._scorer.framed)) != meant:
            raise UsageError(_MARKED)
        return Item(ids=meant, texts=texts)

    def reduced(self, outputs: Sequence[Numbers]) -> Evidence:
        return self._scorer.reduced(outputs)

    def fingerprint(self) -> str:
        return self._scorer.fingerprint()


def texts_for(where: str, options: Options, protocol: Protocol) -> ModelTexts:
    """The texts of the model whose tokenizer and config.json are in the folder, or of the hub id, `where`.

    Raises UsageError, ModelError and MissingExtraError.
    """
    from prefcast.scorers.reward import Options as Local
    from prefcast.scorers.reward import require_extra

    require_extra()
    from prefcast.scorers.reward.kinds import build_scorer

    shared: dict[str, Any] = {name: getattr(options, name) for name in which(Local) if name in which(Options)}
    scorer = build_scorer(where, replace(Local(), **shared), weights=False)
    folder = scorer.checkpoint.folder
    return ModelTexts(str(folder.resolve() if isinstance(folder, Path) else folder), scorer, protocol)
