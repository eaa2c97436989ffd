"""For authors of scorers: the tests that every scorer must pass.

    from prefcast.testing import check_scorer

    def test_my_scorer() -> None:
        check_scorer(MyScorer)

Each check raises AssertionError with a line that says what the contract (`prefcast.scorers.base`) asks and what the scorer
did instead.
"""

from prefcast.testing.contract import CHECKS, check_scorer, example_pairs
from prefcast.testing.judges import Asked, FakeJudge, Refusal, SimulatedJudge, Troubles

__all__ = [
    "CHECKS",
    "Asked",
    "FakeJudge",
    "Refusal",
    "SimulatedJudge",
    "Troubles",
    "check_scorer",
    "example_pairs",
]
