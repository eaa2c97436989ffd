"""The tokenizer of a checkpoint: its backend, its special tokens and its chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefcast.errors import ModelError
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.loading import one_line, quiet
from prefcast.scorers.reward.sentencepiece import build_tokenizer

__all__ = ["ModelTokenizer", "load_tokenizer"]

# The chat of InternLM2-reward, for a checkpoint that brings no template: the reward token is appended by its id.
_INTERNLM2_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class ModelTokenizer:
    """What reading needs of a tokenizer."""

    backend: Tokenizer
    chat_template: Any
    bos_token: str | None
    eos_token: str | None
    cls_token: str | None
    add_eos_token: bool
    token_types: bool
    _renders: Any

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        return self._renders.apply_chat_template(
            conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a conversation that ends with an answer."""
        text: str = self.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
        return text


def load_tokenizer(checkpoint: Checkpoint) -> ModelTokenizer:
    """The tokenizer in the checkpoint's folder.

    Raises ModelError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with quiet():
        if checkpoint.kind is Kind.INTERNLM2:
            backend = build_tokenizer(checkpoint.folder)
            told = _json(checkpoint.folder / "tokenizer_config.json")
            template = _chat_template(checkpoint.folder, told) or _INTERNLM2_CHAT
            names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            renders: Any = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)
            # transformers may add to the backend that it is given.
            return ModelTokenizer(
                build_tokenizer(checkpoint.folder), template, "<s>", "</s>", None, False, False, renders
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=checkpoint.kind is Kind.CUSTOM, local_files_only=True
            )
        except Exception as error:
            # Every tokenizer fails in its own way.
            raise ModelError(f"{checkpoint.name}: its tokenizer cannot be loaded: {one_line(error)}") from None
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise ModelError(f"{checkpoint.name}: has no fast tokenizer (tokenizer.json)")
    return ModelTokenizer(
        fast,
        tokenizer.chat_template,
        tokenizer.bos_token,
        tokenizer.eos_token,
        getattr(tokenizer, "cls_token", None),
        bool(getattr(tokenizer, "add_eos_token", False)),
        "token_type_ids" in tokenizer.model_input_names,
        tokenizer,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _chat_template(folder: Path, told: dict[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = told.get("chat_template")
    if isinstance(template, list):
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    return template if isinstance(template, str) else None
