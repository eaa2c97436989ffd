"""From a checkpoint to a network on its devices, in its precision. Weights come from safetensors only; what is missing
is refused, never made up."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prefcast.errors import MissingExtraError, ModelError, UsageError
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.internlm2 import InternLM2Config, InternLM2Reward
from prefcast.scorers.reward.packing import Layout, attend
from prefcast.scorers.reward.precision import OneDNNLinear, quantise, quantised_linear, stored_parts
from prefcast.scorers.reward.weights import quantisable

__all__ = [
    "PACKED_FAMILIES",
    "body_of",
    "load_network",
    "one_line",
    "packs",
    "quiet",
    "refuse_incomplete",
    "skeleton",
]

# The families of transformers whose attention takes every detail from its arguments, so that packed rows are exact;
# tests compare each with the unpacked model.
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
    """Without the advice and progress bars of transformers; what matters is checked here and raised."""
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
    """The network of a checkpoint without its weights (on the meta device); buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), quiet():
        if checkpoint.kind is Kind.INTERNLM2:
            # Whether there are biases, the weights know best.
            bias = any(name.endswith("wqkv.bias") for name in checkpoint.tensors)
            try:
                network: nn.Module = InternLM2Reward(InternLM2Config.of({**checkpoint.config, "bias": bias}))
            except ModelError as error:
                raise ModelError(f"{checkpoint.name}: {error}") from None
        else:
            config = _config(checkpoint)
            # What is stored quantised is read by us.
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            try:
                network = _auto_class(checkpoint).from_config(config, attn_implementation=_attention_name(checkpoint))
            except Exception as error:
                raise ModelError(f"{checkpoint.name}: {one_line(error)}") from None
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


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=checkpoint.kind is Kind.CUSTOM, local_files_only=True
        )
    except Exception as error:
        raise ModelError(f"{checkpoint.name}: transformers cannot read its config.json: {one_line(error)}") from None


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
        # What is stored quantised is complete: a matrix that was left out then is left out now.
        network = _filled(checkpoint, devices, dtype, None if checkpoint.quantization else quantization)
    else:
        network = _from_pretrained(checkpoint, dtype, devices[0])
    # A language model's head may share its weights with the embedding; the engine widens the two rows it needs.
    if checkpoint.kind not in (Kind.INTERNLM2, Kind.CAUSAL):
        _float32_head(network)
    if devices[0].type == "cpu" and packs(checkpoint):
        for module in list(body_of(network).modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and OneDNNLinear.usable(child, dtype):
                    setattr(module, name, OneDNNLinear(child))
    return network


def _from_pretrained(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> nn.Module:
    # Reads the headers: says first what is missing or damaged.
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
                # They are refused below, by name.
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
    """ModelError if weights are missing: transformers would score with random ones."""
    for names, what in ((missing, "lack"), (mismatched, "have another shape for")):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            head = any(not name.startswith("model.") or "score" in name for name in names)
            raise ModelError(
                f"{checkpoint.name}: its weights {what} {shown}; "
                + (
                    "a model without a trained head gives meaningless scores"
                    if head
                    else "the checkpoint is incomplete"
                )
            )


def refuse_incomplete(checkpoint: Checkpoint, network: nn.Module, *, packed: bool = False) -> None:
    """ModelError if the weights lack parameters of the network or have them in other shapes; with `packed`, what is
    stored quantised may have another."""
    tensors = checkpoint.tensors
    tied = checkpoint.text_config.get("tie_word_embeddings", checkpoint.kind is not Kind.INTERNLM2)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    missing = sorted(set(shapes) - set(tensors) - ({"lm_head.weight"} if tied else set()))
    wrong = [name for name, shape in shapes.items() if name in tensors and tensors[name].shape != shape]
    if packed:
        wrong = [name for name in wrong if tensors[name].dtype not in _QUANTISED_TYPES]
    _refuse(checkpoint, missing, wrong)


def _float32_head(network: nn.Module) -> None:
    """Let everything after the body compute in float32."""
    body = body_of(network)
    for child in network.children():
        if child is not body:
            child.float()
            child.register_forward_pre_hook(_widen)


def _widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def _filled(
    checkpoint: Checkpoint, devices: Sequence[torch.device], dtype: torch.dtype, quantization: str | None
) -> nn.Module:
    """A skeleton that is given its weights one by one, quantised on the way, each on its device."""
    network = skeleton(checkpoint)
    body = body_of(network)
    tensors = checkpoint.tensors
    where = _placement(network, devices, checkpoint)
    refuse_incomplete(checkpoint, network, packed=True)
    with ExitStack() as stack:
        files: dict[Any, Any] = {}

        def fetch(name: str) -> Tensor:
            file = tensors[name].file
            try:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
                # Out of the mapped file: there it lies unaligned, and products differ by their last digit.
                tensor: Tensor = files[file].get_tensor(name).clone()
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{checkpoint.name}: {file.name}: {one_line(error)}") from None
            return tensor

        inside = {id(module) for module in body.modules()}
        for path, module in list(network.named_modules()):
            for own, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                name = f"{path}.{own}" if path else own
                if name not in tensors:
                    # Tied to the embedding; that is done below.
                    continue
                device = where(name)
                if type(module) is nn.Linear and own == "weight" and id(module) in inside:
                    layer = _quantised(module, name, fetch, tensors, device, dtype, quantization)
                    if layer is not None:
                        parent, _, last = path.rpartition(".")
                        setattr(network.get_submodule(parent), last, layer)
                        continue
                if tensors[name].dtype in _QUANTISED_TYPES:
                    raise ModelError(f"{checkpoint.name}: {name} is quantised, but its scales are missing")
                module._parameters[own] = nn.Parameter(fetch(name).to(device, dtype), requires_grad=False)
            for own, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[own] = buffer.to(where(f"{path}.{own}"))
    if checkpoint.kind is Kind.INTERNLM2:
        _refuse_unknown(checkpoint, network)
    else:
        network.tie_weights()  # type: ignore[operator]
    if len(devices) > 1 and checkpoint.kind is not Kind.INTERNLM2:
        _dispatch(network, where)
    return network


def _refuse_unknown(checkpoint: Checkpoint, network: nn.Module) -> None:
    """ModelError if the weights hold what the network has no place for: it would score without it."""
    known = {f"{path}." for path, module in network.named_modules() if not list(module.children())}
    unknown = [
        name
        for name in checkpoint.tensors
        if not name.startswith(tuple(known)) and not name.endswith("rotary_emb.inv_freq")
    ]
    biases = [
        name for name in checkpoint.tensors if name.endswith(".bias") and name not in dict(network.named_parameters())
    ]
    if unknown or biases:
        raise ModelError(
            f"{checkpoint.name}: InternLM2 has no place for its weights {', '.join([*unknown, *biases][:_SHOWN])}"
        )


def _quantised(
    module: nn.Linear,
    name: str,
    fetch: Any,
    tensors: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
) -> nn.Module | None:
    """The quantised layer in place of `module`, or None where it stays as it is."""
    parts = stored_parts(name, tensors, fetch)
    if parts is None:
        if (
            quantization is None
            or not quantisable(name, module.weight.shape)
            or tensors[name].dtype in _QUANTISED_TYPES
        ):
            return None
        # On the device itself a matrix is quantised in no time.
        parts = quantise(fetch(name).to(device), quantization)
    bias = f"{name.removesuffix('weight')}bias"
    return quantised_linear(parts, fetch(bias).to(device, dtype) if module.bias is not None else None, device)


def _placement(
    network: nn.Module,
    devices: Sequence[torch.device],
    checkpoint: Checkpoint,
) -> Any:
    """Name of a tensor -> its device: the layers in order, in shares of equal bytes."""
    if len(devices) == 1:
        return lambda name: devices[0]
    body = body_of(network)
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < len(devices):
        raise UsageError(
            f"{checkpoint.name}: cannot be spread over {len(devices)} devices: it has {len(layers) if layers is not None else 'no'} layers"
        )
    prefix = next(path for path, module in network.named_modules() if module is layers)
    table = {f"{prefix}.{index}": devices[index * len(devices) // len(layers)] for index in range(len(layers))}
    after = {path for path, _ in network.named_children() if network.get_submodule(path) is not body}

    def where(name: str) -> torch.device:
        for path, device in table.items():
            if name.startswith(path + "."):
                return device
        # The head and the last norm lie where the last layer is, the embedding with the first.
        top = name.split(".", maxsplit=1)[0]
        last_norm = name.startswith(prefix.removesuffix("layers") + "norm.")
        return devices[-1] if top in after or last_norm else devices[0]

    return where


def _dispatch(network: nn.Module, where: Any) -> None:
    """Let hidden states follow the layers over the devices."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    body: Any = body_of(network)
    if not isinstance(getattr(body, "norm", None), nn.Module):
        raise UsageError(
            f"a {type(network).__name__} cannot be spread over devices here; those of {', '.join(sorted(PACKED_FAMILIES))} can"
        )
    heads = [child for child in network.children() if child is not body]
    for module in (*body.layers, body.norm, *heads):
        device = next(module.parameters(), next(module.buffers(), torch.empty(0))).device
        add_hook_to_module(module, AlignDevicesHook(device, io_same_device=False))
