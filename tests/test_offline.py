"""A machine without network: the wheelhouse, and the Kaggle notebook with a tiny checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import save_internlm2
from conftest import EXAMPLES, ROOT, kaggle_row, said_by, write_csv

sys.path.append(str(ROOT / "tools"))

from wheelhouse import pins

NOTEBOOK = json.loads((ROOT / "examples" / "kaggle.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rows", [3, pytest.param(5, marks=pytest.mark.long)])
def test_the_kaggle_notebook_runs(tmp_path: Path, rows: int) -> None:
    model = save_internlm2(tmp_path / "model", changes={"max_position_embeddings": 4096})
    competition = tmp_path / "competition"
    competition.mkdir()
    write_csv(competition / "test.csv", [kaggle_row(id=number) for number in range(rows)])
    shutil.copy(EXAMPLES, competition / "train.csv")
    code = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    environment = {"MODEL": str(model), "COMPETITION": str(competition), "WHEELHOUSE": str(tmp_path / "none")}
    printed = said_by(code, cwd=tmp_path, **environment)
    assert "InternLM2 reward model" in printed
    assert ("42 labelled pairs" in printed) == (rows == 3)
    assert "on rows that it was not fitted to:" in printed
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0] == "id,winner_model_a,winner_model_b,winner_tie"
    assert len(lines) == 1 + rows
    assert len((tmp_path / "notebook.csv").read_text().splitlines()) == 1 + (42 if rows == 3 else rows)


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_the_wheelhouse_holds_what_is_needed_and_not_torch() -> None:
    names = {pin.partition("==")[0] for pin in pins()}
    assert names >= {
        "numpy",
        "pyarrow",
        "typer",
        "transformers",
        "tokenizers",
        "safetensors",
        "accelerate",
        "bitsandbytes",
        "jinja2",
        "markupsafe",
    }
    assert not names & {"torch", "prefcast", "pytest", "mypy"}
    assert "torch" in {pin.partition("==")[0] for pin in pins(with_torch=True)}


@pytest.mark.long
def test_the_wheelhouse_installs_without_an_index(tmp_path: Path) -> None:
    house = tmp_path / "wheelhouse"
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", house, ROOT], check=True, capture_output=True)
    subprocess.run([sys.executable, ROOT / "tools" / "wheelhouse.py", house], check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    # torch is what such a machine has: this one lends its own.
    python = tmp_path / "v" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links",
        house,
        "--no-deps",
        *sorted(house.glob("*.whl")),
    ]
    subprocess.run(install, check=True, capture_output=True)
    assert subprocess.run(
        [python, "-c", "import transformers, bitsandbytes"], capture_output=True, text=True
    ).stderr.count("torch")
    subprocess.run([python, "-m", "prefcast.cli", "predict", EXAMPLES, "-o", tmp_path / "s.csv"], check=True)
