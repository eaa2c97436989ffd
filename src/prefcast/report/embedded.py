"""What a training of the embedded forecaster says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["embedded_text"]

_ANEW = (
    ("log_loss", "embedded"),
    ("log_loss_of_surface", "the shipped surface model"),
    ("log_loss_of_class_prior", "class prior"),
    ("gain_over_surface", "gain over surface, paired"),
)


def embedded_text(card: Mapping[str, Any]) -> str:
    """The figures of a card, and whether the training was worth it."""
    figures, name = card["figures"], card["start"]["name"]
    found = figures.get("cross_fitted")
    if "move" not in figures:
        on = f"log loss on the {found['n']} pairs that fitted the outcome model ({found['prompts']} prompts), cross-fitted"
        return "\n".join([on, "", *_lines(found, _ANEW)])
    verdict = [*figures["move"]["said"], f"outcome model: {figures['outcome_model']}"]
    if found is None:
        return "\n".join([*verdict, figures["no_figure"]])
    rows = (
        ("log_loss_of_start", f"{name} as it was"),
        *([] if card["kept"] else [("log_loss", "this forecaster")]),
        ("log_loss_of_class_prior", "class prior"),
        *([] if card["kept"] else [("gain_over_start", "gain, paired")]),
    )
    on = f"log loss on {found['n']} held-out pairs ({found['prompts']} prompts) that are new to {name}"
    ending = [] if card["kept"] else ["", _worth(found["gain_over_start"], name)]
    return "\n".join(
        [
            *verdict,
            "",
            on if card["kept"] else f"{on}, the outcome model cross-fitted",
            "",
            *_lines(found, rows),
            *ending,
        ]
    )


def _lines(found: Mapping[str, Any], rows: Any) -> list[str]:
    return [
        f"{shown:<28}{found[field]['value']:.4f} [{found[field]['low']:.4f}, {found[field]['high']:.4f}]"
        for field, shown in rows
    ]


def _worth(gain: Mapping[str, float], name: str) -> str:
    if gain["low"] > 0:
        return f"it is better than {name}"
    if gain["high"] < 0:
        return f"it is worse than {name}: keep {name}"
    return f"these pairs do not show whether it is better than {name}"
