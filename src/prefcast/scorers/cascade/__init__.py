"""The scorer `cascade`: a cheap first tier scores every pair, a second tier those on which it is expected to gain most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import Option, option

__all__ = ["FILE", "Options"]

FILE = "cascade.json"


@dataclass(frozen=True)
class Options:
    """How many pairs the second tier scores. A budget of money or tokens has its place here, beside the share."""

    panel: ClassVar[str] = "Cascades"

    then: str | None = option(
        None,
        Option("fit: the second tier of a cascade, which scores a share of the pairs.", metavar="NAME|PATH|ID|URL"),
    )
    share: float | None = option(
        None,
        Option(
            "The share of the pairs that the second tier scores, from 0 to 1.  [default: 0.3, or as fitted]",
            metavar="SHARE",
        ),
    )


SCORER = ScorerInfo(
    "cascade",
    f"{__name__}.scorer:CascadeScorer",
    "two models, the second of which scores a share of the pairs",
    options=Options,
    files=(FILE,),
    listed=False,
)
