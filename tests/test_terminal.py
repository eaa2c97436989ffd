"""Text and tables for a terminal or a pipe: nothing is lost, coloured or obeyed that should not be."""

from __future__ import annotations

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from prefcast.report.terminal import rendered, short, table

HOSTILE = "[bold red]x[/] :smile: \x1b[31m\u202e\nnext"
SHOWN = "[bold red]x[/] :smile: \\x1b[31m\\u202e next"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_texts_of_files_are_escaped_and_never_markup() -> None:
    made = table(("name", "n"), [(HOSTILE, "1")])
    assert rendered(HOSTILE, made) == f"{SHOWN}\n{'name':{len(SHOWN)}}  n\n{SHOWN}  1"


def test_a_pipe_gets_whole_lines_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", "20"), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    long = "word " * 400
    text = rendered(long, table(("a", "b"), [(long, "0.1234")]))
    assert text.split("\n") == [long.rstrip(), f"a{' ' * len(long)} b", f"{long}  0.1234"]


def test_a_narrow_terminal_wraps_and_loses_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    for name, value in (("COLUMNS", "30"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = rendered(table(("name", "log loss"), [("a long name of a model", "0.8481 [0.7514, 0.9369]")]))
    assert "\x1b[1m" in text  # the header is bold
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.split("\n"))) <= 30
    assert {"0.8481", "[0.7514,", "0.9369]", "long", "model"} <= set(plain.split())
    monkeypatch.setenv("COLUMNS", "8")
    text = rendered(table(("", ""), [("模型模型模型", "123456789")]))
    assert "…" not in text
    assert [text.count(character) for character in "模型123456789"] == [3, 3, *[1] * 9]


def test_columns_line_up_under_wide_characters() -> None:
    lines = rendered(table(("", ""), [("模型模型", "1"), ("e\u0301", "2"), ("plain", "3")])).split("\n")
    assert [cell_len(line) for line in lines] == [11, 11, 11]


def test_numbers_align_to_the_right() -> None:
    assert rendered(table(("n", "x"), [("5", "a"), ("500", "b")], right=(0,))) == "  n  x\n  5  a\n500  b"


@given(st.text(max_size=60), st.integers(1, 20))
def test_short_texts_have_their_width(text: str, width: int) -> None:
    assert cell_len(short(text, width)) <= width
    assert cell_len(short(text, width, pad=True)) == width


def test_what_fits_is_whole_and_what_does_not_ends_in_an_ellipsis() -> None:
    assert short("x" * 16, 16) == "x" * 16
    assert short("x" * 17, 16) == "x" * 15 + "…"
    assert short("模" * 9, 16) == "模" * 7 + " …"
    assert short("a\nb\x1b", 16) == "a b\\x1b"
