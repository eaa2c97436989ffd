"""The verb that runs published benchmarks: bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcast.base.limits import MAX_ROW
from prefcast.cli.requests import JSON_OUTPUT, Choosing, Keeping
from prefcast.cli.shared import app, check_outputs, end_failed, progress, say_paid
from prefcast.cli.verbs import argument, option, verb
from prefcast.errors import UsageError

if TYPE_CHECKING:
    from prefcast.measuring.benchmarks.reading import BenchmarkFiles


@verb(app)
def bench(
    *,
    name: str = argument(
        "The benchmark: judge-bench, llmbar, ppe, reward-bench, reward-bench-2, rm-bench or rmb.", "NAME"
    ),
    files: list[str] = argument(
        "Its files, as they are published: JSON, JSON Lines, Parquet or CSV; or a folder of them.", "PATH..."
    ),
    output: str | None = option(
        "Write the tables in Markdown, with what is needed to repeat the run; - is standard output.", "FILE.md", "-o"
    ),
    json_output: str | None = JSON_OUTPUT,
    compare: Path | None = option(
        "A result of the same benchmark that --json wrote: show the paired difference.", "OTHER.json"
    ),
    repeats: int = option("Bootstrap repeats.", default=1000, least=100),
    max_row: int = option("The most megabytes that a row may have.", "MB", default=MAX_ROW, least=1),
    choosing: Choosing,
    keeping: Keeping,
) -> None:
    """Run a published benchmark of reward models and judges from its own files, by its own rules.

    The totals and their weights are the benchmark's. The intervals (95 %) are from a bootstrap over prompts. Scores are kept in
    the evidence store, so a stopped run goes on where it was. See docs/bench.md for the rules and the shapes of the files.

    \b
    Examples:
      prefcast bench reward-bench filtered.parquet --model ./skywork-8b --json skywork.json
      prefcast bench llmbar LLMBar/Dataset/LLMBar --model surface -o llmbar.md
      prefcast bench rm-bench total_dataset.json --forecaster mine --compare skywork.json
    """
    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.benchmarks import find_benchmark
    from prefcast.measuring.benchmarks.results import read_earlier, run_benchmark
    from prefcast.report.benchmarks import bench_text
    from prefcast.report.measurements import write_json, write_markdown
    from prefcast.runs.ready import ready
    from prefcast.scorers.options import given_values

    benchmark = find_benchmark(name)
    if "-" in files:
        raise UsageError("a benchmark is read from files, not from standard input: their SHA-256 belongs to the result")
    if output == json_output == "-":
        raise UsageError("-o and --json cannot both go to standard output")
    check_outputs([output, json_output], [*files, compare], "the result")
    earlier = None if compare is None else read_earlier(compare, benchmark)
    choice = choosing.choice()
    said = {"preset": choice.preset, "budget": choosing.budget, **given_values(choice.options)}
    settings: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    settings |= {"options": list(choice.more)} if choice.more else {}
    far = _Far()
    with ready(resolve(choice, by_margin=True), keeping.running()) as chosen, progress(far) as show:

        def done(read: BenchmarkFiles, rows: int) -> None:
            far.read = read
            if show is not None:
                show(rows)

        found = run_benchmark(
            benchmark,
            files,
            chosen,
            title=choice.title,
            settings=settings,
            against=earlier,
            repeats=repeats,
            max_row=max_row,
            progress=done,
        )
    if json_output is not None:
        write_json(found.to_dict(), json_output)
    if output is not None:
        write_markdown(found, output)
    if "-" not in (output, json_output):
        print(bench_text(found))
    say_paid(found.spent)
    end_failed(found.failed, f"{found.failed} of {len(found.rows)} rows failed; the first: {found.first_error}")


class _Far:
    """How far the files are read."""

    read: BenchmarkFiles | None = None

    @property
    def progress(self) -> tuple[int, int]:
        return (0, 0) if self.read is None else self.read.progress

    @property
    def rows_read(self) -> int:
        return 0 if self.read is None else self.read.rows_read
