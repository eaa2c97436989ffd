"""A few requests that show whether a server's scores are the model's own: raw, of the whole text, in order, and repeatable.

What is found is a fault (such scores must not be used) or a doubt (they can be used, and a person should know). The texts of
the probe are ours; none of a person's rows is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefcast.errors import excerpt
from prefcast.scorers.remote.probing import Asking, Finding, Report, Scores, probe_items
from prefcast.scorers.remote.protocols import Item
from prefcast.scorers.remote.reading import look_at_long_texts, look_at_tokens
from prefcast.scorers.remote.server import Server
from prefcast.scorers.remote.texts import Texts

__all__ = ["Finding", "Report", "probe"]

# Float32 of two servers agrees to this.
_SAME = 1e-5
# A score that another batch changes by more is worth a word.
_STABLE = 1e-3
_HIDDEN = 16
_ALONE = 6


def probe(server: Server, texts: Texts) -> Report:
    """Ask the server about 15 times. Raises ServiceError for one that cannot be reached or does not score at all."""
    report, asking = Report(), Asking(server, texts)
    items = probe_items(texts)
    rows = asking.first(items)
    width = len(rows[0])
    if width != texts.width:
        what = (
            "these are hidden states, no scores" if width > _HIDDEN else "--labels and config.json say how many it has"
        )
        report.found(
            "outputs",
            f"the server gives {width} numbers for a text, and {texts.width} are expected: {what}",
            f"start it as {server.protocol.start}, with --tokenizer of the same model",
        )
        return report
    outputs = np.array(rows)
    _look_at_scale(report, asking, items, outputs)
    # The scale may have found the switch that works.
    outputs = np.array(asking.all(items))
    _look_at_batches(report, asking, items, outputs)
    _look_at_labels(report, asking, texts)
    look_at_tokens(report, asking, items, texts)
    if all(each.kind != "cut" for each in report.findings):
        look_at_long_texts(report, asking, texts)
    return report


# The scale


def _look_at_scale(report: Report, asking: Asking, items: Sequence[Item], outputs: Scores) -> None:
    protocol = asking.protocol
    found = _squashed(outputs)
    if found is None and np.ptp(outputs) == 0:
        report.found(
            "scale", f"every text has the same score, {outputs.flat[0]:.6g}", f"start the server as {protocol.start}"
        )
        return
    if found is None:
        report.sound("scale", f"raw: scores from {outputs.min():.4g} to {outputs.max():.4g} over {len(outputs)} texts")
        return
    for switch in protocol.switches:
        protocol.switch = switch
        raw = np.array(asking.all(items))
        # Where the switch has an effect, what it gives is raw, wherever that lies.
        if np.abs(raw - np.array(asking.all(items, raw=False))).max() > _SAME and _squashed(raw) != _ONE_LABEL:
            told = "" if switch == protocol.switches[0] else f" (this version calls the field {switch})"
            report.sound("scale", f"raw: {switch} changes the scores{told}")
            return
    if protocol.switches:
        protocol.switch = protocol.switches[0]
    report.found("scale", found, _MENDS[protocol.name])


_ONE_LABEL = "every score is exactly 1: a softmax over one label"
_MENDS = {
    "vllm": "start vLLM with --pooler-config '{\"use_activation\": false}', or a version that knows use_activation; if the "
    "model's own scores lie so, --probe warn uses them",
    "sglang": "ask its native /classify of a model that ends without an activation; if the model's own scores lie so, --probe "
    "warn uses them",
    "tei": "use a version that knows raw_scores; if the model's own scores lie so, --probe warn uses them",
    "openrlhf": "take the sigmoid out of the server; if the model's own scores lie so, --probe warn uses them",
}


def _squashed(outputs: Scores) -> str | None:
    """Why scores (n, width) look like those of an activation; None where they do not."""
    if outputs.shape[1] == 1 and np.abs(outputs - 1).max() < _SAME:
        return _ONE_LABEL
    if outputs.min() < 0 or outputs.max() > 1:
        return None
    if outputs.shape[1] > 1 and np.abs(outputs.sum(1) - 1).max() < 1e-3:
        return "the scores of each text add up to 1: a softmax over the labels"
    return f"all {len(outputs)} scores lie between 0 and 1, as after a sigmoid"


# Batches


def _look_at_batches(report: Report, asking: Asking, items: Sequence[Item], outputs: Scores) -> None:
    if asking.most == 1:
        report.sound("batch", "one text a request")
        return
    places = np.linspace(0, len(items) - 1, _ALONE).astype(int)
    alone = np.array([asking.one(items[place])[0] for place in places])
    off = np.abs(alone - outputs[places]).max(axis=1)
    spread = float(outputs.std()) or 1.0
    # A score alone that is another text's in the batch.
    nearest = np.array([np.abs(outputs - each).max(axis=1).min() for each in alone])
    moved = (off > 0.02 * spread) & (nearest < 0.1 * off)
    if moved.sum() >= 2 and moved.sum() >= (off > 0.02 * spread).sum() - 1:
        report.found(
            "order",
            "the answers of a request with several texts are not in the order of the texts",
            "--request-size 1 sends one text a request",
        )
        return
    report.sound("order", "answers come in the order of the texts")
    change = f"a text alone and among {min(asking.most, len(items))} differs by at most {off.max():.3g}"
    if off.max() > _STABLE:
        mend = "start vLLM with --max-num-seqs 1" if asking.protocol.name == "vllm" else "let the server batch one text"
        report.found("batch", f"scores depend on the batch: {change}", f"{mend} for scores that repeat", fault=False)
    else:
        report.sound("batch", change)


# Labels


def _look_at_labels(report: Report, asking: Asking, texts: Texts) -> None:
    if texts.width == 1:
        return
    ours, theirs = texts.labels, asking.protocol.about.labels
    largest = [int(each.argmax()) for each in asking.all(probe_items(texts))]
    named = {(place, label) for place, label in zip(largest, asking.labels, strict=False) if label is not None}
    if ours is None or (theirs is None and not named):
        report.sound("labels", "the server does not name its outputs; their order is that of config.json or --labels")
        return
    wrong = theirs is not None and theirs != ours
    said = list(theirs or ())
    if theirs is None:
        wrong = any(ours[place] != label for place, label in named)
        said = [f"{place}: {label}" for place, label in sorted(named)]
    if wrong:
        report.found(
            "labels",
            f"the server names its outputs {excerpt(said)}, the tokenizer's config.json names them {excerpt(list(ours))}",
            "name the served model's own folder with --tokenizer",
        )
    else:
        report.sound("labels", f"the server names its outputs as config.json does: {excerpt(list(ours))}")
