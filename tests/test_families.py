"""Every family of the sweep scores as plain transformers does, one conversation at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import ROOT
from families import CASES, QUICK, difference

MOST = 1e-5


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in CASES]
)
def test_a_family_scores_as_transformers_does(tmp_path: Path, name: str) -> None:
    how, found = difference(CASES[name], tmp_path / "m")
    assert found < MOST
    assert how == _rows()[name]


def _rows() -> dict[str, str]:
    """The table of the docs: how each family is run."""
    text = (ROOT / "docs" / "reward-models.md").read_text(encoding="utf-8")
    table = text.partition("<!-- families -->")[2].partition("<!-- /families -->")[0]
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [0-9.]+e[-+][0-9]+ \|$", table, re.MULTILINE))


def test_the_docs_have_every_family() -> None:
    """`make families` writes the table."""
    assert list(_rows()) == list(CASES)
    assert set(_rows().values()) == {"packed", "padded", "one at a time"}
