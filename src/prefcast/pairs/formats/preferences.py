"""Pairs of a chosen and a rejected answer as the records that trainers read: TRL, OpenRLHF, LLaMA-Factory, and prefcast itself.

The forms are those of the trainers' own documentation: TRL, "Dataset formats and types" (preference, explicit prompt); OpenRLHF,
`openrlhf/datasets/reward_dataset.py` (keys prompt, chosen, rejected); LLaMA-Factory, `data/README.md` (preference datasets in
sharegpt and alpaca format). No record has a field `margin`: TRL and OpenRLHF would take it for the margin of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from prefcast.pairs.formats.fields import Fault
from prefcast.pairs.formats.shapes import BESIDE, swapped_by

__all__ = ["TIES_IN", "TRAINERS", "Preference", "preference_record"]

TRAINERS = ("trl", "openrlhf", "llama-factory", "prefcast")
# The forms that have ties.
TIES_IN = ("prefcast",)

Texts = tuple[str, ...]
Message = dict[str, str]


@dataclass(frozen=True)
class Preference:
    """A chosen and a rejected conversation with the same prompts, turn by turn. `probability` is that the chosen one wins, a tie
    counted half; None for a `tie`, in which neither is chosen."""

    id: str
    prompt: Texts
    chosen: Texts
    rejected: Texts
    probability: float | None
    tie: bool = False
    system: str = ""
    reference: str | None = None

    @property
    def difference(self) -> int:
        """By how many characters the chosen answer is longer."""
        return sum(map(len, self.chosen)) - sum(map(len, self.rejected))

    @property
    def shared(self) -> int:
        """How many turns both conversations share before the turn in which the answers part."""
        same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(self.chosen, self.rejected, strict=True)))
        return min(same, len(self.prompt) - 1)


def preference_record(said: Preference, trainer: str, *, plain: bool = False) -> dict[str, Any]:
    """The record of a pair for a trainer; with `plain` texts instead of lists of messages.

    Raises Fault for what the form has no place for.
    """
    if said.tie and trainer not in TIES_IN:
        raise Fault("", f"is a tie, which {trainer} has no place for")
    if trainer == "prefcast":
        return _own(said)
    of = {"llama-factory": _alpaca if plain else _sharegpt}.get(trainer, _texts if plain else _messages)
    return {"id": said.id, **of(said), "probability": said.probability}


def _talk(prompts: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """The messages of turns; the last prompt may have no answer."""
    found: list[Message] = []
    for place, prompt in enumerate(prompts):
        found.append({"role": "user", "content": prompt})
        found += [{"role": "assistant", "content": text} for text in answers[place : place + 1]]
    return found


def _rest(said: Preference, answers: Texts) -> list[Message]:
    """What one side has after the shared prompt: its answer, and later turns if there are any."""
    at = said.shared
    return [{"role": "assistant", "content": answers[at]}, *_talk(said.prompt[at + 1 :], answers[at + 1 :])]


def _before(said: Preference) -> list[Message]:
    system = [{"role": "system", "content": said.system}] if said.system else []
    return [*system, *_talk(said.prompt[: said.shared + 1], said.chosen[: said.shared])]


def _messages(said: Preference) -> dict[str, Any]:
    return {"prompt": _before(said), "chosen": _rest(said, said.chosen), "rejected": _rest(said, said.rejected)}


def _sharegpt(said: Preference) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}

    def named(messages: list[Message]) -> list[Message]:
        return [{"from": names[each["role"]], "value": each["content"]} for each in messages]

    chosen, rejected = _last(said)
    return {
        "conversations": named(_before(said)),
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def _last(said: Preference) -> tuple[str, str]:
    """The last answers. Raises Fault if the conversations part earlier."""
    if said.shared < len(said.prompt) - 1:
        raise Fault(
            "responses", "part before the last answer; this format has one answer for each side (--to trl has more)"
        )
    return said.chosen[-1], said.rejected[-1]


def _alpaca(said: Preference) -> dict[str, Any]:
    chosen, rejected = _last(said)
    history = [list(turn) for turn in zip(said.prompt[:-1], said.chosen[:-1], strict=True)]
    return {
        "instruction": said.prompt[-1],
        "input": "",
        "chosen": chosen,
        "rejected": rejected,
        "system": said.system,
        "history": history,
    }


def _texts(said: Preference) -> dict[str, Any]:
    if said.system or len(said.prompt) > 1:
        found = "a system message" if said.system else f"{len(said.prompt)} turns"
        raise Fault("prompt", f"has {found}, and plain texts have no roles; leave --plain out to keep them")
    return {"prompt": said.prompt[0], "chosen": said.chosen[0], "rejected": said.rejected[0]}


def _own(said: Preference) -> dict[str, Any]:
    """A pair as prefcast reads it. Which answer is A is drawn from the id: the order does not give the label away."""
    swapped = swapped_by(said.id)
    a, b = (said.rejected, said.chosen) if swapped else (said.chosen, said.rejected)
    beside = dict(zip(BESIDE, (said.system, said.reference), strict=True))
    return {
        "id": said.id,
        "prompt": list(said.prompt),
        "response_a": list(a),
        "response_b": list(b),
        "winner": "tie" if said.tie else "model_b" if swapped else "model_a",
        **{name: text for name, text in beside.items() if text},
        "probability": said.probability,
    }
