"""LLM judges (extra `remote`): a language model behind an API reads both answers, in both orders, and says which is better.

A judge is named as `judge:ADDRESS` or `judge:ADDRESS#MODEL`. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import Option, option

if TYPE_CHECKING:
    from prefcast.scorers.judge.scorer import JudgeScorer

__all__ = ["APIS", "FILES", "PREFIX", "Options"]

# What the name of a judge begins with.
PREFIX = "judge:"
APIS = ("openai", "anthropic", "gemini")
# What a saved judge consists of: its settings and its rubric.
FILES = ("judge.json", "rubric.jinja")


@dataclass(frozen=True)
class Options:
    """How a judge is asked. A saved forecaster keeps the options that the verdicts depend on."""

    judge_model: str | None = option(
        None, Option("The judge's model, as its API calls it.", saved=True, metavar="NAME")
    )
    judge_api: str = option(
        "openai",
        Option("The API of the judge. Many servers speak openai, vLLM and Ollama too.", saved=True, choices=APIS),
    )
    rubric: str | None = option(
        None,
        Option("Your own instructions for the judge: a Jinja file.  [default: prefcast's]", metavar="FILE"),
    )
    judge_repeats: int | None = option(
        None,
        Option(
            "Ask for so many verdicts in each order and count them; 0 reads log probabilities.  [default: 0, anthropic: 3]",
            saved=True,
            metavar="N",
            least=0,
        ),
    )
    judge_choice: bool = option(
        False,
        Option(
            "Let the server allow nothing but the three verdicts (vLLM's structured_outputs, Gemini's enum).",
            saved=True,
        ),
    )
    judge_temperature: float | None = option(
        None, Option("The judge's sampling temperature.  [default: the API's]", saved=True, metavar="T", least=0.0)
    )
    judge_tokens: int | None = option(
        None,
        Option(
            "The most tokens that the judge may write in one reply.  [default: 1 with log probabilities, else 1024]",
            saved=True,
            metavar="N",
            least=1,
        ),
    )
    judge_seed: int | None = option(
        None, Option("The seed of the judge's sampling, where its API has one.", saved=True, metavar="N", least=0)
    )
    price: str | None = option(
        None, Option("What a million tokens cost, read and written, like 2.5/10.", metavar="IN/OUT")
    )
    budget_money: float | None = option(
        None, Option("Stop before this run has cost more than this; needs --price.", metavar="MONEY", least=0.0)
    )
    budget_tokens: int | None = option(
        None, Option("Stop before this run has read and written more tokens than this.", metavar="N", least=0)
    )
    # Those that a reward model behind a server has too. The command line has one option for both.
    key_env: str | None = option(None, Option())
    key_file: str | None = option(None, Option())
    concurrency: int = option(8, Option())
    timeout: float = option(90.0, Option())
    retries: int = option(4, Option())
    wait: float = option(0.0, Option())


def scorer_of(model: str, options: Options) -> JudgeScorer:
    """The judge that `model` names. Raises PrefcastError."""
    from prefcast.scorers.judge.scorer import judge_of

    return judge_of(model, options)


def check_judge(model: str, options: Options) -> None:
    """Raise PrefcastError for a judge that cannot be used; nothing is asked."""
    scorer_of(model, options).close()


def _is_judge(model: str) -> bool:
    return model.startswith(PREFIX)


SCORER = ScorerInfo(
    "judge",
    f"{__name__}.scorer:JudgeScorer",
    "an LLM as a judge, behind the API of OpenAI, Anthropic or Gemini: judge:ADDRESS#MODEL",
    "pip install 'prefcast[remote]'",
    options=Options,
    claims=_is_judge,
    make=f"{__name__}:scorer_of",
    looks=f"{__name__}:check_judge",
    files=FILES,
    listed=False,
)
