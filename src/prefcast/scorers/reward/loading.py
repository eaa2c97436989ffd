"""From a checkpoint to a network on its devices, in its precision.

Weights are read from safetensors files only. A checkpoint that lacks weights is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prefcast.errors import MissingExtraError, ModelError, UsageError
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.internlm2 import InternLM2Config, InternLM2Reward
from prefcast.scorers.reward.packing import Layout, attend
from prefcast.scorers.reward.precision import OneDNNLinear, quantise, quantised_linear, stored_parts
from prefcast.scorers.reward.weights import SIDE_TENSOR, quantisable

__all__ = [
    "PACKED_FAMILIES",
    "body_matrices",
    "body_of",
    "load_network",
    "one_line",
    "packs",
    "quiet",
    "refuse_incomplete",
    "skeleton",
    "tensor_reader",
]

# The families of transformers whose attention depends on nothing but its arguments: packed rows are exact with them.
# Tests compare each family with the unpacked model.
PACKED_FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"}
)
_ATTENTION = "prefcast_packed"
_SHOWN = 3
_QUANTISED_TYPES = ("U8", "I8")


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


def skeleton(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint on the meta device, without its weights. Its buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    with init_empty_weights(include_buffers=False), quiet():
        if checkpoint.kind is Kind.INTERNLM2:
            # config.json may be wrong about biases; the weights are not.
            bias = any(name.endswith("wqkv.bias") for name in checkpoint.tensors)
            try:
                network: nn.Module = InternLM2Reward(InternLM2Config.of({**checkpoint.config, "bias": bias}))
            except ModelError as error:
                raise ModelError(f"{checkpoint.name}: {error}") from None
        else:
            try:
                config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
                # Quantised weights are read here, not by transformers.
                if hasattr(config, "quantization_config"):
                    del config.quantization_config
                network = _auto_class(checkpoint).from_config(config, attn_implementation=_attention_name(checkpoint))
            except Exception as error:
                raise ModelError(
                    f"{checkpoint.name}: transformers cannot build its network: {one_line(error)}"
                ) from None
    return network.eval()


def _attention_name(checkpoint: Checkpoint) -> str | None:
    if not packs(checkpoint):
        return None
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _packed_attention)
    return _ATTENTION


def _auto_class(checkpoint: Checkpoint) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if checkpoint.kind is Kind.CAUSAL else AutoModelForSequenceClassification


def one_line(error: BaseException) -> str:
    """An error of another library in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def load_network(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantization: str | None = None,
) -> nn.Module:
    """The network with its weights, computing in `dtype`; on several `devices` its layers are spread over them.

    Raises ModelError if weights are missing or have other shapes.
    """
    if quantization and checkpoint.quantization and quantization != checkpoint.quantization:
        raise UsageError(
            f"{checkpoint.name}: is stored as {checkpoint.quantization}; {quantization} cannot be made of that"
        )
    if checkpoint.kind is Kind.CUSTOM:
        if quantization or checkpoint.quantization or len(devices) > 1:
            raise UsageError(f"{checkpoint.name}: a model with remote code can neither be quantised nor sharded here")
        return _from_pretrained(checkpoint, dtype, devices[0])
    if checkpoint.kind is Kind.INTERNLM2 or quantization or checkpoint.quantization or len(devices) > 1:
        # In a checkpoint that is stored quantised, matrices that are not quantised stay so.
        network = _filled(checkpoint, devices, dtype, None if checkpoint.quantization else quantization)
    else:
        network = _from_pretrained(checkpoint, dtype, devices[0])
    # A language model's head may share its weights with the embedding; the engine widens only the rows it needs.
    if checkpoint.kind not in (Kind.INTERNLM2, Kind.CAUSAL):
        _float32_head(network)
    if devices[0].type == "cpu" and packs(checkpoint):
        for name, layer in _body_layers(network).items():
            if OneDNNLinear.usable(layer, dtype):
                _put(network, name, OneDNNLinear(layer))
    return network


def _from_pretrained(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> nn.Module:
    # Reading the headers first gives better messages about missing and damaged files.
    _ = checkpoint.tensors
    with quiet():
        try:
            network, info = _auto_class(checkpoint).from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                device_map={"": str(device)},
                use_safetensors=True,
                trust_remote_code=checkpoint.kind is Kind.CUSTOM,
                local_files_only=True,
                output_loading_info=True,
                # They are refused below, with their names.
                ignore_mismatched_sizes=True,
                attn_implementation=_attention_name(checkpoint),
            )
        except ImportError as error:
            raise MissingExtraError(one_line(error), "transformers") from None
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(f"{checkpoint.name}: cannot be loaded: {one_line(error)}") from None
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    _refuse(checkpoint, missing, mismatched)
    if left := [name for name in info["unexpected_keys"] if "layers." in name or ".layer." in name]:
        raise ModelError(
            f"{checkpoint.name}: config.json has no place for its weights {', '.join(sorted(left)[:_SHOWN])}"
        )
    return network.eval()  # type: ignore[no-any-return]


def _refuse(checkpoint: Checkpoint, missing: Sequence[str], mismatched: Sequence[str]) -> None:
    """Raise ModelError if weights are missing: transformers would use random ones instead."""
    for names, what in ((missing, "lack"), (mismatched, "have another shape for")):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            head = any(not name.startswith("model.") or "score" in name for name in names)
            why = "a model without a trained head gives meaningless scores" if head else "the checkpoint is incomplete"
            raise ModelError(f"{checkpoint.name}: its weights {what} {shown}; {why}")


def refuse_incomplete(checkpoint: Checkpoint, network: nn.Module, *, packed: bool = False) -> None:
    """Raise ModelError if the weights lack parameters of the network, or have other shapes.

    With `packed` quantised weights may have other shapes.
    """
    tensors = checkpoint.tensors
    tied = checkpoint.text_config.get("tie_word_embeddings", checkpoint.kind is not Kind.INTERNLM2)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    missing = sorted(set(shapes) - set(tensors) - ({"lm_head.weight"} if tied else set()))
    wrong = [
        name
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape and not (packed and tensors[name].dtype in _QUANTISED_TYPES)
    ]
    _refuse(checkpoint, missing, wrong)
    if checkpoint.kind is Kind.INTERNLM2:
        unknown = [
            name
            for name in tensors
            if name not in shapes and not SIDE_TENSOR.search(name) and not name.endswith("rotary_emb.inv_freq")
        ]
        if unknown:
            raise ModelError(f"{checkpoint.name}: InternLM2 has no place for its weights {', '.join(unknown[:_SHOWN])}")


def _float32_head(network: nn.Module) -> None:
    """Make everything after the body compute in float32."""
    body = body_of(network)
    for child in network.children():
        if child is not body:
            child.float()
            child.register_forward_pre_hook(_widen)


def _widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


@contextmanager
def tensor_reader(checkpoint: Checkpoint) -> Iterator[Callable[[str], Tensor]]:
    """A function from the name of a weight to its tensor on the CPU. It raises ModelError for a damaged file."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def fetch(name: str) -> Tensor:
            file = checkpoint.tensors[name].file
            try:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
                # A copy: tensors in the mapped file are not aligned, and products of such differ in the last digit.
                tensor: Tensor = files[file].get_tensor(name).clone()
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{checkpoint.name}: {file.name}: {one_line(error)}") from None
            return tensor

        yield fetch


def _body_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the body by their names in the network."""
    inside = {id(module) for module in body_of(network).modules()}
    return {
        name: module for name, module in network.named_modules() if type(module) is nn.Linear and id(module) in inside
    }


def body_matrices(network: nn.Module) -> set[str]:
    """The names of the weights that quantising applies to."""
    weights = {f"{name}.weight": layer.weight for name, layer in _body_layers(network).items()}
    return {name for name, weight in weights.items() if quantisable(name, weight.shape)}


def _put(network: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Set the module, parameter or buffer called `name`."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, value)


def _filled(
    checkpoint: Checkpoint, devices: Sequence[torch.device], dtype: torch.dtype, quantization: str | None
) -> nn.Module:
    """The network with its weights, loaded one by one, quantised on the way, each on its device."""
    network = skeleton(checkpoint)
    tensors = checkpoint.tensors
    refuse_incomplete(checkpoint, network, packed=True)
    where = _placement(network, devices, checkpoint)
    matrices = body_matrices(network) if quantization else set()
    with tensor_reader(checkpoint) as fetch:
        for path, layer in _body_layers(network).items():
            name = f"{path}.weight"
            device = where(name)
            parts = stored_parts(name, tensors, fetch)
            if parts is None and quantization and name in matrices and tensors[name].dtype not in _QUANTISED_TYPES:
                # On its device, because a GPU quantises a matrix much faster.
                parts = quantise(fetch(name).to(device), quantization)
            if parts is not None:
                bias = fetch(f"{path}.bias").to(device, dtype) if layer.bias is not None else None
                _put(network, path, quantised_linear(parts, bias, device))
        for name, parameter in list(network.named_parameters(remove_duplicate=False)):
            # A weight that is not stored is tied to the embedding below.
            if parameter.is_meta and name in tensors:
                if tensors[name].dtype in _QUANTISED_TYPES:
                    raise ModelError(f"{checkpoint.name}: {name} is quantised, but its scales are missing")
                _put(network, name, nn.Parameter(fetch(name).to(where(name), dtype), requires_grad=False))
        for name, buffer in list(network.named_buffers()):
            _put(network, name, buffer.to(where(name)))
    if checkpoint.kind is not Kind.INTERNLM2:
        network.tie_weights()  # type: ignore[operator]
        if len(devices) > 1:
            _dispatch(network)
    return network


def _placement(
    network: nn.Module, devices: Sequence[torch.device], checkpoint: Checkpoint
) -> Callable[[str], torch.device]:
    """A function from the name of a tensor to its device. Each device gets as many layers."""
    if len(devices) == 1:
        return lambda name: devices[0]
    body = body_of(network)
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < len(devices):
        count = "no" if layers is None else len(layers)
        raise UsageError(f"{checkpoint.name}: cannot be spread over {len(devices)} devices: it has {count} layers")
    if not isinstance(getattr(body, "norm", None), nn.Module):
        raise UsageError(
            f"a {type(network).__name__} cannot be spread over devices here; those of "
            f"{', '.join(sorted(PACKED_FAMILIES))} can"
        )
    prefix = next(path for path, module in network.named_modules() if module is layers)
    table = {f"{prefix}.{index}.": devices[index * len(devices) // len(layers)] for index in range(len(layers))}
    # The last norm and the head are on the last layer's device, the embedding is on the first layer's.
    heads = [f"{path}." for path, module in network.named_children() if module is not body]
    table |= dict.fromkeys([f"{prefix.removesuffix('layers')}norm.", *heads], devices[-1])
    return lambda name: next((device for path, device in table.items() if name.startswith(path)), devices[0])


def _dispatch(network: nn.Module) -> None:
    """Make hidden states follow the layers over the devices."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    body: Any = body_of(network)
    heads = [child for child in network.children() if child is not body]
    for module in (*body.layers, body.norm, *heads):
        device = next(module.parameters(), next(module.buffers(), torch.empty(0))).device
        add_hook_to_module(module, AlignDevicesHook(device, io_same_device=False))
