"""The networks of checkpoints, as transformers and InternLM2 build them, without weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prefcast.errors import ModelError, excerpt
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.families import Head
from prefcast.scorers.reward.internlm2 import InternLM2Config, InternLM2Reward
from prefcast.scorers.reward.packing import Layout, attend
from prefcast.scorers.reward.weights import TensorInfo

__all__ = [
    "PACKED_FAMILIES",
    "Headed",
    "attention_of",
    "body_of",
    "class_of",
    "config_of",
    "head_layers",
    "one_line",
    "packs",
    "quiet",
    "skeleton",
    "trained_padding",
]

# The families of transformers whose attention depends on nothing but its arguments: packed rows are exact with them.
# Tests compare each family with the unpacked model.
PACKED_FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"}
)
_ATTENTION = "prefcast_packed"
# Parameters that a network may have beyond those of the weights: tied ones are counted once.
_SLACK = 2**20
# What config.json may not decide: which attention and kernels run (a name of the hub's would be fetched), how weights are read,
# and which code of the checkpoint runs.
_NOT_TAKEN = frozenset(
    {
        "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
        "_flash_attn_2_enabled", "_experts_implementation", "experts_implementation", "_experts_implementation_internal",
        "use_kernels", "kernel_config", "fusion_config", "quantization_config", "transformers_weights", "auto_map",
        "distributed_config", "device_map", "tp_plan", "base_model_tp_plan", "adapter_config",
    }
)  # fmt: skip


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` in the form that transformers calls."""
    return attend(layout, query, key, value, scale=scaling, softcap=softcap, window=sliding_window), None


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the warnings and progress bars of transformers. Faults of a model are raised as errors instead."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def packs(checkpoint: Checkpoint) -> bool:
    """Whether the model can score packed rows."""
    config = checkpoint.text_config
    if checkpoint.kind is Kind.INTERNLM2:
        return True
    return (
        checkpoint.kind is not Kind.CUSTOM
        and config.get("model_type") in PACKED_FAMILIES
        and not config.get("use_bidirectional_attention")
        and config.get("is_causal", True) is not False
    )


def body_of(network: nn.Module) -> nn.Module:
    """The part of a network that makes hidden states, without its head."""
    body: nn.Module = getattr(network, getattr(network, "base_model_prefix", "model"), network)
    return body


class Headed(nn.Module):
    """A body of transformers with the trained head of another family. Its weights have the names in the checkpoint."""

    def __init__(self, body: Any, head: Head, tensors: Mapping[str, TensorInfo]) -> None:
        super().__init__()
        self.config, self.base_model_prefix = body.config, body.base_model_prefix or "model"
        self.add_module(self.base_model_prefix, body)
        self.stems = [weight.removesuffix(".weight") for weight, _ in head.layers]
        for stem, (weight, bias) in zip(self.stems, head.layers, strict=True):
            out, size = tensors[weight].shape
            parent: nn.Module = self
            *inner, last = stem.split(".")
            for name in inner:
                if not hasattr(parent, name):
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            parent.add_module(last, nn.Linear(size, out, bias=bias is not None, device="meta"))


def head_layers(network: nn.Module) -> list[nn.Linear] | None:
    """The linear layers that make scores of the state of one token, with a ReLU between two; None where a network has
    another head, or pools in another way."""
    if isinstance(network, Headed):
        return [network.get_submodule(stem) for stem in network.stems]  # type: ignore[misc]
    head = getattr(network, "score", None)
    return [head] if isinstance(head, nn.Linear) else None


def config_of(checkpoint: Checkpoint) -> Any:
    """The configuration of transformers. Raises ModelError."""
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with quiet():
        try:
            if checkpoint.kind is Kind.CUSTOM:
                found = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=True, local_files_only=True)
                found._attn_implementation = None
                return found
            said = _taken(checkpoint.config)
            family = said.get("model_type")
            if not isinstance(family, str) or family not in CONFIG_MAPPING:
                raise ModelError(f"{checkpoint.name}: transformers does not know the model_type {excerpt(family)}")
            made = CONFIG_MAPPING[family].from_dict(said)
            if not isinstance(made.get_text_config(), PreTrainedConfig):
                raise ModelError(f"{checkpoint.name}: the text_config in config.json is not an object")
            return made
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{checkpoint.name}: transformers cannot read its config.json: {one_line(error)}"
            ) from None


def _taken(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _taken(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_TAKEN
    }


def class_of(checkpoint: Checkpoint, config: Any) -> Any:
    """The class of the network, or of its body where the head is that of another family. Raises ModelError."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto.auto_factory import _get_model_class

    if checkpoint.kind is Kind.CUSTOM:
        return _own_class(checkpoint)
    language = checkpoint.kind in (Kind.CAUSAL, Kind.LOGIT, Kind.LANGUAGE)
    auto: Any = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    mapping = (auto if checkpoint.head is None else AutoModel)._model_mapping
    if type(config) not in mapping:
        raise ModelError(
            f"{checkpoint.name}: transformers has no {auto.__name__.removeprefix('AutoModel')} of the model_type "
            f"{excerpt(checkpoint.config.get('model_type'))}"
        )
    return _get_model_class(config, mapping)


def _own_class(checkpoint: Checkpoint) -> Any:
    """The class that config.json names in `auto_map`: that of the architecture, under whatever Auto class."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named = checkpoint.config.get("auto_map")
    models = {
        key: value
        for key, value in (named.items() if isinstance(named, Mapping) else ())
        if key.startswith("AutoModel") and isinstance(value, str)
    }
    own = [value for value in models.values() if value.rpartition(".")[2] == checkpoint.architecture]
    order = [models[key] for key in ("AutoModelForSequenceClassification", "AutoModel") if key in models]
    if not (names := [*own, *order, *models.values()]):
        raise ModelError(f"{checkpoint.name}: its auto_map in config.json names no model class")
    return get_class_from_dynamic_module(names[0], str(checkpoint.folder), local_files_only=True)


def trained_padding(checkpoint: Checkpoint) -> int | None:
    """The padding token, where the model was trained to score the last token that is not it; else None.

    transformers' classifiers are: a text that ends with the padding token is scored before it.
    """
    if checkpoint.kind not in (Kind.POINTWISE, Kind.PAIR) or (checkpoint.head and checkpoint.head.at_last):
        return None
    found = config_of(checkpoint).get_text_config().pad_token_id
    return found if isinstance(found, int) else None


def skeleton(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint on the meta device, without its weights. Its buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), quiet():
        if checkpoint.kind is Kind.INTERNLM2:
            # config.json may be wrong about biases; the weights are not.
            bias = any(name.endswith("wqkv.bias") for name in checkpoint.tensors)
            try:
                network: nn.Module = InternLM2Reward(InternLM2Config.of({**checkpoint.config, "bias": bias}))
            except ModelError as error:
                raise ModelError(f"{checkpoint.name}: {error}") from None
        else:
            config = config_of(checkpoint)
            build = class_of(checkpoint, config)
            try:
                network = build._from_config(config, attn_implementation=attention_of(checkpoint))
            except Exception as error:
                raise ModelError(
                    f"{checkpoint.name}: transformers cannot build its network: {one_line(error)}"
                ) from None
            if checkpoint.head is not None:
                network = Headed(network, checkpoint.head, checkpoint.tensors)
    made = sum(parameter.numel() for parameter in network.parameters())
    if made > 4 * checkpoint.parameters + _SLACK:
        raise ModelError(
            f"{checkpoint.name}: config.json describes a network of {made:,} parameters, but the weights have "
            f"{checkpoint.parameters:,}"
        )
    return network.eval()


def attention_of(checkpoint: Checkpoint) -> str | None:
    """The attention that the network uses; None for transformers' own choice."""
    if not packs(checkpoint):
        return None
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _packed_attention)
    return _ATTENTION


def one_line(error: BaseException) -> str:
    """An error of another library in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
