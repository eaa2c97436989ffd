"""Time and peak memory of fit, evaluate and rank on a million rows, each verb a process of its own: make bench-scale

The rows are simulated and lie in a temporary folder, as CSV and as Parquet. Prints the median of several runs at two
sizes, and by how many bytes the peak memory grows for each row more. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from processes import machine, median, prefcast, run

MODELS = 50
TARGETS = {"fit": 30, "evaluate --predictions": 60, "evaluate --scores": 60, "rank": None}


def simulate(rows: int, folder: Path) -> None:
    """Writes scores, predictions and votes, `rows` each, as .csv and .parquet."""
    import numpy as np
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    random = np.random.default_rng(rows)
    margin = random.standard_normal(rows)
    score = margin / 2 + random.standard_normal(rows)
    weights = np.exp(np.column_stack([margin / 2, -margin / 2, np.full(rows, -0.2)]))
    p = weights / weights.sum(axis=1, keepdims=True)
    label = (random.random(rows)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    names = np.array([f"model-{number}" for number in range(MODELS)])
    a = random.integers(0, MODELS, rows)
    b = (a + random.integers(1, MODELS, rows)) % MODELS
    ids = [f"row-{number}" for number in range(rows)]
    models = {"model_a": names[a], "model_b": names[b]}
    said = {"winner_model_a": p[:, 0], "winner_model_b": p[:, 1], "winner_tie": p[:, 2]}
    tables = {
        "scores": {"id": ids, "score_a": score, "score_b": score - margin, "label": label, **models},
        "predictions": {"id": ids, **said, "label": label},
        "votes": {**models, "winner": np.array(["model_a", "model_b", "tie"])[label]},
    }
    for name, columns in tables.items():
        table = pyarrow.table(columns)
        pyarrow.csv.write_csv(table, folder / f"{name}.csv")
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=16_384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=(100_000, 1_000_000))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    few, many = options.rows
    print(f"{machine()}; medians of {options.runs} runs")
    print(f"\n{'':24} {'':8} {f'{few} rows':>20} {f'{many} rows':>20} {'bytes a row':>12} {'target':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for rows in options.rows:
            (Path(scratch) / str(rows)).mkdir()
            # In a process of its own: what this one held would count as its children's peak.
            simulation = multiprocessing.get_context("spawn").Process(
                target=simulate, args=(rows, Path(scratch) / str(rows))
            )
            simulation.start()
            simulation.join()
            if simulation.exitcode:
                raise SystemExit("the rows could not be simulated")
        for ending in ("csv", "parquet"):
            for verb, target in TARGETS.items():
                found = []
                for rows in options.rows:
                    folder = Path(scratch) / str(rows)
                    own = str(folder / "forecaster")
                    arguments = {
                        "fit": ["fit", "--scores", f"{folder}/scores.{ending}", "-o", own],
                        "evaluate --predictions": ["evaluate", "--predictions", f"{folder}/predictions.{ending}"],
                        "evaluate --scores": ["evaluate", "--scores", f"{folder}/scores.{ending}", "--forecaster", own],
                        "rank": ["rank", f"{folder}/votes.{ending}"],
                    }[verb]
                    found.append(median([run(prefcast(*arguments)) for _ in range(options.runs)]))
                grown = (found[1].memory - found[0].memory) * 2**20 / (many - few)
                cells = " ".join(f"{used.seconds:9.1f} s {used.memory:5.0f} MB" for used in found)
                shown = "" if target is None or many != 1_000_000 else f"< {target} s"
                print(f"{verb:24} {ending:8} {cells} {grown:12.0f} {shown:>8}", flush=True)


if __name__ == "__main__":
    main()
