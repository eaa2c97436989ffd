"""Reward models as scorers: pairs -> token ids -> batches -> outputs -> evidence."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.errors import ForecasterError, ModelError, UsageError, excerpt, shown_path
from prefcast.pairs import Pair, Turn
from prefcast.scorers.base import Evidence, Scorer
from prefcast.scorers.reward import Options, scorer_of
from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.devices import parse_devices, threads_each
from prefcast.scorers.reward.engine import Group, Recipe, Scores
from prefcast.scorers.reward.kept import KeptScores
from prefcast.scorers.reward.limit import TokenBudget
from prefcast.scorers.reward.loading import packs
from prefcast.scorers.reward.packing import packed_size
from prefcast.scorers.reward.replicas import LocalReplica, Replicas, Result
from prefcast.scorers.reward.text import TextReader
from prefcast.scorers.reward.tokenizers import load_tokenizer

__all__ = ["RewardScorer"]

# Measured (benchmarks/reward.py): more does not help a CPU; a GPU wants enough rows to fill it.
BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 16_384
_log = logging.getLogger("prefcast")
_FORMAT = 1


class RewardScorer(Scorer):
    """A reward model. The network is loaded when the first pair is scored."""

    name: ClassVar[str] = "reward-model"
    files: ClassVar[tuple[str, ...]] = ("reward-model.json",)

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
        self._kept: KeptScores | None = None
        self._threads: int | None = None

    def use_threads(self, threads: int) -> None:
        # The network is not loaded yet, or it keeps what it was loaded with.
        self._threads = threads

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
        start = time.perf_counter()
        longest = max(len(ids) for ids in self._group(turns).ids)
        self.tokenising += time.perf_counter() - start
        return longest

    def evidence(self, pairs: Sequence[Pair]) -> Evidence:
        groups: dict[int, Group] = {}
        problems: dict[int, str] = {}
        start = time.perf_counter()
        for index, pair in enumerate(pairs):
            try:
                group = self._group(pair.turns)
                self._check_length(group)
                groups[index] = group
            except (UsageError, ModelError) as error:
                problems[index] = str(error)
        self.tokenising += time.perf_counter() - start
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
        """The result of each group; what was scored before, here or by an earlier run, is not scored again.

        Known or not is asked of whole groups: in a pair, a conversation is computed from where it parts with the other
        one, so that alone its last digits would differ.
        """
        if not groups:
            return []
        unique = [group.unique() for group in groups]
        contents = [group.content for group, _ in unique]
        distinct = {content: group for content, (group, _) in zip(contents, unique, strict=True)}
        kept = self.kept
        known = {} if kept is None else kept.get(list(distinct))
        results: dict[bytes, Result] = {
            content: numbers.reshape(len(distinct[content].ids), -1) for content, numbers in known.items()
        }
        self.reused += sum(len(distinct[content].ids) for content in known)
        new = {content: group for content, group in distinct.items() if content not in known}
        if new:
            results |= self._scored(new, kept, len(groups) - len(new))
        found = [results[content] for content in contents]
        return [
            result if isinstance(result, str) else result[positions]
            for result, (_, positions) in zip(found, unique, strict=True)
        ]

    def _scored(self, new: Mapping[bytes, Group], kept: KeptScores | None, finished: int) -> dict[bytes, Result]:
        """Run the groups, keeping the scores of each batch as soon as it is done."""
        contents, groups = list(new), list(new.values())
        most = self.options.batch_tokens or BATCH_TOKENS.get(self.devices[0].type, _BATCH_TOKENS_ELSEWHERE)
        if packs(self.checkpoint):
            limit = self.checkpoint.unscaled_length
            batches = plan_batches([packed_size(group.ids, limit) for group in groups], most)
        else:
            shapes = [(max(map(len, group.ids)), len(group.ids)) for group in groups]
            batches = plan_batches([group.tokens for group in groups], most, padded=shapes)

        def done(number: int, results: list[Result]) -> None:
            nonlocal finished
            finished += len(results)
            if kept is not None:
                kept.put(
                    {
                        contents[index]: result.ravel()
                        for index, result in zip(batches[number], results, strict=True)
                        if not isinstance(result, str) and np.isfinite(result).all()
                    }
                )
            if self.on_progress:
                self.on_progress(finished)

        found = self.replicas.run([[groups[index] for index in batch] for batch in batches], done)
        results = {
            contents[index]: result
            for batch, scored in zip(batches, found, strict=True)
            for index, result in zip(batch, scored, strict=True)
        }
        self.computed += sum(len(result) for result in results.values() if not isinstance(result, str))
        return results

    @property
    def kept(self) -> KeptScores | None:
        """The scores of earlier runs; None where none are kept."""
        # The fingerprint does not cover code of the checkpoint, which may change.
        if self._kept is None and self.options.keep and self.checkpoint.kind is not Kind.CUSTOM:
            dtype, quantization = self._recipe.precision(self.checkpoint)
            self._kept = KeptScores(
                json.dumps(
                    [
                        self.checkpoint.fingerprint(),
                        str(dtype),
                        quantization,
                        self._columns(),
                        self.devices[0].type,
                        # Another version may run another network.
                        None if self.checkpoint.kind is Kind.INTERNLM2 else version("transformers"),
                    ]
                )
            )
        return self._kept

    @property
    def _recipe(self) -> Recipe:
        return Recipe(
            str(self.checkpoint.folder.resolve()),
            tuple(map(str, self.devices)),
            self.options.dtype,
            self.options.quantize,
            self._columns(),
            self._threads or (threads_each(self.devices) if not self.options.shard else None),
            self.options.trust_remote_code,
        )

    @property
    def replicas(self) -> LocalReplica | Replicas:
        """The loaded model, in this process or in one a device."""
        if self._replicas is None:
            recipe = self._recipe
            one = self.options.shard or len(self.devices) == 1
            if one and not self.options.isolate:
                self._replicas = LocalReplica(recipe)
            else:
                each = [recipe] if one else [replace(recipe, devices=(device,)) for device in recipe.devices]
                self._replicas = Replicas(each, self.options.time_limit)
        return self._replicas

    @property
    def _may_be_float16(self) -> bool:
        return self.options.dtype == "float16" or (self.options.dtype is None and self.devices[0].type != "cpu")

    def close(self) -> None:
        if self._replicas is not None:
            self._replicas.close()
            self._replicas = None
        if self._kept is not None:
            self._kept.close()
            self._kept = None

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
        options = _saved_options(data["options"], folder / cls.files[0])
        where = data["model"] if model is None else model
        if model is None and not Path(where).is_dir():
            raise ForecasterError(
                f"{folder}: its model is no longer in {where}; say where it is: --model PATH beside --forecaster"
            )
        scorer = scorer_of(where, options)
        if scorer.fingerprint() != data["fingerprint"]:
            raise ForecasterError(f"{data['name']}: is not the model that the outcome model was fitted for")
        return scorer  # type: ignore[return-value]

    def identity(self) -> str:
        options = {name: value for name, value in vars(self.options).items() if name not in _NOT_SAVED}
        said = [self.fingerprint(), options, str(self._recipe.precision(self.checkpoint)), self.devices[0].type]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

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


# Where a model runs and what is kept of it is the machine's affair, not the forecaster's; remote code is trusted anew each time.
_NOT_SAVED = {"devices", "shard", "batch_tokens", "trust_remote_code", "keep", "isolate", "time_limit"}
_TEXT = str, type(None)
# All that a saved folder may say, and of what type: a folder may come from a stranger.
_SAVED: dict[str, tuple[type, ...]] = {
    "dtype": _TEXT,
    "quantize": _TEXT,
    "special_tokens": _TEXT,
    "max_tokens": (int, type(None)),
    "policy": (str,),
    "template": _TEXT,
    "labels": (list, type(None)),
}


def _saved_options(said: Any, path: Path) -> Options:
    """The options in a saved file. Raises ForecasterError for one that a file may not set, or of another type."""
    shown = shown_path(path)
    if not isinstance(said, dict):
        raise ForecasterError(f"{shown}: options must be an object, found {excerpt(said)}")
    for name, value in said.items():
        if name not in _SAVED:
            raise ForecasterError(
                f"{shown}: the option {excerpt(name)} may not be set by a file; a file may set {', '.join(_SAVED)}"
            )
        if isinstance(value, bool) or not isinstance(value, _SAVED[name]):
            raise ForecasterError(
                f"{shown}: the option {name} has the value {excerpt(value)}, which is of a wrong type"
            )
    labels = said.get("labels")
    if labels is not None and not all(isinstance(label, str) for label in labels):
        raise ForecasterError(f"{shown}: the option labels must list texts, found {excerpt(labels)}")
    return Options(**{**said, "labels": None if labels is None else tuple(labels)})
