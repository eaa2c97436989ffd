"""Reward models behind other people's servers (extra `remote`): vLLM, SGLang, Text Embeddings Inference (TEI), OpenRLHF.

Importing this package imports neither the HTTP client nor torch; making a scorer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from prefcast.scorers.info import ScorerInfo
from prefcast.scorers.options import Option, option

if TYPE_CHECKING:
    from prefcast.scorers.remote.scorer import RemoteScorer

__all__ = ["PROTOCOLS", "Options", "is_address", "scorer_at"]

PROTOCOLS = ("vllm", "sglang", "tei", "openrlhf")


@dataclass(frozen=True)
class Options:
    """How a server is asked. A saved forecaster keeps the options that the scores depend on; none of them says where the
    server is, or where a key is."""

    # The section of --help that shows them.
    panel: ClassVar[str] = "Servers"

    protocol: str | None = option(
        None, Option("The kind of the server at --model http://HOST:PORT.", saved=True, choices=PROTOCOLS)
    )
    served_name: str | None = option(
        None,
        Option("The model's name on the server.  [default: the only one there]", saved=True, metavar="NAME"),
    )
    tokenizer: str | None = option(
        None,
        Option(
            "The folder or hub id of the served model, for its tokenizer and config.json; its weights are not needed.  [default: what the server names, if it is a folder here]",
            metavar="FOLDER|ID",
        ),
    )
    concurrency: int = option(8, Option("Requests at a time.", least=1))
    request_size: int = option(
        32, Option("Texts in a request, at most; 1 for scores that depend on no batch of the client.", least=1)
    )
    timeout: float = option(90.0, Option("How long a server or a judge may be silent.", metavar="SECONDS", least=0.1))
    wait: float = option(
        0.0, Option("How long to wait for a server or a judge that cannot be reached.", metavar="SECONDS", least=0)
    )
    retries: int = option(4, Option("How often a request that failed is sent again.", least=0))
    key_env: str | None = option(
        None,
        Option(
            "The environment variable that holds the server's key.  [default: none; of a judge OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY]",
            metavar="VARIABLE",
        ),
    )
    key_file: str | None = option(None, Option("A file that holds the key of the server or the judge.", metavar="FILE"))
    probe: str = option(
        "refuse",
        Option(
            "What to do if the probe finds that scores are not the model's own: refuse the server, or warn and go on.",
            choices=("refuse", "warn"),
        ),
    )
    # Those that a reward model in this process has too. The command line has one option for both.
    special_tokens: str | None = option(None, Option(saved=True))
    max_tokens: int | None = option(None, Option(saved=True))
    policy: str = option("keep-last", Option(saved=True))
    template: str | None = option(None, Option(saved=True))
    template_date: str | None = option(None, Option(saved=True))
    labels: tuple[str, ...] | None = option(None, Option(saved=True))
    kind: str | None = option(None, Option(saved=True))
    score_position: str = option("trained", Option(saved=True))


def is_address(model: str) -> bool:
    """Whether a model's name is the address of a server."""
    return model.startswith(("http://", "https://"))


def scorer_at(model: str, options: Options) -> RemoteScorer:
    """The scorer of the model behind the server at the address `model`. Raises PrefcastError."""
    from prefcast.scorers.remote.scorer import RemoteScorer

    return RemoteScorer(model, options)


def check_address(model: str, options: Options) -> None:
    """Raise UsageError for an address without a protocol; nothing is asked."""
    from prefcast.scorers.remote.protocols import protocol_of

    protocol_of(options.protocol)


SCORER = ScorerInfo(
    "remote",
    f"{__name__}.scorer:RemoteScorer",
    "a reward model behind a server: its address, http://HOST:PORT",
    "pip install 'prefcast[remote,transformers]'",
    options=Options,
    claims=is_address,
    make=f"{__name__}:scorer_at",
    looks=f"{__name__}:check_address",
    files=("remote.json",),
    listed=False,
)
