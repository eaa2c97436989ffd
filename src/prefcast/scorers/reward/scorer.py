"""Reward models as scorers: pairs -> token ids -> batches -> outputs -> evidence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, ModelError, PrefcastError, UsageError, excerpt
from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import Evidence, Scorer
from prefcast.scorers.reward import Options
from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind, open_checkpoint
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.engine import Group, Recipe, Scores
from prefcast.scorers.reward.labels import label_columns
from prefcast.scorers.reward.limit import TokenBudget
from prefcast.scorers.reward.loading import first_line, packs
from prefcast.scorers.reward.packing import packed_size
from prefcast.scorers.reward.precision import DTYPES, QUANTIZATIONS
from prefcast.scorers.reward.replicas import LocalReplica, Replicas, Result
from prefcast.scorers.reward.text import Message, PairTemplate, TextReader, checked, conversations, pair_template
from prefcast.scorers.reward.tokenizers import load_tokenizer

__all__ = ["CausalScorer", "PairScorer", "PointwiseScorer", "RewardScorer", "build_scorer"]

# Measured (benchmarks/reward.py): more does not help a CPU; a GPU wants enough rows to fill it.
BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 16_384
_log = logging.getLogger("prefcast")
_FORMAT = 1


class RewardScorer(Scorer):
    """A reward model. The network is loaded when the first pair is scored."""

    name: ClassVar[str] = "reward-model"
    files: ClassVar[tuple[str, ...]] = ("reward-model.json",)
    outputs: ClassVar[int | None] = None

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.devices = parse_devices(options.devices)
        self.tokenizer = load_tokenizer(checkpoint)
        self.reader = TextReader(
            self.tokenizer.backend, options.special_tokens or "literal", self.tokenizer.chat_template
        )
        self.max_tokens = self._max_tokens()
        self.limit = TokenBudget(options.policy, self.max_tokens, self._longest, self.reader)
        self._replicas: LocalReplica | Replicas | None = None

    def _max_tokens(self) -> int:
        asked, limit, most = self.options.max_tokens, self.checkpoint.limit, self.checkpoint.positions
        if asked is not None and asked < 1:
            raise UsageError(f"max_tokens must be at least 1, found {asked}")
        if asked is not None and most is not None and asked > most:
            raise UsageError(f"--max-tokens is {asked}, but {self.checkpoint.name} reads at most {most} tokens")
        if asked is None and limit is None:
            raise UsageError(f"{self.checkpoint.name}: does not say how many tokens it reads; say it with --max-tokens")
        return asked or limit or 0

    @abstractmethod
    def _group(self, turns: Sequence[Turn]) -> Group:
        """The sequences of a pair; UsageError or ModelError where they cannot be made."""

    @abstractmethod
    def _reduce(self, outputs: Sequence[Scores]) -> Evidence:
        """Evidence of the outputs (sequences, outputs) of n pairs."""

    def _columns(self) -> tuple[int, ...] | None:
        return None

    def try_out(self) -> None:
        """Raise UsageError if the template fails on a plain pair."""
        self._group((Turn("Why?", "Because.", "No idea."),))

    def _longest(self, turns: Sequence[Turn]) -> int:
        return max(len(ids) for ids in self._group(turns).ids)

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        groups: dict[int, Group] = {}
        problems: dict[int, str] = {}
        for index, pair in enumerate(pairs):
            try:
                group = self._group(pair.turns)
                self._check_length(group)
                groups[index] = group
            except (UsageError, ModelError) as error:
                problems[index] = str(error)
        results = dict(zip(groups, self._run(list(groups.values())), strict=True))
        for index, result in results.items():
            if isinstance(result, str):
                problems[index] = result
            elif not np.isfinite(result).all():
                problems[index] = "the model gave a score that is not finite" + (
                    "; --dtype bfloat16 or float32 has a wider range" if self._may_be_float16 else ""
                )
        good = [index for index in groups if index not in problems]
        found = self._reduce([results[index] for index in good])  # type: ignore[misc]

        def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
            out = np.full(len(pairs), np.nan)
            out[good] = values
            return out

        return Evidence(
            spread(found.margin),
            spread(found.tie),
            problems,
            {name: spread(values) for name, values in found.raw.items()},
        )

    def _check_length(self, group: Group) -> None:
        longest = max(len(ids) for ids in group.ids)
        if longest == 0:
            raise ModelError("the template left no tokens to score")
        if longest > self.max_tokens:
            raise UsageError(f"has {longest} tokens; at most {self.max_tokens} are read (--max-tokens)")

    def _run(self, groups: Sequence[Group]) -> list[Result]:
        """The result of each group; equal sequences of a group are scored once."""
        if not groups:
            return []
        unique = [group.unique() for group in groups]
        results = self._scored([group for group, _ in unique])
        return [
            result if isinstance(result, str) else result[positions]
            for result, (_, positions) in zip(results, unique, strict=True)
        ]

    def _scored(self, groups: Sequence[Group]) -> list[Result]:
        most = self.options.batch_tokens or BATCH_TOKENS.get(self.devices[0].type, _BATCH_TOKENS_ELSEWHERE)
        if packs(self.checkpoint):
            limit = self.checkpoint.unscaled_length
            batches = plan_batches([packed_size(group.ids, limit) for group in groups], most)
        else:
            shapes = [(max(map(len, group.ids)), len(group.ids)) for group in groups]
            batches = plan_batches([group.tokens for group in groups], most, padded=shapes)
        finished = 0

        def done(count: int) -> None:
            nonlocal finished
            finished += count
            if self.on_progress:
                self.on_progress(finished)

        found = self.replicas.run([[groups[index] for index in batch] for batch in batches], done)
        results: list[Result] = [""] * len(groups)
        for batch, scored in zip(batches, found, strict=True):
            for index, result in zip(batch, scored, strict=True):
                results[index] = result
        return results

    @property
    def replicas(self) -> LocalReplica | Replicas:
        """The loaded model, in this process or in one a device."""
        if self._replicas is None:
            recipe = Recipe(
                str(self.checkpoint.folder.resolve()),
                tuple(map(str, self.devices)),
                self.options.dtype,
                self.options.quantize,
                self._columns(),
                threads_each(self.devices) if not self.options.shard else None,
                self.options.trust_remote_code,
            )
            if self.options.shard or len(self.devices) == 1:
                self._replicas = LocalReplica(recipe)
            else:
                self._replicas = Replicas([replace(recipe, devices=(device,)) for device in recipe.devices])
        return self._replicas

    @property
    def _may_be_float16(self) -> bool:
        return self.options.dtype == "float16" or (self.options.dtype is None and self.devices[0].type != "cpu")

    def close(self) -> None:
        if self._replicas is not None:
            self._replicas.close()
            self._replicas = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def save(self, folder: Path) -> None:
        if self.checkpoint.kind is Kind.CUSTOM:
            raise UsageError(
                f"{self.checkpoint.name}: has code of its own, which a saved forecaster could not ask leave to run"
            )
        options = {name: value for name, value in vars(self.options).items() if name not in _NOT_SAVED}
        data = {
            "format": _FORMAT,
            "model": str(self.checkpoint.folder.resolve()),
            "name": self.checkpoint.name,
            "fingerprint": self.fingerprint(),
            "options": options,
        }
        (folder / self.files[0]).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, model: str | None = None) -> Self:
        """The scorer that `save` described. The model itself stays where it lay, unless `model` says where it is now.

        Raises ForecasterError if it has changed since.
        """
        data = json.loads((folder / cls.files[0]).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ForecasterError(
                f"{folder / cls.files[0]}: format {data['format']!r} is not one that this version reads"
            )
        saved = dict(data["options"])
        labels = saved.pop("labels")
        where = data["model"] if model is None else model
        if model is None and not Path(where).is_dir():
            raise ForecasterError(
                f"{folder}: its model is no longer in {where}; say where it is: --model PATH beside --forecaster"
            )
        scorer = build_scorer(where, Options(**saved, labels=None if labels is None else tuple(labels)))
        if scorer.fingerprint() != data["fingerprint"]:
            raise ForecasterError(f"{data['name']}: is not the model that the outcome model was fitted for")
        return scorer  # type: ignore[return-value]

    def fingerprint(self) -> str:
        """SHA-256 over what the scores depend on: the checkpoint, and a template that was named."""
        digest = hashlib.sha256(self.checkpoint.fingerprint().encode())
        template = getattr(self, "template", None)
        if template is not None:
            digest.update(template.source.encode())
        return digest.hexdigest()

    def elsewhere(self, options: Options) -> RewardScorer:
        """The same scorer where `options` say: devices, batches. Raises UsageError if they say more."""
        given = {name for name, value in vars(options).items() if value != getattr(Options(), name)}
        if fixed := sorted(given - _NOT_SAVED):
            raise UsageError(f"--{fixed[0].replace('_', '-')}: is fixed in the forecaster; it was fitted so")
        return type(self)(self.checkpoint, replace(self.options, **{name: getattr(options, name) for name in given}))


# Where a model runs is the machine's affair, not the forecaster's; remote code is trusted anew each time.
_NOT_SAVED = {"devices", "shard", "batch_tokens", "trust_remote_code"}


def _ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


class PointwiseScorer(RewardScorer):
    """One score a conversation: margin = score(A) - score(B); it has no view of ties.

    Conversations are put into the tokenizer's chat template; where it has none, the model reads two texts, the question
    and the answer, as OpenAssistant's do.
    """

    raw_names = ("score_a", "score_b")

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        super().__init__(checkpoint, options)
        if self.two_texts and packs(checkpoint):
            _log.warning(
                "%s: has no chat template; question and answer are joined as its tokenizer joins two texts",
                checkpoint.name,
            )

    @property
    def two_texts(self) -> bool:
        """Whether the model reads question and answer as two texts, for lack of a chat template."""
        return self.checkpoint.kind is not Kind.INTERNLM2 and not self.tokenizer.chat_template

    def encode(self, conversation: Sequence[Message]) -> list[int]:
        """The token ids of a conversation as they are scored; never truncated."""
        return self._encode(checked(conversation))[0]

    def score(self, conversations: Sequence[Sequence[Message]]) -> NDArray[np.float64]:
        """Scores (n,), float64, of n conversations (lists of messages with `role` and `content`), higher is better.

        Nothing is truncated. Raises UsageError for what is no conversation or is longer than the model's position
        table, ModelError where a score could not be made.
        """
        groups = []
        for conversation in conversations:
            ids, types = self._encode(checked(conversation))
            hard = None if packs(self.checkpoint) else self.checkpoint.limit
            if hard is not None and len(ids) > hard:
                raise UsageError(f"a conversation has {len(ids)} tokens; {self.checkpoint.name} reads at most {hard}")
            groups.append(Group((_ids(ids),), None if types is None else (_ids(types),)))
        results = self._run(groups)
        for index, result in enumerate(results):
            if isinstance(result, str):
                raise ModelError(f"conversation {index}: {result}")
        return np.array([result[0, 0] for result in results], dtype=np.float64)  # type: ignore[index]

    def _encode(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int] | None]:
        safe = [{name: self.reader.protect(text) for name, text in each.items()} for each in messages]
        if self.two_texts:
            if messages[-1]["role"] != "assistant":
                raise UsageError("the last message must be the assistant's: it is what is scored")
            question = "\n".join(message["content"] for message in messages[:-1])
            ids, types = self.reader.encode_two(question, messages[-1]["content"])
            return ids, types if self.tokenizer.token_types else None
        try:
            rendered = self.tokenizer.render(safe)
        except Exception as error:
            # A template is a program of the checkpoint: it may fail in any way.
            raise UsageError(
                f"the model's chat template refuses the conversation: {excerpt(first_line(error), 200)}"
            ) from None
        ids = self.reader.encode(rendered)
        reward = self.checkpoint.config.get("reward_token_id") if self.checkpoint.kind is Kind.INTERNLM2 else None
        if reward is not None and (not ids or ids[-1] != reward):
            ids.append(int(reward))
        return ids, None

    def _group(self, turns: Sequence[Turn]) -> Group:
        encoded = [self._encode(messages) for messages in conversations(turns)]
        types = tuple(_ids(types) for _, types in encoded if types is not None)
        return Group(tuple(_ids(ids) for ids, _ in encoded), types or None)

    def _reduce(self, outputs: Sequence[Scores]) -> Evidence:
        a, b = (np.array([each[side, 0] for each in outputs], dtype=np.float64) for side in (0, 1))
        return Evidence(a - b, np.zeros(len(a)), raw={"score_a": a, "score_b": b})


class _BothOrders(RewardScorer):
    """A model that reads both answers at once, in both orders."""

    template: PairTemplate
    columns: tuple[int, ...]

    def _group(self, turns: Sequence[Turn]) -> Group:
        swapped = [Turn(turn.prompt, turn.response_b, turn.response_a) for turn in turns]
        rendered = [self.template.render(each, self.reader) for each in (turns, swapped)]
        return Group(tuple(_ids(self.reader.encode(text, frame=self.template.frame)) for text in rendered))

    def try_out(self) -> None:
        text = self.template.render((Turn("Why?", "Because.", "No idea."),), self.reader)
        if not all(part in text for part in ("Why?", "Because.", "No idea.")):
            raise UsageError(f"template {self.template.name}: leaves out the prompt or an answer")

    def _reduce(self, outputs: Sequence[Scores]) -> Evidence:
        """With logits (a, b, t) of both orders: margin = mean of (a - b), tie = mean of (t - (a + b) / 2)."""
        width = max(self.columns) + 1
        logits = np.array(outputs, dtype=np.float64).reshape(len(outputs), 2, width)
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
        self.template = pair_template(options.template, str(own) if own.is_file() else "lmsys", self.tokenizer)


class CausalScorer(_BothOrders):
    """A language model that was trained to name the better answer with the token A or B, as RLHFlow's are."""

    raw_names = ("logit_a", "logit_b")
    columns = (0, 1)

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        super().__init__(checkpoint, options)
        self.template = pair_template(options.template, "rlhflow", self.tokenizer)
        self._tokens = (self.reader.id_of("A"), self.reader.id_of("B"))

    def _columns(self) -> tuple[int, ...]:
        return self._tokens


_CLASSES: Mapping[Kind, type[RewardScorer]] = {
    Kind.INTERNLM2: PointwiseScorer,
    Kind.POINTWISE: PointwiseScorer,
    Kind.CUSTOM: PointwiseScorer,
    Kind.PAIR: PairScorer,
    Kind.CAUSAL: CausalScorer,
}


def build_scorer(model: str | os.PathLike[str], options: Options) -> RewardScorer:
    """The scorer for what lies in a folder or behind a hub id."""
    checkpoint = open_checkpoint(model, trust_remote_code=options.trust_remote_code)
    if options.quantize == "none":
        options = replace(options, quantize=None)
    if options.quantize not in (None, *QUANTIZATIONS):
        raise UsageError(f"unknown quantize {excerpt(options.quantize)}; there are {', '.join(QUANTIZATIONS)}")
    if options.dtype not in (None, *DTYPES):
        raise UsageError(f"unknown dtype {excerpt(options.dtype)}; there are {', '.join(DTYPES)}")
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise UsageError(f"batch_tokens must be at least 1, found {options.batch_tokens}")
    if checkpoint.kind is not Kind.PAIR and options.labels is not None:
        raise UsageError(f"{checkpoint.name}: is of the kind {checkpoint.kind}; labels are for pair classifiers")
    if checkpoint.kind not in (Kind.PAIR, Kind.CAUSAL) and options.template is not None:
        raise UsageError(f"{checkpoint.name}: is a {checkpoint.kind} and uses its own chat template")
    if checkpoint.kind is Kind.CUSTOM:
        _log.warning(
            "%s: --trust-remote-code: Python code of the checkpoint runs here with all your rights", checkpoint.name
        )
    try:
        scorer = _CLASSES[checkpoint.kind](checkpoint, options)
        scorer.try_out()
    except PrefcastError:
        raise
    except Exception as error:
        # Configs of strangers may be wrong in any way.
        raise ModelError(f"{checkpoint.name}: cannot be used: {first_line(error)}") from error
    if options.shard and len(scorer.devices) < 2:
        raise UsageError("--shard spreads a model over several devices; name them with --devices")
    return scorer
