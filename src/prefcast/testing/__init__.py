"""For authors of scorers: the tests that every scorer must pass, and strict fakes of servers.

    from prefcast.testing import check_scorer

    def test_my_scorer() -> None:
        check_scorer(MyScorer)

Each check raises AssertionError with a line that says what the contract (`prefcast.scorers.base`) asks and what the scorer
did instead.

The fakes `FakeVllm`, `FakeSglang`, `FakeTei` and `FakeOpenRlhf` are HTTP servers on this machine with the request and answer
forms of the real ones (docs/remote.md); `Faults` switches what is wrong with them.
"""

from prefcast.testing.contract import CHECKS, check_scorer, example_pairs
from prefcast.testing.judges import Asked, FakeJudge, Refusal, SimulatedJudge, Troubles
from prefcast.testing.reward_servers import FakeOpenRlhf, FakeSglang, FakeTei, FakeVllm
from prefcast.testing.serving import Faults, RewardServer

__all__ = [
    "CHECKS",
    "Asked",
    "FakeJudge",
    "FakeOpenRlhf",
    "FakeSglang",
    "FakeTei",
    "FakeVllm",
    "Faults",
    "Refusal",
    "RewardServer",
    "SimulatedJudge",
    "Troubles",
    "check_scorer",
    "example_pairs",
]
