"""A reward model behind a server as a scorer: the texts are made here, the scores come from there."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from prefcast.base.files import read_whole
from prefcast.errors import (
    ForecasterError,
    ModelError,
    ServiceError,
    UsageError,
    excerpt,
    printable,
    shown_path,
)
from prefcast.pairs import Pair
from prefcast.scorers.base import SILENT, Conversation, Evidence, Meter, Part, Promise, Scorer, gathered
from prefcast.scorers.options import given, saved_options, to_save, which
from prefcast.scorers.remote import Options
from prefcast.scorers.remote.probe import Report, probe
from prefcast.scorers.remote.sending import Sender
from prefcast.scorers.remote.server import Server
from prefcast.scorers.remote.texts import ChatTexts, Texts, texts_for

if TYPE_CHECKING:
    from prefcast.base.http import Transport

__all__ = ["RemoteScorer"]

_log = logging.getLogger("prefcast")
_FORMAT = 1
# Raise this number when the same server gives other evidence than before.
_COMPUTATION = 1
# What a score may change with the other requests that a server works on at the same time. Servers promise nothing; this is
# what bfloat16 loses.
_BATCH = 0.05


class RemoteScorer(Scorer):
    """The model behind the server at `url`. Nothing is sent before it must be: the server is asked for its name when the
    tokenizer's folder or the identity is needed, and probed before the first row is scored."""

    name: ClassVar[str] = "remote"
    files: ClassVar[tuple[str, ...]] = ("remote.json",)
    may_lie_elsewhere: ClassVar[bool] = True
    # A server is asked from one process: others would only share its time.
    portable = False
    promise = Promise(swap=0.0, batch=_BATCH)

    def __init__(
        self,
        url: str,
        options: Options,
        saved: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
    ) -> None:
        _check_values(options)
        self.url, self._saved, self._transport = url, saved, transport
        self.options: Options = options
        self.server = Server(url, options, transport)
        self.workers = options.concurrency
        try:
            self._texts = self._found_texts()
        except BaseException:
            self.server.close()
            raise
        self._sending: Sender | None = None
        if self._texts is not None:
            self._sending = Sender(self.server, self._texts, options.concurrency, options.request_size)
            self.raw_names, self.pointwise = self._texts.raw_names, self._texts.pointwise
            self.takes_system, self.takes_tools = self._texts.takes_system, self._texts.takes_tools
            self.limit = self._texts.limit
        elif saved is not None:
            self.raw_names, self.pointwise = saved["raw_names"], saved["raw_names"] == ("score_a", "score_b")
        self._report: Report | None = None
        self._lock = Lock()

    # The texts

    def _found_texts(self) -> Texts | None:
        """What makes texts of pairs; None where a saved forecaster's tokenizer is not here."""
        options, saved = self.options, self._saved
        if options.template == "chat":
            return ChatTexts(self.server.protocol)
        where = options.tokenizer
        if where is None and saved is not None:
            where = saved["tokenizer"] if Path(saved["tokenizer"]).is_dir() else None
            if where is None:
                return None
        if where is None:
            root = self.server.introduced().about.root
            if not _is_model_folder(root):
                raise UsageError(
                    f"{self.server.shown}: its model {excerpt(root or 'without a name')} is no folder here; name the folder or hub "
                    "id with its tokenizer and config.json: --tokenizer FOLDER|ID (with vLLM, --template chat leaves the text to "
                    "the server)"
                )
            where = root
        found = texts_for(where, options, self.server.protocol)
        # What the templates write depends on the day, which a saved forecaster keeps.
        self.options = replace(options, template_date=found.template_date)
        if saved is not None and found.fingerprint() != saved["texts"]:
            raise ForecasterError(
                f"{shown_path(where)}: does not make the texts that the outcome model was fitted for; name the model's own "
                "folder with --tokenizer"
            )
        return found

    @property
    def texts(self) -> Texts:
        """What makes texts of pairs. Raises UsageError where it is missing."""
        if self._texts is None:
            where = "" if self._saved is None else shown_path(self._saved["tokenizer"])
            raise UsageError(
                f"the tokenizer of the forecaster is no longer in {where}; say where it is: --tokenizer FOLDER"
            )
        return self._texts

    def _sender(self) -> Sender:
        _ = self.texts
        assert self._sending is not None  # noqa: S101
        return self._sending

    # Scoring

    def batches(self, pairs: Sequence[Pair]) -> Sequence[Sequence[int]]:
        rows, problems = self.texts.items(pairs)
        planned = self._sender().planned(rows)
        return [*planned, list(problems)] if problems else planned

    def stream(self, pairs: Sequence[Pair], meter: Meter = SILENT) -> Iterator[Part]:
        start = time.perf_counter()
        rows, problems = self.texts.items(pairs)
        meter.tokenised(time.perf_counter() - start)
        if problems:
            meter.advance(len(problems))
            yield list(problems), self._evidence(list(problems.values()))
        if not rows:
            return
        self.prepare()
        for batch, results in self._sender().answered(rows):
            meter.advance(len(batch))
            yield batch, self._evidence(results)

    def compute(self, pairs: Sequence[Pair]) -> Evidence:
        return self.evidence(pairs)

    def _evidence(self, results: Sequence[NDArray[np.float64] | str]) -> Evidence:
        problems = {place: each for place, each in enumerate(results) if isinstance(each, str)}
        good = {place: each for place, each in enumerate(results) if not isinstance(each, str)}
        found = self.texts.reduced(list(good.values()))
        return replace(gathered(len(results), self.raw_names, [(list(good), found)]), problems=problems)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float64]:
        if not self.pointwise:
            return super().score(conversations)
        rows = {index: [self.texts.item_of(each)] for index, each in enumerate(conversations)}
        scores = np.full(len(rows), np.nan)
        if rows:
            self.prepare()
        for batch, results in self._sender().answered(rows):
            for index, result in zip(batch, results, strict=True):
                if isinstance(result, str):
                    raise ModelError(f"conversation {index}: {result}")
                scores[index] = result[0, 0]
        return scores

    # The probe

    def prepare(self) -> None:
        """Probe the server, once. Raises ServiceError for a server that must not be used."""
        with self._lock:
            if self._report is None:
                self._check_served()
                self._report = report = probe(self.server, self.texts)
                faults = report.faults
                if faults and self.options.probe == "refuse":
                    self._report = None
                    raise ServiceError(
                        f"{self.server.shown}: {faults[0].line}"
                        + (f" ({len(faults) - 1} more: prefcast models probe)" if faults[1:] else "")
                    )
                for each in report.findings:
                    _log.warning("%s: %s", self.server.shown, each.line)

    def probed(self) -> Report:
        """What a probe of the server finds; faults do not raise."""
        self._check_served()
        return probe(self.server, self.texts)

    def _check_served(self) -> None:
        """Raise UsageError for a server that reads less than is sent, and ForecasterError for one with another model."""
        about, limit = self.server.introduced().about, self.texts.max_tokens
        if about.limit is not None and limit is not None and about.limit < limit:
            raise UsageError(
                f"{self.server.shown}: reads at most {about.limit} tokens, and up to {limit} would be sent; --max-tokens {about.limit} "
                "reads no more of a pair"
            )
        if self._saved is not None and (about.model, about.revision) != (
            self._saved["served"],
            self._saved["revision"],
        ):
            raise ForecasterError(
                f"{self.server.shown}: serves {_served(about.model, about.revision)}, and the outcome model was fitted for "
                f"{_served(self._saved['served'], self._saved['revision'])}; --served-name names another model of the server"
            )

    # What it is

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        about = self.server.introduced().about
        said = [
            _COMPUTATION,
            self.name,
            self.server.protocol.name,
            self.server.url,
            [about.model, about.root, about.revision],
            self.texts.fingerprint(),
            # What cuts the texts is not here: evidence is kept for a pair as it was read.
            self.options.special_tokens or "literal",
            self.options.template_date,
            self.options.score_position,
            # Scores of a server that was not refused and of one that was let pass are not mixed.
            self.options.probe,
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        about = self.server.introduced().about
        data = {
            "format": _FORMAT,
            # For messages: it is never asked unless a person names it.
            "address": self.server.shown,
            "served": about.model,
            "revision": about.revision,
            "tokenizer": self.texts.where,
            "texts": self.texts.fingerprint(),
            "raw_names": list(self.raw_names),
            "options": to_save(self.options),
        }
        (folder / self.files[0]).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def spec(self, folder: Path) -> dict[str, Any]:
        raise UsageError(
            "a server is asked from one process: leave out --engine ray, --concurrency sends more at a time"
        )

    @classmethod
    def load(cls, folder: Path, moved: str | None = None) -> Self:
        """The scorer that `save` described, behind the server at `moved`. An address that a folder names is never asked."""
        path = folder / cls.files[0]
        data = json.loads(read_whole(path).decode())
        if data["format"] != _FORMAT:
            raise ForecasterError(f"{path}: format {excerpt(data['format'])} is not one that this version reads")
        texts = [data[name] for name in ("address", "served", "revision", "tokenizer", "texts")]
        names = tuple(data["raw_names"])
        known = (("score_a", "score_b"), ("logit_a", "logit_b"), ("logit_a", "logit_b", "logit_tie"))
        if not all(isinstance(text, str) for text in texts) or names not in known:
            raise ForecasterError(f"{shown_path(path)}: damaged: its values do not fit together")
        options = saved_options(Options, data["options"], shown_path(path))
        if moved is None:
            raise ForecasterError(
                f"{shown_path(folder)}: its scores come from a server, and a saved folder cannot send your texts anywhere; "
                f"name the server yourself: --model URL beside --forecaster (it was fitted for {_served(texts[1], texts[2])} at "
                f"{printable(texts[0])[:200]})"
            )
        if not moved.startswith(("http://", "https://")):
            raise UsageError(
                f"its scores come from a server; --model names the server's address, found {excerpt(moved)}"
            )
        return cls(moved, options, {**data, "raw_names": names})

    def with_options(self, options: Any) -> Scorer:
        """The same scorer with other settings of the connection. Raises UsageError for an option that a forecaster keeps."""
        said, known = given(options), which(Options)
        if any(name not in known for name in said):
            return super().with_options(options)
        # --served-name says where the model is, as the address does; it is compared with the saved one.
        if fixed := next((name for name in said if known[name].saved and name != "served_name"), None):
            raise UsageError(f"--{fixed.replace('_', '-')}: is fixed in the forecaster; it was fitted so")
        changed = replace(self.options, **{name: getattr(options, name) for name in said})
        return type(self)(self.url, changed, self._saved, self._transport)

    def close(self) -> None:
        if self._sending is not None:
            self._sending.close()
        self.server.close()


def _is_model_folder(name: str) -> bool:
    """Whether a name that a server chose is a folder with a model: a folder here at most, never something to fetch."""
    try:
        return Path(name).is_absolute() and (Path(name) / "config.json").is_file()
    except (OSError, ValueError):
        return False


def _served(model: str, revision: str) -> str:
    return f"the model {excerpt(model)}{f' of revision {excerpt(revision)}' if revision else ''}"


def _check_values(options: Options) -> None:
    for name, about in which(Options).items():
        value = getattr(options, name)
        if about.choices and value is not None and value not in about.choices:
            raise UsageError(f"unknown {name} {excerpt(value)}; there are {', '.join(about.choices)}")
        if about.least is not None and not value >= about.least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {about.least:g}, found {value}")
