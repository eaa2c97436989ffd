"""The tokenizer of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from prefcast.errors import ModelError
from prefcast.scorers.patience import check_growth
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.loading import one_line, quiet
from prefcast.scorers.reward.sentencepiece import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]

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
            backend = build_tokenizer(checkpoint.folder)
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            # A copy, because transformers may add tokens to the backend that it gets.
            copy = Tokenizer.from_str(backend.to_str())
            template = checkpoint.chat_template or _INTERNLM2_CHAT
            own: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
                tokenizer_object=copy, chat_template=template, **tokens
            )
            return own, backend
        check_growth(checkpoint.folder, checkpoint.name)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=checkpoint.kind is Kind.CUSTOM, local_files_only=True
            )
        except Exception as error:
            # The tokenizers of transformers raise exceptions of many types.
            raise ModelError(f"{checkpoint.name}: its tokenizer cannot be loaded: {one_line(error)}") from None
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise ModelError(f"{checkpoint.name}: has no fast tokenizer (tokenizer.json)")
    return tokenizer, fast
