"""Reward models as scorers: pairs -> token ids -> batches -> outputs -> evidence."""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from prefcast.errors import ForecasterError, ModelError, UsageError, shown_path
from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import SILENT, Evidence, Meter, Part, Promise, Scorer, gathered
from prefcast.scorers.options import given, saved_options, to_save
from prefcast.scorers.reward import Options, scorer_of
from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.engine import Engine, EngineSpec, Group, Scores, free_memory
from prefcast.scorers.reward.limit import TokenBudget
from prefcast.scorers.reward.loading import packs
from prefcast.scorers.reward.packing import packed_size
from prefcast.scorers.reward.text import TextEncoder
from prefcast.scorers.reward.tokenizers import load_tokenizer

__all__ = ["RewardScorer"]

# Measured (benchmarks/reward.py): more does not help a CPU; a GPU wants enough rows to fill it.
BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 16_384
_FORMAT = 1
# Raise it when the same model gives other scores than before.
_COMPUTATION = 1
TOO_LARGE = "needs more memory than the device has; --max-tokens reads less of it"


class RewardScorer(Scorer):
    """A reward model. The network is loaded when the first pair is scored."""

    name: ClassVar[str] = "reward-model"
    files: ClassVar[tuple[str, ...]] = ("reward-model.json",)
    may_lie_elsewhere: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.devices = parse_devices(options.devices)
        self.tokenizer = load_tokenizer(checkpoint)
        self.reader = TextEncoder(
            self.tokenizer.backend, options.special_tokens or "literal", self.tokenizer.chat_template
        )
        self.max_tokens = self._max_tokens()
        self.limit = TokenBudget(options.policy, self.max_tokens, self._longest, self.reader)
        # The fingerprint does not cover code of the checkpoint, which may change.
        self.promise = Promise(repeatable=checkpoint.kind is not Kind.CUSTOM)
        self._engine: Engine | None = None

    def use_threads(self, threads: int) -> None:
        # The network is not loaded yet, or it keeps what it was loaded with.
        self.options = replace(self.options, threads=threads)

    def _max_tokens(self) -> int:
        asked, limit, most = self.options.max_tokens, self.checkpoint.limit, self.checkpoint.positions
        if asked is not None and asked < 1:
            raise UsageError(f"--max-tokens must be at least 1, found {asked}")
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

    def _grouped(self, pairs: Sequence[Pair]) -> tuple[dict[int, Group], dict[int, str]]:
        """The sequences of each pair, and the problems of those that cannot be scored, by position."""
        groups: dict[int, Group] = {}
        problems: dict[int, str] = {}
        for index, pair in enumerate(pairs):
            try:
                group = self._group(pair.turns)
                self._check_length(group)
                groups[index] = group
            except (UsageError, ModelError) as error:
                problems[index] = str(error)
        return groups, problems

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        groups, problems = self._grouped(pairs)
        index = list(groups)
        planned = [
            [index[place] for place in batch] for batch in self._planned([groups[place].unique()[0] for place in index])
        ]
        return [*planned, list(problems)] if problems else planned

    def _planned(self, groups: Sequence[Group]) -> list[list[int]]:
        most = self.options.batch_tokens or BATCH_TOKENS.get(self.devices[0].type, _BATCH_TOKENS_ELSEWHERE)
        if packs(self.checkpoint):
            limit = self.checkpoint.unscaled_length
            return plan_batches([packed_size(group.ids, limit) for group in groups], most)
        shapes = [(max(map(len, group.ids)), len(group.ids)) for group in groups]
        return plan_batches([group.tokens for group in groups], most, padded=shapes)

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        start = time.perf_counter()
        groups, problems = self._grouped(pairs)
        meter.tokenised(time.perf_counter() - start)
        if problems:
            meter.advance(len(problems))
            yield list(problems), self._evidence(list(problems.values()))
        index = list(groups)
        unique = [groups[place].unique() for place in index]
        for batch in self._planned([group for group, _ in unique]):
            results = self.engine.run([unique[place][0] for place in batch])
            # A sequence that a pair has twice was computed once.
            spread = [
                TOO_LARGE if result is None else result[unique[place][1]]
                for place, result in zip(batch, results, strict=True)
            ]
            meter.advance(len(batch))
            yield [index[place] for place in batch], self._evidence(spread)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def _evidence(self, results: Sequence[Scores | str]) -> Evidence:
        """The evidence of pairs whose outputs, or why there are none, are `results`."""
        problems: dict[int, str] = {}
        good: list[int] = []
        for place, result in enumerate(results):
            if isinstance(result, str):
                problems[place] = result
            elif not np.isfinite(result).all():
                problems[place] = "the model gave a score that is not finite" + (
                    "; --dtype bfloat16 or float32 has a wider range" if self._may_be_float16 else ""
                )
            else:
                good.append(place)
        found = self._reduce(
            [result for result in results if not isinstance(result, str) and np.isfinite(result).all()]
        )
        whole = gathered(len(results), self.raw_names, [(good, found)])
        return replace(whole, problems=problems)

    def _check_length(self, group: Group) -> None:
        longest = max(len(ids) for ids in group.ids)
        if longest == 0:
            raise ModelError("the template left no tokens to score")
        if longest > self.max_tokens:
            raise UsageError(f"has {longest} tokens; at most {self.max_tokens} are read (--max-tokens)")

    @property
    def _spec(self) -> EngineSpec:
        return EngineSpec(
            str(self.checkpoint.folder.resolve()),
            tuple(map(str, self.devices)),
            self.options.dtype,
            self.options.quantize,
            self._columns(),
            self.options.threads,
            self.options.trust_remote_code,
        )

    @property
    def engine(self) -> Engine:
        """The loaded model, in this process."""
        if self._engine is None:
            self._engine = self._spec.build()
        return self._engine

    def prepare(self) -> None:
        _ = self.engine

    def replicas(self) -> Sequence[Options]:
        """One for each device, unless one model is spread over all of them."""
        if self.options.spread or len(self.devices) == 1:
            return ()
        threads = self.options.threads or threads_each(self.devices)
        return [replace(self.options, devices=(str(device),), threads=threads) for device in self.devices]

    @property
    def _may_be_float16(self) -> bool:
        return self.options.dtype == "float16" or (self.options.dtype is None and self.devices[0].type != "cpu")

    def close(self) -> None:
        self._engine = None
        free_memory()

    def save(self, folder: Path) -> None:
        if self.checkpoint.kind is Kind.CUSTOM:
            raise UsageError(
                f"{self.checkpoint.name}: has code of its own, which a saved forecaster could not ask leave to run"
            )
        data = {
            "format": _FORMAT,
            "model": str(self.checkpoint.folder.resolve()),
            "name": self.checkpoint.name,
            "fingerprint": self.fingerprint(),
            "options": to_save(self.options),
        }
        (folder / self.files[0]).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The scorer that `save` described. The model itself stays where it lay, unless `moved` says where it is now.

        Raises ForecasterError if it has changed since.
        """
        data = json.loads((folder / cls.files[0]).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ForecasterError(
                f"{folder / cls.files[0]}: format {data['format']!r} is not one that this version reads"
            )
        options = saved_options(Options, data["options"], shown_path(folder / cls.files[0]))
        where = data["model"] if moved is None else moved
        if moved is None and not Path(where).is_dir():
            raise ForecasterError(
                f"{folder}: its model is no longer in {where}; say where it is: --model PATH beside --forecaster"
            )
        scorer = scorer_of(where, options)
        if scorer.fingerprint() != data["fingerprint"]:
            raise ForecasterError(f"{data['name']}: is not the model that the outcome model was fitted for")
        return scorer  # type: ignore[return-value]

    def identity(self) -> str:
        said = [
            _COMPUTATION,
            self.fingerprint(),
            to_save(self.options),
            [str(part) for part in self._spec.precision(self.checkpoint)],
            self._columns(),
            self.devices[0].type,
            # Another version may run another network.
            None if self.checkpoint.kind is Kind.INTERNLM2 else version("transformers"),
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 over what the scores depend on: the checkpoint, and a template that was named."""
        digest = hashlib.sha256(self.checkpoint.fingerprint().encode())
        template = getattr(self, "template", None)
        if template is not None:
            digest.update(template.source.encode())
        return digest.hexdigest()

    def with_options(self, options: Any) -> RewardScorer:
        """The same scorer where `options` say: devices, batches. Raises UsageError if they say more."""
        said = given(options)
        saved = to_save(options)
        if fixed := next((name for name in said if name in saved), None):
            raise UsageError(f"--{fixed.replace('_', '-')}: is fixed in the forecaster; it was fitted so")
        return type(self)(self.checkpoint, replace(self.options, **{name: getattr(options, name) for name in said}))

    def spec(self, folder: Path) -> dict[str, Any]:
        # A worker loads the checkpoint from where it lies, with the leave to run its code that was given here.
        return {"name": self.name, "model": str(self.checkpoint.folder.resolve()), "options": asdict(self.options)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> RewardScorer:
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in spec["options"].items()
        }
        return scorer_of(spec["model"], Options(**listed))
