"""The verb that says which pairs to ask people about: label."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prefcast.cli.listening import Listening, Open, need_serve
from prefcast.cli.requests import Choosing, Keeping, Reading
from prefcast.cli.shared import LOG, app, check_outputs, end_failed, opened, progress, say
from prefcast.cli.verbs import MISSING, argument, option, verb
from prefcast.errors import UsageError, shown_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefcast.errors import RowError
    from prefcast.measuring.interim import Population
    from prefcast.measuring.sampling import Plan
    from prefcast.pairs import Pair
    from prefcast.pairs.formats.vote_files import VoteFile


@dataclass(frozen=True)
class Paging:
    """Whether people vote on a page, and where."""

    panel: ClassVar[str] = "Voting page"

    listening: Listening
    page: bool = option(
        "Serve a page on which people vote, until Ctrl-C (extra `serve`). OUTPUT gets their votes as they are given.",
        default=False,
    )
    overlap: float = option(
        "The share of the pairs that two raters vote on, so that you see how far raters agree.",
        "SHARE",
        default=0.2,
        least=0,
        most=1,
    )


@verb(app)
def label(
    *,
    left: str = argument("A file of pairs, or one system's answers: prompt and response (or messages).", "PAIRS|LEFT"),
    right: str | None = argument("The other system's answers to the same prompts.", "RIGHT", default=None),
    output: Path = option(
        "The pairs to vote on, or with --page the votes: .csv or .jsonl. Votes that are in it stay.",
        None,
        "-o",
        default=MISSING,
    ),
    votes: int = option("How many pairs people are to vote on.", "N", default=100, least=1),
    see: str = option(
        "The preference that you want to see: the shares of RIGHT and LEFT, ties aside.", "R:L", default="55:45"
    ),
    uniform: bool = option("Draw all pairs alike, as compare --anytime needs it.", default=False),
    seed: int = option("The seed of the draw.", "N", default=0, least=0),
    paging: Paging,
    choosing: Choosing,
    reading: Reading,
    keeping: Keeping,
) -> None:
    """Draw the pairs that people should vote on, and say how much their votes will tell.

    OUTPUT has a pair a row, blind: prompt, answer_1, answer_2, in random order. Write 1, 2 or tie into winner; leave it empty to
    skip. Give the same command with more votes to continue the file. `compare LEFT RIGHT --votes OUTPUT` reads the votes.

    With --page people vote in a browser instead, and OUTPUT has a vote a row. The same command goes on after a stop.

    \\b
    Examples:
      prefcast label yesterday.jsonl today.jsonl --votes 100 -o to_label.csv
      prefcast compare yesterday.jsonl today.jsonl --votes to_label.csv
      prefcast label yesterday.jsonl today.jsonl --votes 60 --page -o votes.csv
    """
    from prefcast.measuring.sampling import plan

    shares = _shares(see)
    check_outputs([output], [left, right], "the pairs to vote on")
    names = ("A", "B") if right is None else _names(left, right)
    if paging.page:
        need_serve()
        from prefcast.pairs.formats.vote_files import VoteFile

        # What is wrong with the file or the address is said before the work begins.
        with VoteFile(output) as file, paging.listening.opened() as at:
            found = _forecast(left, right, choosing, reading, keeping)
            drawing = _Drawing(found, votes, seed, uniform, names)
            file.begin(drawing.inclusion)
            _say_plan(plan(found.population.p, votes=len(drawing.pairs), see=shares, uniform=uniform))
            found.say_failed()
            _vote(file, at, drawing, paging.overlap)
        found.end()
        return
    from prefcast.pairs.formats.ballots import ballots_of, begun, write_ballots

    before = begun(output)
    found = _forecast(left, right, choosing, reading, keeping)
    drawing = _Drawing(found, max(votes, len(before)), seed, uniform, names)
    if lost := [id for id, said in before.items() if said["winner"] and id not in drawing.inclusion]:
        raise UsageError(
            f"{output}: has votes on {len(lost)} pairs that this draw does not have (the first: {lost[0]!r}); give the same "
            "files, model and --seed, or another output"
        )
    promised = plan(found.population.p, votes=len(drawing.pairs), see=shares, uniform=uniform)
    write_ballots(output, ballots_of(drawing.pairs, list(drawing.inclusion.values()), seed), before)
    _say_plan(promised)
    voted = sum(bool(said["winner"]) for said in before.values())
    kept = f", {voted} of them voted on already" if voted else ""
    say(f"{len(drawing.pairs)} pairs to vote on in {output}{kept}; write 1, 2 or tie into winner")
    found.say_failed()
    found.end()


@dataclass(frozen=True)
class _Found:
    """The pairs that have a forecast, their forecasts, and how many rows failed, with the first of them."""

    pairs: Sequence[Pair]
    population: Population
    failed: int
    first: RowError | None

    def say_failed(self) -> None:
        if self.failed:
            say(f"{self.failed} rows failed and cannot be drawn; the first: {self.first}")

    def end(self) -> None:
        """Exit status 3 if rows failed."""
        end_failed(self.failed)


class _Drawing:
    """The drawn pairs, in the order of the draw, with their inclusion probabilities by id."""

    def __init__(self, found: _Found, votes: int, seed: int, uniform: bool, names: tuple[str, str]) -> None:
        from prefcast.measuring.sampling import draw

        of = found.population
        sample = draw(of.ids, of.p, votes, seed=seed, uniform=uniform)
        self.population, self.seed, self.uniform, self.names = of, seed, uniform, names
        self.pairs = [found.pairs[place] for place in sample.places]
        # As they stand in files, so that the page and compare find the same.
        self.inclusion = {of.ids[place]: float(f"{sample.inclusion[place]:.12g}") for place in sample.places}


def _forecast(left: str, right: str | None, choosing: Choosing, reading: Reading, keeping: Keeping) -> _Found:
    import numpy as np

    from prefcast.forecasts.resolve import resolve
    from prefcast.measuring.interim import Population
    from prefcast.pairs.formats.answers import AnswerFile, JoinReport, joined
    from prefcast.runs.jobs import forecasts_of
    from prefcast.runs.loop import Tally
    from prefcast.runs.ready import ready

    join, tally = JoinReport(), Tally()
    pairs: list[Any] = []
    blocks = []
    with ExitStack() as stack:
        chosen = stack.enter_context(ready(resolve(choosing.choice()), keeping.running()))
        source: Any
        if right is None:
            file: Any = opened([left], reading)
            source = stack.enter_context(file)
        else:
            sides = [
                stack.enter_context(AnswerFile(name, reading.mapping, reading.cells, max_row=reading.max_row))
                for name in (left, right)
            ]
            file, source = sides[1], joined(sides[0], sides[1], (left, right), join)
        show = stack.enter_context(progress(file))
        for forecasts in forecasts_of(source, chosen, tally, progress=show):
            good = [index for index, error in enumerate(forecasts.errors) if error is None]
            pairs += [forecasts.pairs[index] for index in good]
            blocks.append(forecasts.probabilities[good])
    if not pairs:
        raise UsageError(f"no pair to vote on: of {tally.rows} pairs {tally.failed} failed ({tally.first})")
    population = Population.of(pairs, np.concatenate(blocks))
    return _Found(pairs, population, tally.failed + join.failed, join.first_error or tally.first)


def _vote(file: VoteFile, at: Open, drawing: _Drawing, overlap: float) -> None:
    """Serve the page until a signal comes."""
    from prefcast.measuring.interim import Underway
    from prefcast.service.desk import Desk
    from prefcast.service.limits import Limits
    from prefcast.service.server import fitted, serve
    from prefcast.service.voting import VotingService

    name = shown_path(file.path)
    service = VotingService(
        Desk(drawing.pairs, file, seed=drawing.seed, overlap=overlap),
        Underway(drawing.population, drawing.inclusion, uniform=drawing.uniform),
        drawing.names,
        limits=fitted(Limits()),
        token=at.token,
        hosts=at.hosts,
        log=LOG,
    )
    kept = f", which has {len(file.votes)} already" if file.votes else ""
    say(f"{len(drawing.pairs)} pairs to vote on; the votes are written to {name}{kept}")
    results = f"{at.url}/results#{service.key}"
    serve(
        service,
        at.socket,
        lambda: LOG.tell(
            "serving", f"raters open {at.url}/ and you, but no rater, {results}", url=at.url, results=results
        ),
    )
    if service.broken is not None:
        raise UsageError(service.broken)
    LOG.tell(
        "stopped",
        f"stopped; {name} has {len(file.votes)} votes and skips; the same command goes on",
        votes=len(file.votes),
    )


def _say_plan(promised: Plan) -> None:
    from prefcast.report.measurements import plan_text

    print(plan_text(promised), flush=True)


def _names(left: str, right: str) -> tuple[str, str]:
    """What the systems are called: their files."""
    names = Path(left).name, Path(right).name
    return names if names[0] != names[1] else (left, right)


def _shares(text: str) -> tuple[float, float]:
    try:
        right, left = (float(part) / 100 for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--see: {text!r} is not of the form 55:45") from None
    return right, left
