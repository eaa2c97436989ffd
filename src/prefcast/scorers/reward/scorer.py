"""Reward models as scorers: from pairs to token ids, batches, outputs and evidence."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from tokenizers import Tokenizer

from prefcast.base.files import read_whole
from prefcast.errors import ForecasterError, ModelError, UsageError, shown_path
from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Promise, Scorer, gathered
from prefcast.scorers.options import given, saved_options, to_save, which
from prefcast.scorers.reward import CLOCK, Options, scorer_of
from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.engine import Engine, Group, Scores, free_memory, load_engine
from prefcast.scorers.reward.limit import TokenBudget
from prefcast.scorers.reward.networks import packs
from prefcast.scorers.reward.packing import packed_size
from prefcast.scorers.reward.precision import compute_dtype
from prefcast.scorers.reward.prompts import chat_template, template_day
from prefcast.scorers.reward.text import TextEncoder, plain_tokens
from prefcast.scorers.reward.tokenizers import load_tokenizer

__all__ = ["RewardScorer"]

_log = logging.getLogger("prefcast")

# Measured (benchmarks/reward.py): larger batches do not help a CPU, and smaller ones do not fill a GPU.
_BATCH_TOKENS_CPU, _BATCH_TOKENS_GPU = 2048, 16_384
_FORMAT = 1
# Raise this number when the same model gives other scores than before.
_COMPUTATION = 2
_NOT_FINITE = "the model gave a score that is not finite"


class RewardScorer(Scorer):
    """A reward model. The network is loaded when the first pair is scored."""

    name: ClassVar[str] = "reward-model"
    files: ClassVar[tuple[str, ...]] = ("reward-model.json",)
    may_lie_elsewhere: ClassVar[bool] = True
    _said_joined = False

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.devices = parse_devices(options.devices)
        self.tokenizer, backend = load_tokenizer(checkpoint)
        self.day = template_day(options.template_date)
        self.chat = chat_template(self.tokenizer, self.day, self._own_chat)
        source, read = ("", frozenset[str]()) if self.chat is None else (self.chat.source, self._read(backend))
        ends = [getattr(self.tokenizer, f"{name}_token", None) for name in ("bos", "eos", "cls", "sep")]
        self.reader = TextEncoder(
            backend, options.special_tokens or "literal", source, read, [name for name in ends if name]
        )
        self.max_tokens = self._max_tokens()
        self.limit = TokenBudget(options.policy, self.max_tokens, self._longest, self.reader, self._reads_otherwise)
        # The fingerprint does not cover the checkpoint's own code, and that code may change.
        self.promise = Promise(repeatable=checkpoint.kind is not Kind.CUSTOM)
        self._engine: Engine | None = None

    def use_threads(self, threads: int) -> None:
        # A network that is loaded already keeps its threads.
        self.options = replace(self.options, threads=threads)

    def _max_tokens(self) -> int:
        asked, limit, most = self.options.max_tokens, self.checkpoint.limit, self.checkpoint.positions
        if asked is not None and most is not None and asked > most:
            raise UsageError(f"--max-tokens is {asked}, but {self.checkpoint.name} reads at most {most} tokens")
        if asked is None and limit is None:
            raise UsageError(f"{self.checkpoint.name}: does not say how many tokens it reads; say it with --max-tokens")
        return asked or limit or 0

    @property
    def _own_chat(self) -> str | None:
        """The chat template that a person gave in the place of the checkpoint's."""
        return None

    def _read(self, backend: Tokenizer) -> frozenset[str]:
        """The tokens that the chat template looks for inside a text."""
        assert self.chat is not None  # noqa: S101
        every = [token.content for token in backend.get_added_tokens_decoder().values() if token.content.strip()]
        return self.chat.reads(plain_tokens(backend), every)

    def _check_day(self, *sources: str | None) -> None:
        """Keep the day among the options where the templates ask for it. Raises UsageError if a day was given and none does."""
        if any(source is not None and CLOCK in source for source in sources):
            # A forecaster that is saved keeps the day, whatever the default of a later version is.
            self.options = replace(self.options, template_date=self.day.isoformat())
        elif self.options.template_date is not None:
            raise UsageError(f"--template-date: the template of {self.checkpoint.name} writes no date")

    def taken(self, pair: Pair) -> Pair:
        if pair.system and not self.takes_system:
            self._say_joined()
        return super().taken(pair)

    def _say_joined(self) -> None:
        if not self._said_joined:
            self._said_joined = True
            _log.warning(
                "%s: takes no system message; such messages are joined to the first prompt", self.checkpoint.name
            )

    def _reads_otherwise(self, pair: Pair) -> bool:
        """Whether the template does something else with the pair's texts as they are than with special tokens read
        letter by letter."""
        texts = (
            pair.system,
            pair.reference or "",
            *(pair.tools or ()),
            *(text for turn in pair.turns for text in turn.texts),
        )
        if self.reader.special_tokens == "original" or not any(map(self.reader.has_special, texts)):
            return False
        try:
            return [*map(self.reader.shown, self._rendered(pair, self.reader))] != self._rendered(pair, None)
        except UsageError:
            return True

    @abstractmethod
    def _rendered(self, pair: Pair, reader: TextEncoder | None) -> list[str]:
        """What the template makes of a pair, whose texts are protected by `reader`. Raises UsageError."""

    @abstractmethod
    def group(self, pair: Pair) -> Group:
        """The sequences of a pair. Raises UsageError and ModelError."""

    def written(self, pair: Pair) -> list[tuple[str, ...]]:
        """The sequences of `group` as texts: one for each sequence, or two where the tokenizer joins two texts.

        A special token inside a text that is read literally is a mark there. Raises UsageError.
        """
        return [(text,) for text in self._rendered(pair, self.reader)]

    @property
    def framed(self) -> bool:
        """Whether the tokenizer puts its own first and last tokens around a sequence."""
        return False

    @abstractmethod
    def reduced(self, outputs: Sequence[Scores]) -> Evidence:
        """The evidence of n pairs from the outputs (sequences, outputs) of each."""

    @property
    def width(self) -> int:
        """How many outputs a sequence has at least."""
        return 1

    def _columns(self) -> tuple[int, ...] | None:
        """The tokens whose logits the model gives; None for a model with a head of its own."""
        return None

    def try_out(self) -> None:
        """Raise UsageError if the tokenizer or the template fails on a plain pair."""
        self.group(Pair.of("Why?", "Because.", "No idea.", reference="Because."))

    def _longest(self, pair: Pair) -> int:
        return max(len(ids) for ids in self.group(pair).ids)

    def grouped(self, pairs: Sequence[Pair]) -> tuple[dict[int, Group], dict[int, str]]:
        """The sequences of the pairs that can be scored, and the problems of the others, by position."""
        groups: dict[int, Group] = {}
        problems: dict[int, str] = {}
        for index, pair in enumerate(pairs):
            try:
                group = self.group(pair)
                longest = max(map(len, group.ids))
                if longest == 0:
                    raise ModelError("the template left no tokens to score")
                if longest > self.max_tokens:
                    raise UsageError(f"has {longest} tokens; at most {self.max_tokens} are read (--max-tokens)")
                groups[index] = group
            except (UsageError, ModelError) as error:
                problems[index] = str(error)
        return groups, problems

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        groups, problems = self.grouped(pairs)
        index = list(groups)
        batches = self.planned([group.unique()[0] for group in groups.values()])
        planned = [[index[place] for place in batch] for batch in batches]
        return [*planned, list(problems)] if problems else planned

    @property
    def batch_tokens(self) -> int:
        """The most tokens of a batch."""
        usual = _BATCH_TOKENS_CPU if self.devices[0].type == "cpu" else _BATCH_TOKENS_GPU
        return self.options.batch_tokens or usual

    def planned(self, groups: Sequence[Group], most: int | None = None) -> list[list[int]]:
        """Batches of positions in `groups`, each of at most `most` tokens (default: as the options say)."""
        most = most or self.batch_tokens
        if packs(self.checkpoint):
            limit = self.checkpoint.unscaled_length
            return plan_batches([packed_size(group.ids, limit) for group in groups], most)
        shapes = [(max(map(len, group.ids)), len(group.ids)) for group in groups]
        return plan_batches([group.tokens for group in groups], most, padded=shapes)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        start = time.perf_counter()
        groups, problems = self.grouped(pairs)
        meter.tokenised(time.perf_counter() - start)
        if problems:
            meter.advance(len(problems))
            yield list(problems), self._evidence(list(problems.values()))
        index = list(groups)
        unique = [group.unique() for group in groups.values()]
        for batch in self.planned([group for group, _ in unique]):
            results = self.engine.run([unique[place][0] for place in batch])
            # A sequence that a pair has twice was computed once.
            spread = [
                result if isinstance(result, str) else result[unique[place][1]]
                for place, result in zip(batch, results, strict=True)
            ]
            meter.advance(len(batch))
            yield [index[place] for place in batch], self._evidence(spread)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def _evidence(self, results: Sequence[Scores | str]) -> Evidence:
        """The evidence of pairs from their outputs. A text in the place of outputs is the pair's problem."""
        problems: dict[int, str] = {}
        good: dict[int, Scores] = {}
        for place, result in enumerate(results):
            if isinstance(result, str):
                problems[place] = result
            elif np.isfinite(result).all():
                good[place] = result
            else:
                wider = "; --dtype bfloat16 or float32 has a wider range"
                problems[place] = _NOT_FINITE + (wider if self._precision[0] is torch.float16 else "")
        found = self.reduced(list(good.values()))
        return replace(gathered(len(results), self.raw_names, [(list(good), found)]), problems=problems)

    @cached_property
    def _precision(self) -> tuple[torch.dtype, str | None]:
        """The type that the model computes in, and how its weights are quantised."""
        quantization = self.checkpoint.quantization or self.options.quantize
        stored = self.checkpoint.stored_dtype
        return compute_dtype(self.options.dtype, self.devices[0], stored, quantization), quantization

    @property
    def engine(self) -> Engine:
        """The loaded model."""
        if self._engine is None:
            if self.options.threads is not None:
                torch.set_num_threads(self.options.threads)
            dtype, quantize = self._precision[0], self.options.quantize
            self._engine = load_engine(
                self.checkpoint, self.devices, dtype, quantize, self._columns(), self.options.score_position
            )
        return self._engine

    def prepare(self) -> None:
        _ = self.engine

    def replicas(self) -> Sequence[Options]:
        """One for each device, unless one model is spread over all of them."""
        if self.options.spread or len(self.devices) == 1:
            return ()
        threads = self.options.threads or threads_each(self.devices)
        return [replace(self.options, devices=(str(device),), threads=threads) for device in self.devices]

    def close(self) -> None:
        self._engine = None
        free_memory()

    def save(self, folder: Path) -> None:
        if self.checkpoint.kind is Kind.CUSTOM:
            raise UsageError(
                f"{self.checkpoint.name}: needs --trust-remote-code, and a forecaster with such a model cannot be saved"
            )
        own = self.checkpoint.folder.resolve()
        data = {
            "format": _FORMAT,
            # A forecaster in the folder of its own model may be moved with it.
            "model": "." if own == folder.resolve() else str(own),
            "name": self.checkpoint.name,
            "fingerprint": self.fingerprint(),
            "options": to_save(self.options),
        }
        (folder / self.files[0]).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The scorer that `save` described. The model is not in `folder`; `moved` says where it is if it has moved.

        Raises ForecasterError if the model has changed.
        """
        path = folder / cls.files[0]
        data = json.loads(read_whole(path).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{path}: format {data['format']!r} is not one that this version reads")
        options = saved_options(Options, data["options"], shown_path(path))
        where = str(folder / data["model"]) if moved is None else moved
        if moved is None and not Path(where).is_dir():
            raise ForecasterError(
                f"{folder}: its model is no longer in {where}; say where it is: --model PATH beside --forecaster"
            )
        if options.base is not None and not Path(options.base).is_dir():
            raise ForecasterError(f"{folder}: the base model of its adapter is no longer in {shown_path(options.base)}")
        scorer = scorer_of(where, options)
        if scorer.fingerprint() != data["fingerprint"]:
            raise ForecasterError(f"{data['name']}: is not the model that the outcome model was fitted for")
        return scorer  # type: ignore[return-value]

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        # Computed once: the checkpoint does not change under a running scorer, nor do the options that are saved.
        said = [
            _COMPUTATION,
            self.fingerprint(),
            # What cuts the texts is not here: evidence is kept for a pair as it was read.
            self.options.special_tokens or "literal",
            self.options.template_date,
            getattr(self, "columns", None),
            self.options.score_position,
            [str(part) for part in self._precision],
            self._columns(),
            self.devices[0].type,
            # Another version of transformers may have another network.
            None if self.checkpoint.kind is Kind.INTERNLM2 else version("transformers"),
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 over the checkpoint and the template of a pair."""
        digest = hashlib.sha256(self.checkpoint.fingerprint().encode())
        template = getattr(self, "template", None) or (None if self.chat is None or self.chat.own else self.chat)
        if template is not None:
            digest.update(template.source.encode())
        return digest.hexdigest()

    def with_options(self, options: Any) -> RewardScorer:
        """The same scorer with other devices or batches. Raises UsageError for an option that a forecaster keeps."""
        if not isinstance(options, Options):
            return super().with_options(options)  # type: ignore[return-value]
        said = given(options)
        if any(name not in which(Options) for name in said):
            return super().with_options(options)  # type: ignore[return-value]
        saved = to_save(options)
        if fixed := next((name for name in said if name in saved), None):
            raise UsageError(f"--{fixed.replace('_', '-')}: is fixed in the forecaster; it was fitted so")
        return type(self)(self.checkpoint, replace(self.options, **{name: getattr(options, name) for name in said}))

    def spec(self, folder: Path) -> dict[str, Any]:
        # A worker loads the checkpoint from the same folder. `trust_remote_code` is among the options.
        return {"name": self.name, "model": str(self.checkpoint.folder.resolve()), "options": asdict(self.options)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> RewardScorer:
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in spec["options"].items()
        }
        return scorer_of(spec["model"], Options(**listed))
