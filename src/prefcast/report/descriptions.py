"""Input files, models and checkpoints described as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefcast.errors import shown_path
from prefcast.pairs import Outcome
from prefcast.pairs.formats.shapes import CELLS_HINT
from prefcast.report.terminal import rendered, short, table
from prefcast.scorers.options import which

if TYPE_CHECKING:
    from prefcast.forecasts.check import FaultKind, Inspection
    from prefcast.measuring.doctor.findings import Finding
    from prefcast.scorers.info import ScorerInfo
    from prefcast.scorers.remote.probing import Report
    from prefcast.scorers.reward.checkpoint import Checkpoint
    from prefcast.scorers.store import Held

__all__ = [
    "checkpoint_text",
    "fault_lines",
    "filtered_text",
    "findings_text",
    "inspection_text",
    "models_text",
    "probe_text",
    "scorer_text",
    "size_text",
    "store_text",
]

_SHOWN_TURNS = 6


def inspection_text(found: Inspection) -> str:
    """What `check` found, one fact per line."""
    turns = ", ".join(f"{count} with {number}" for number, count in list(found.turns.items())[:_SHOWN_TURNS])
    turns += ", ..." if len(found.turns) > _SHOWN_TURNS else ""
    labels = ", ".join(
        f"{outcome.name if outcome is not Outcome.TIE else 'tie'} {found.labels[outcome]}"
        for outcome in Outcome
        if outcome in found.labels
    )
    unlabelled = found.labels.get(None, 0)
    facts = [
        ("rows", f"{found.rows}, {found.failed} at fault"),
        ("ids", "in the file" if found.has_id else "none: the row numbers are the ids"),
        ("turns", turns or "none"),
        ("labels", f"{labels or 'none'}{f', {unlabelled} without' if labels and unlabelled else ''}"),
        (
            "characters",
            f"about {found.characters_median:.0f} a pair (median), the longest {found.characters_longest}; "
            f"the budget {found.budget} would cut {found.truncated} pairs",
        ),
        (
            "time",
            f"{_duration(found.seconds)} for a forecast with {found.model} here "
            f"({found.rate:.0f} pairs a second measured)",
        ),
    ]
    if found.note:
        facts.insert(0, ("order", found.note))
    return rendered(f"{found.name}: {found.description}", table(("", ""), facts))


def findings_text(findings: Iterable[Finding]) -> str:
    """What `check` found in the pairs and their votes, one finding per line."""
    return rendered(table(("", ""), [(each.name, each.text) for each in findings]))


def fault_lines(kinds: Iterable[FaultKind]) -> Iterator[str]:
    """A line for each kind of fault, and one more line if some say that the cells may be plain text."""
    plain = False
    for kind in kinds:
        said = str(kind.first)
        plain |= CELLS_HINT in said
        said = said.replace(CELLS_HINT, "")
        if kind.count > 1:
            rows = ", ".join(map(str, kind.rows))
            said += f" ({kind.count:,} rows have a fault of this kind: {rows}{', ...' if kind.count > len(kind.rows) else ''})"
        yield said
    if plain:
        yield "if the cells are plain text, one turn each: --cells text"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def filtered_text(rows: int, kept: int, gone: Mapping[str, int], examples: Mapping[str, Sequence[object]]) -> str:
    """How many rows stay, and how many go for which reason, with the ids of a few of them."""
    listed = [
        (reason, f"{count:,}", f"{count / max(1, rows):.1%}", ", ".join(short(str(id), 24) for id in examples[reason]))
        for reason, count in sorted(gone.items(), key=lambda each: -each[1])
        if count
    ]
    head = f"{kept:,} of {rows:,} rows stay ({kept / max(1, rows):.1%})"
    return rendered(head, table(("reason", "rows", "share", "examples"), listed, right=(1, 2))) if listed else head


def models_text(scorers: Iterable[ScorerInfo]) -> str:
    """The models, one per line."""
    rows = [(each.name, f"{each.summary} (needs: {each.needs})") for each in scorers]
    reward = "a reward model: a folder with config.json and safetensors, or a hub id"
    rows.append(("PATH or ID", f"{reward} (needs: pip install 'prefcast[transformers]')"))
    rows.append(
        ("URL", "a reward model behind a server, with --protocol (needs: pip install 'prefcast[remote,transformers]')")
    )
    judge = "an LLM as a judge, by the address of its API: --judge URL --judge-model NAME"
    rows.append(("judge:URL", f"{judge} (needs: pip install 'prefcast[remote]')"))
    return rendered(table(("", ""), rows))


def probe_text(url: str, model: str, report: Report) -> str:
    """What a probe of a server looked at, one line each, then each fault and doubt with what mends it."""
    found = [("fault" if each.fault else "doubt", each.line) for each in report.findings]
    head, looked = f"{url}: {model}", table(("", ""), report.looked)
    return rendered(head, looked, "", table(("", ""), found)) if found else rendered(head, looked)


def scorer_text(info: ScorerInfo) -> str:
    """What is known of a scorer, with its options."""
    defaults = info.options()
    rows = [
        (f"--{name.replace('_', '-')}", about.help + _default(getattr(defaults, name)))
        for name, about in which(info.options).items()
        if about.help
    ]
    head = f"{info.name}: {info.summary} (needs: {info.needs})"
    return rendered(head, table(("option", ""), rows)) if rows else rendered(f"{head}; it has no options")


def _default(value: object) -> str:
    return "" if value in (None, False) else f"  [default: {value}]"


def store_text(held: Held) -> str:
    """What an evidence store holds, one fact per line."""
    times = [
        "-" if each is None else f"{datetime.fromtimestamp(each, UTC):%Y-%m-%d %H:%M} UTC"
        for each in (held.oldest, held.newest)
    ]
    facts = [
        ("entries", f"{held.entries:,}"),
        ("size", f"{size_text(held.bytes)} of at most {size_text(held.limit)}"),
        ("added", f"{times[0]} to {times[1]}" if held.entries else "-"),
    ]
    return rendered(held.path, table(("", ""), facts))


def checkpoint_text(checkpoint: Checkpoint) -> str:
    """What a checkpoint is, one fact per line."""
    limit, stored = checkpoint.limit, checkpoint.quantization
    files = len({tensor.file for tensor in checkpoint.tensors.values()})
    facts = [
        ("architecture", f"{checkpoint.architecture} ({checkpoint.config.get('model_type', '?')})"),
        ("parameters", _count(checkpoint.parameters)),
        ("stored as", f"{checkpoint.stored}{f' in {stored}' if stored else ''}, {files} file(s)"),
        ("reads", f"at most {limit} tokens" if limit else "the checkpoint names no limit: --max-tokens is needed"),
        ("template", checkpoint.template_note),
        *([("date", f"{checkpoint.template_day}; --template-date sets another")] if checkpoint.template_day else []),
        ("labels", checkpoint.label_note),
        ("memory", "of the weights on each device, without the batch:"),
    ]
    facts += [
        ("", f"{precision:9} {size_text(checkpoint.memory(precision)):>9}")
        for precision in ("float32", "float16", "bfloat16", "int8", "nf4")
        if stored in (None, precision)
    ]
    if checkpoint.adapter is not None:
        facts.append(
            ("adapter", f"LoRA on {len(checkpoint.adapter.deltas)} matrices of {shown_path(checkpoint.base or '')}")
        )
    if checkpoint.remote_code:
        facts.append(("its own code", "named in config.json; never imported without --trust-remote-code"))
    return rendered(f"{checkpoint.name}: {checkpoint.kind}", table(("", ""), facts))


def size_text(size: float) -> str:
    """A number of bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {name}"
    return str(number)
