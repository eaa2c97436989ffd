"""The tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from prefcast.errors import ModelError
from prefcast.scorers.patience import check_growth
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.networks import config_of, one_line, quiet
from prefcast.scorers.reward.sentencepiece import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_ids", "load_tokenizer"]

_MOST_TOKENS = 2**24
# The chat of InternLM2-reward, for a checkpoint without a template. The reward token is appended later, by its id.
_INTERNLM2_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
)


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase, Tokenizer]:
    """The tokenizer in the checkpoint's folder, and the backend that turns its texts into ids.

    Raises ModelError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with quiet():
        if checkpoint.kind is Kind.INTERNLM2:
            backend = build_tokenizer(checkpoint.tokenizer_folder)
            _check(checkpoint, backend, None)
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            # A copy, because transformers may add tokens to the backend that it gets.
            copy = Tokenizer.from_str(backend.to_str())
            template = checkpoint.chat_template or _INTERNLM2_CHAT
            own: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
                tokenizer_object=copy, chat_template=template, **tokens
            )
            return own, backend
        check_growth(checkpoint.tokenizer_folder, checkpoint.name)
        config = config_of(checkpoint)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                checkpoint.tokenizer_folder,
                config=config,
                trust_remote_code=checkpoint.kind is Kind.CUSTOM,
                local_files_only=True,
            )
        except Exception as error:
            # The tokenizers of transformers raise exceptions of many types.
            raise ModelError(f"{checkpoint.name}: its tokenizer cannot be loaded: {one_line(error)}") from None
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise ModelError(f"{checkpoint.name}: has no fast tokenizer (tokenizer.json)")
    _check(checkpoint, fast, tokenizer.pad_token_id)
    return tokenizer, fast


def check_ids(checkpoint: Checkpoint, ids: Iterable[int]) -> None:
    """Raise ModelError for tokens that the embedding lacks."""
    rows = checkpoint.text_config.get("vocab_size")
    most = rows if isinstance(rows, int) else _MOST_TOKENS
    if (largest := max(ids, default=0)) >= most:
        raise ModelError(
            f"{checkpoint.name}: its tokenizer has tokens up to number {largest}, but its embedding has only {most} rows; the "
            "tokenizer belongs to another model"
        )


def _check(checkpoint: Checkpoint, backend: Tokenizer, padding: int | None) -> None:
    """Raise ModelError for a tokenizer that is larger than the embedding.

    A padding token is never read. Special tokens that no template writes may lie beyond it: Gemma 3 has one for pictures.
    """
    ids = set(backend.get_vocab().values()) - {padding}
    if max(ids, default=0) >= _MOST_TOKENS or (padding or 0) >= _MOST_TOKENS:
        raise ModelError(f"{checkpoint.name}: its tokenizer has a token with a number above {_MOST_TOKENS}")
    special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    check_ids(checkpoint, ids - special)
