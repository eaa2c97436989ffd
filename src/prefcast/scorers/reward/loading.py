"""From a checkpoint to a network on its devices, in its precision.

Weights are read from safetensors files only, by the reader here: transformers opens none. A checkpoint that lacks weights, or
has a trained head that the network has no place for, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prefcast.errors import MissingExtraError, ModelError, UsageError
from prefcast.scorers.reward.adapters import Delta
from prefcast.scorers.reward.checkpoint import Checkpoint, Kind
from prefcast.scorers.reward.networks import (
    PACKED_FAMILIES,
    Headed,
    attention_of,
    body_of,
    class_of,
    config_of,
    one_line,
    packs,
    quiet,
    skeleton,
)
from prefcast.scorers.reward.precision import LowRank, OneDNNLinear, quantise, quantised_linear, stored_parts
from prefcast.scorers.reward.weights import HEAD, SIDE_TENSOR, TensorInfo, quantisable

__all__ = ["body_matrices", "load_network", "one_line", "packs", "quiet", "refuse_incomplete", "tensor_reader"]

_SHOWN = 3
_QUANTISED_TYPES = ("U8", "I8")


def load_network(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    quantization: str | None = None,
    *,
    trainable: bool = False,
) -> nn.Module:
    """The network with its weights, computing in `dtype`; on several `devices` its layers are spread over them.

    With `trainable` its layers are those that give gradients. Otherwise a CPU gets layers that are faster and give none.

    Raises ModelError if weights are missing or have other shapes.
    """
    if quantization and checkpoint.quantization and quantization != checkpoint.quantization:
        raise UsageError(
            f"{checkpoint.name}: is stored as {checkpoint.quantization}; {quantization} cannot be made of that"
        )
    if checkpoint.kind is Kind.CUSTOM:
        if quantization or checkpoint.quantization or len(devices) > 1:
            raise UsageError(f"{checkpoint.name}: a model with remote code can neither be quantised nor sharded here")
        return _by_transformers(checkpoint, dtype, devices[0])
    if checkpoint.kind is Kind.INTERNLM2 or quantization or checkpoint.quantization or len(devices) > 1:
        # In a checkpoint that is stored quantised, matrices that are not quantised stay so.
        network = _filled(checkpoint, devices, dtype, None if checkpoint.quantization else quantization)
    else:
        network = _by_transformers(checkpoint, dtype, devices[0])
    # A language model's head may share its weights with the embedding; the engine widens only the rows it needs.
    if checkpoint.kind not in (Kind.INTERNLM2, Kind.CAUSAL, Kind.LOGIT):
        _float32_head(network)
    if devices[0].type == "cpu" and packs(checkpoint) and not trainable:
        for name, layer in _body_layers(network).items():
            if OneDNNLinear.usable(layer, dtype):
                _put(network, name, OneDNNLinear(layer))
    return network


class _Lazy:
    """A weight that is read when transformers takes it."""

    def __init__(self, fetch: Callable[[str], Tensor], name: str) -> None:
        self._fetch, self._name = fetch, name

    def __getitem__(self, whole: object) -> Tensor:
        return self._fetch(self._name)


def _by_transformers(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The network whose weights transformers puts in their places; it knows the names of older checkpoints."""
    if checkpoint.kind is not Kind.CUSTOM:
        skeleton(checkpoint)  # refuses a config.json whose network is far larger than the weights
    config, head = config_of(checkpoint), checkpoint.head
    own = set() if head is None else head.names
    with quiet(), tensor_reader(checkpoint) as reader:
        try:
            network, info = class_of(checkpoint, config).from_pretrained(
                None,
                config=config,
                state_dict={name: _Lazy(reader.fetch, name) for name in checkpoint.tensors if name not in own},
                dtype=dtype,
                device_map={"": str(device)},
                output_loading_info=True,
                # They are refused below, with their names.
                ignore_mismatched_sizes=True,
                attn_implementation=attention_of(checkpoint),
            )
        except ImportError as error:
            raise MissingExtraError(one_line(error), "transformers") from None
        except (torch.OutOfMemoryError, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"{checkpoint.name}: cannot be loaded: {one_line(error)}") from None
        missing = sorted(info["missing_keys"])
        mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
        _refuse(checkpoint, missing, mismatched)
        _refuse_left(checkpoint, info["unexpected_keys"])
        if head is not None:
            network = Headed(network, head, checkpoint.tensors)
            for name in own:
                _put(network, name, nn.Parameter(reader.fetch(name).to(device, dtype), requires_grad=False))
    return network.eval()  # type: ignore[no-any-return]


def _refuse_left(checkpoint: Checkpoint, left: Sequence[str]) -> None:
    """Raise ModelError for weights that the network has no place for, where they may change a score."""
    language = checkpoint.kind in (Kind.CAUSAL, Kind.LOGIT)
    for name in sorted(left):
        if SIDE_TENSOR.search(name) or name.endswith("rotary_emb.inv_freq"):
            continue
        if "layers." in name or ".layer." in name:
            raise ModelError(f"{checkpoint.name}: config.json has no place for its weights {name}")
        if HEAD.match(name) or (language and name.startswith("lm_head.")):
            raise ModelError(
                f"{checkpoint.name}: its weights have a trained head, {name}, that a {checkpoint.architecture} of "
                "transformers has no place for; scores without it would be wrong"
            )


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
    if checkpoint.kind is not Kind.INTERNLM2:
        _refuse_left(checkpoint, [name for name in tensors if name not in shapes])
    else:
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


class Reader:
    """Reads weights into tensors on the CPU. Raises ModelError for a damaged file."""

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint, self._stack = checkpoint, stack
        self._files: dict[Path, Any] = {}
        self._deltas = {} if checkpoint.adapter is None else checkpoint.adapter.deltas

    def fetch(self, name: str) -> Tensor:
        """A weight with what an adapter adds to it."""
        weight = self.stored(name)
        if (delta := self._deltas.get(name)) is None:
            return weight
        a, b, scale = self._halves(delta)
        change = (b @ a) * scale
        return weight.float() + (change.T if delta.transposed else change)

    def stored(self, name: str) -> Tensor:
        """A weight as it is stored."""
        return self._read(self._checkpoint.tensors[name])

    def low_rank(self, name: str) -> tuple[Tensor, Tensor, float] | None:
        """What an adapter adds to a weight, as matrices A and B and a scale; None where it adds nothing."""
        delta = self._deltas.get(name)
        return None if delta is None else self._halves(delta)

    def _halves(self, delta: Delta) -> tuple[Tensor, Tensor, float]:
        return self._read(delta.a).float(), self._read(delta.b).float(), delta.scale

    def _read(self, tensor: TensorInfo) -> Tensor:
        try:
            if tensor.file not in self._files:
                opened = safe_open(str(tensor.file), framework="pt", device="cpu")
                self._files[tensor.file] = self._stack.enter_context(opened)
            # A copy: tensors in the mapped file are not aligned, and products of such differ in the last digit.
            found: Tensor = self._files[tensor.file].get_tensor(tensor.key).clone()
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"{self._checkpoint.name}: {tensor.file.name}: {one_line(error)}") from None
        return found


@contextmanager
def tensor_reader(checkpoint: Checkpoint) -> Iterator[Reader]:
    """A reader of the checkpoint's weights, whose files are open inside the `with` block."""
    with ExitStack() as stack:
        yield Reader(checkpoint, stack)


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
    with tensor_reader(checkpoint) as reader:
        for path, layer in _body_layers(network).items():
            name = f"{path}.weight"
            device = where(name)
            parts = stored_parts(name, tensors, reader.stored)
            if parts is None and quantization and name in matrices and tensors[name].dtype not in _QUANTISED_TYPES:
                # On its device, because a GPU quantises a matrix much faster.
                parts = quantise(reader.stored(name).to(device), quantization)
            if parts is not None:
                bias = reader.fetch(f"{path}.bias").to(device, dtype) if layer.bias is not None else None
                made = quantised_linear(parts, bias, device)
                # As it was trained: the adapter's matrices stay beside the quantised one.
                if (added := reader.low_rank(name)) is not None:
                    a, b, scale = added
                    if (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
                        raise ModelError(f"{checkpoint.name}: its adapter's matrices for {path} have other shapes")
                    made = LowRank(made, a.to(device, dtype), (b * scale).to(device, dtype))
                _put(network, path, made)
        for name, parameter in list(network.named_parameters(remove_duplicate=False)):
            # A weight that is not stored is tied to the embedding below.
            if parameter.is_meta and name in tensors:
                if tensors[name].dtype in _QUANTISED_TYPES:
                    raise ModelError(f"{checkpoint.name}: {name} is quantised, but its scales are missing")
                _put(network, name, nn.Parameter(reader.fetch(name).to(where(name), dtype), requires_grad=False))
        for name, buffer in list(network.named_buffers()):
            _put(network, name, buffer.to(where(name)))
    if checkpoint.kind is not Kind.INTERNLM2:
        if not isinstance(network, Headed):
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
