"""Files of pairs to measure on: real rows, or made-up ones. The other scripts import this one."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["EXAMPLES", "made_up", "numbered", "real", "write"]

EXAMPLES = Path(__file__).parents[1] / "examples" / "pairs.csv"
_LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
_COLUMNS = ("id", "prompt", "response_a", "response_b", *_LABELS)
Row = dict[str, str]


def real(data: Path | None) -> Iterator[Row]:
    """The rows of every file `data`/train/*.csv.gz with labels, ids made unique; without `data`, the example pairs."""
    csv.field_size_limit(sys.maxsize)
    for path in [EXAMPLES] if data is None else sorted((data / "train").glob("*.csv.gz")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file)):
                yield {"id": f"{path.stem}-{number}", **{name: row[name] for name in _COLUMNS[1:]}}


def numbered(count: int, data: Path | None) -> Iterator[Row]:
    """`count` rows of `real`, again and again, with a number in the first prompt, so that no two pairs are equal."""
    endless = itertools.chain.from_iterable(real(data) for _ in itertools.count())
    for number, row in enumerate(itertools.islice(endless, count)):
        first, *rest = json.loads(row["prompt"])
        prompt = json.dumps([f"{number}. {first or ''}", *rest], ensure_ascii=False)
        yield {**row, "id": str(number), "prompt": prompt}


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as CSV; how many there were."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for count, row in enumerate(rows, 1):  # noqa: B007 - the last number is the count
            writer.writerow(row)
    return count


def made_up(path: Path, rows: int) -> Path:
    """Write rows of random words as JSON lines: 2,200 characters on average, as real pairs have."""
    generator = random.Random(1)  # noqa: S311
    words = ["the", "a", "model", "answers", "people", "what", "they", "ask", "and", "says", "why,", "in", "lines."]
    text = " ".join(generator.choices(words, k=200_000))
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts = []
            for size in (200, 1000, 1000):
                begin = generator.randrange(len(text) - 2 * size)
                texts.append([text[begin : begin + generator.randrange(2 * size)]])
            row = {"id": number, **dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))}
            file.write(json.dumps(row) + "\n")
    return path
