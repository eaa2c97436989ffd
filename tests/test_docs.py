"""What the README and docs/ say is true: the commands print what is shown, the code runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import EXAMPLES, ROOT, Run, said_by
from prefcast import load_forecaster

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("getting-started.md", "evaluation.md", "ranking.md", "formats.md")
)
SHOWN = re.findall(r"^\$ prefcast (\w+ examples/pairs\.csv[^\n#]*)\n((?:(?!\$|```).*\n)*)", PAGES, re.MULTILINE)
SHOWN += re.findall(r"```sh\nprefcast (\w+ examples/pairs\.csv)\n```\n\n```text\n(.*?)```", PAGES, re.DOTALL)


def test_there_are_outputs_to_compare() -> None:
    verbs = " ".join(command.split()[0] for command, _ in SHOWN)
    assert verbs == "predict evaluate predict evaluate explain fit rank evaluate check"


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=lambda text: text.split()[0])
def test_shown_output_is_real(
    prefcast_here: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, command: str, shown: str
) -> None:
    # One store for all: the pairs are scored once.
    store = tmp_path_factory.getbasetemp() / "kept-by-docs"
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLES, tmp_path / "examples")
    printed = prefcast_here(*command.split(), PREFCAST_CACHE=str(store)).stdout.splitlines()
    for line in shown.splitlines():
        assert any(as_printed(line, other) for other in (*printed, "..."))


def as_printed(shown: str, printed: str) -> bool:
    """Whether two lines are the same up to the last digits of their numbers, which depend on the processor."""
    number = r"\d+\.\d{3,}"
    if re.sub(number, "#", shown) != re.sub(number, "#", printed):
        return False
    both = zip(re.findall(number, shown), re.findall(number, printed), strict=True)
    return all(abs(float(one) - float(other)) < 0.002 for one, other in both)


@pytest.mark.parametrize(("name", "count"), [("cascade.md", 6), ("pairs.md", 5)])
def test_the_commands_of_a_page_are_real(prefcast_here: Run, tmp_path: Path, name: str, count: int) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    (tmp_path / "examples").mkdir()
    for example in (EXAMPLES, ROOT / "examples" / "samples.jsonl"):
        shutil.copy(example, tmp_path / "examples")
    commands = re.findall(r"^\$ prefcast (.*)\n((?:(?!\$|```).*\n)*)", page, re.MULTILINE)
    assert len(commands) == count
    for command, shown in commands:
        done = prefcast_here(*command.split())
        assert done.returncode == 0, done.stderr
        for line in shown.splitlines():
            assert line in (*done.stdout.splitlines(), *done.stderr.splitlines(), "..."), command


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/python.md", marks=pytest.mark.long)])
def test_the_code_runs(tmp_path: Path, page: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    for name in ("pairs.csv", "labelled.csv"):
        shutil.copy(EXAMPLES, tmp_path / name)
    import gzip

    import pandas as pd

    (tmp_path / "pairs.jsonl.gz").write_bytes(
        gzip.compress(pd.read_csv(EXAMPLES).to_json(orient="records", lines=True).encode())
    )
    setup = "import pandas\ndata_frame = pandas.read_csv('pairs.csv')\n"
    printed = said_by(setup + code, cwd=tmp_path)
    assert printed.startswith("0.85")
    if "influences" in code:
        assert re.search(r"^[a-z ]+ \(-?\d", printed, re.MULTILINE)
    assert (tmp_path / "my-forecaster" / "forecaster.json").is_file()


def test_the_readmes_figures_are_those_of_the_shipped_card() -> None:
    card = (
        (ROOT / "src" / "prefcast" / "forecasts" / "builtin" / "surface.md")
        .read_text(encoding="utf-8")
        .replace("**", "")
    )
    figures = load_forecaster("surface").card["figures"]
    for where, names in (
        ("dev_cross_fitted", ("log_loss", "log_loss_of_lengths", "gain_over_lengths")),
        ("cross_validation", ("gain_over_lengths",)),
    ):
        for name in names:
            figure = figures[where][name]
            shown = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
            assert where == "cross_validation" or shown in README, (where, name, shown)
            assert shown in card, (where, name, shown)
    card = (
        (ROOT / "src" / "prefcast" / "forecasts" / "builtin" / "embedded.md")
        .read_text(encoding="utf-8")
        .replace("−", "-")
    )
    figures = load_forecaster("embedded").card["figures"]
    for where, names in (
        ("cross_fitted", ("log_loss", "log_loss_of_surface")),
        ("out_of_fold", ("log_loss", "gain_over_surface")),
    ):
        for name in names:
            figure = figures[where][name]
            places = 4 if name.startswith("gain") else 3
            shown = f"{figure['value']:.{places}f} [{figure['low']:.{places}f}, {figure['high']:.{places}f}]"
            assert shown in card, (where, name, shown)
            assert (where, name) != ("out_of_fold", "log_loss") or shown in README


def test_the_file_tree_is_the_file_tree() -> None:
    tree = re.findall(r"^  (\w+(?:\.py|/)) ", README.split("src/prefcast/\n")[1].split("```")[0], re.MULTILINE)
    found = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "src" / "prefcast").iterdir()
        if not path.name.startswith("__")
    }
    assert set(tree) == found - {"py.typed"}


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert listed == set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())  # type: ignore[union-attr]
