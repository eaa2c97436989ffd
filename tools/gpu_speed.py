"""What `check_gpu.py` times: ways to compute packed attention, and whole networks with random weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checkpoint import Shape
from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.engine import Engine, Group, NativeRunner
from prefcast.scorers.reward.internlm2 import InternLM2Config, InternLM2Reward
from prefcast.scorers.reward.loading import body_matrices
from prefcast.scorers.reward.packing import Layout, attend, pack, packed_size
from prefcast.scorers.reward.precision import quantise, quantised_linear

__all__ = ["SHAPES", "Way", "attention_shape", "attention_ways", "network_note", "network_ways", "random_network"]

VOCABULARY = 92_544
# Width, layers, heads, heads of keys and values, inner width: the published sizes of InternLM2-reward, and two small ones.
SHAPES = {
    "7B": Shape(4096, 32, 32, 8, 14_336),
    "1.8B": Shape(2048, 24, 16, 8, 8192),
    "400M": Shape(1024, 16, 8, 4, 4096),
    "tiny": Shape(128, 2, 4, 2, 256),
}
BATCH_TOKENS = 16_384
Pairs = list[tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Way:
    """One way to do the work: what it took as shown, its ratio to the way it is compared with, and a note."""

    name: str
    shown: str
    ratio: float
    note: str


def random_network(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """InternLM2-reward with random weights, made on its device."""
    config = InternLM2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=32_768,
        reward_token_id=92_527,
    )
    with torch.device("meta"):
        network: nn.Module = InternLM2Reward(config)
    return _filled(network.to(dtype).to_empty(device=device))


def _filled(network: nn.Module) -> nn.Module:
    generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0)
    return network.eval().requires_grad_(False)


def _as_llama(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str) -> nn.Module:
    """A Llama of the same shape: what transformers computes for it costs as much as for InternLM2."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes: dict[str, Any] = dict(  # noqa: C408 - as keywords
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        max_position_embeddings=32_768,
        num_labels=1,
        pad_token_id=2,
        attn_implementation=attention,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network: nn.Module = LlamaForSequenceClassification(LlamaConfig(**sizes))
    finally:
        torch.set_default_dtype(default)
    return _filled(network)


def _in_4_bit(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network with the matrices of its body in NF4. Raises MissingExtraError without bitsandbytes."""
    for name in body_matrices(network):
        path = name.removesuffix(".weight")
        parent, _, last = path.rpartition(".")
        layer: Any = network.get_submodule(path)
        setattr(
            network.get_submodule(parent), last, quantised_linear(quantise(layer.weight, "nf4"), layer.bias, device)
        )
    return network


def sample_pairs(count: int, most: int = 2048) -> Pairs:
    """Token ids of pairs with log-normal lengths: in the median a prompt of 68 tokens and answers of 278."""
    generator = np.random.default_rng(0)
    pairs: Pairs = []
    for _ in range(count):
        prompt, *answers = np.minimum(generator.lognormal([4.1, 5.6, 5.6], [1.0, 0.7, 0.7]).astype(int) + 8, most // 2)
        shared = generator.integers(3, 90_000, prompt)
        pairs.append(
            tuple(np.concatenate((shared, generator.integers(3, 90_000, n))).astype(np.int32) for n in answers)
        )
    return pairs


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _medians(
    ways: dict[str, Callable[[], object]], device: torch.device, seconds: float, most: int = 7
) -> dict[str, float]:
    """Median seconds of each way. The ways take turns, until the time is up; the first turn warms up."""
    end = time.monotonic() + seconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        for _ in range(most):
            for name, way in ways.items():
                times[name].append(_seconds(way, device))
            if time.monotonic() > end:
                break
    return {name: statistics.median(each) for name, each in times.items()}


# Attention.


def _size(device: torch.device) -> tuple[int, Shape]:
    return (BATCH_TOKENS, SHAPES["7B"]) if device.type == "cuda" else (512, SHAPES["tiny"])


def attention_shape(device: torch.device) -> str:
    """The sizes of the measurement, in words."""
    tokens, shape = _size(device)
    return (
        f"about {tokens:,} tokens of pairs that share their prompts, {shape.heads} heads of {shape.hidden // shape.heads}, "
        f"{shape.keys} of keys and values"
    )


def _packed(tokens: int, device: torch.device) -> Layout:
    pairs, used = Pairs(), 0
    for pair in sample_pairs(1000, most=min(2048, tokens)):
        used += packed_size(pair)
        if pairs and used > tokens:
            break
        pairs.append(pair)
    return pack(pairs, device)


def attention_ways(device: torch.device) -> list[Way]:
    """One layer's packed attention: the product's, flex_attention's, and variable-length flash attention's."""
    tokens, shape = _size(device)
    layout = _packed(tokens, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    size = shape.hidden // shape.heads

    def random(heads: int) -> Tensor:
        return torch.randn(1, heads, len(layout.ids), size, device=device, dtype=dtype, generator=generator)

    query, key, value = random(shape.heads), random(shape.keys), random(shape.keys)
    ways: dict[str, Callable[[], Tensor]] = {"prefcast: one call a span": lambda: attend(layout, query, key, value)}
    missing: list[Way] = []
    for name, make in (("flex_attention", _flex), ("varlen_attn", _varlen)):
        try:
            way = make(layout, query, key, value)
            with torch.inference_mode():
                way()
            ways[name] = way
        except Exception as error:  # it lacks a compiler, a kernel or the function: that is the result
            missing.append(
                Way(name, "-", math.nan, f"cannot: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            )
    with torch.inference_mode():
        real = layout.spans[-1].stop
        base = ways["prefcast: one call a span"]()[:, :real].float()
        changes = {name: float((way()[:, :real].float() - base).abs().max()) for name, way in ways.items()}
    times = _medians(dict(ways), device, 30, most=20)
    own = next(iter(times.values()))
    return [
        *(Way(name, f"{1e3 * took:.2f} ms", took / own, f"{changes[name]:.1e}") for name, took in times.items()),
        *missing,
    ]


def _flex(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """flex_attention with a mask of blocks: a token sees its own sequence and the beginning that its pair shares."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, count = query.device, len(layout.ids)
    own, seen = torch.full((count,), -1, device=device), torch.full((count,), -2, device=device)
    for number, span in enumerate(layout.spans):
        own[span.start : span.stop] = number
        if span.prefix:
            seen[span.start : span.stop] = own[span.prefix[0]]

    def mask(_batch: Tensor, _head: Tensor, at: Tensor, of: Tensor) -> Tensor:
        return (of <= at) & ((own[at] == own[of]) | (seen[at] == own[of]))

    blocks = create_block_mask(mask, None, None, count, count, device=device)
    run: Any = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    return lambda: run(query, key, value, block_mask=blocks, enable_gqa=True).transpose(1, 2)


def _varlen(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Flash attention over sequences of different lengths: keys of a shared beginning are repeated for each sequence."""
    from torch.nn.attention.varlen import varlen_attn

    device = query.device
    rows = [[*range(*(span.prefix or (0, 0))), *range(span.start, span.stop)] for span in layout.spans]
    take = torch.tensor([each for row in rows for each in row], device=device)
    queries = [span.stop - span.start for span in layout.spans]

    def ends(sizes: Sequence[int]) -> Tensor:
        return torch.tensor(np.cumsum([0, *sizes]), device=device, dtype=torch.int32)

    ends_q, ends_k = ends(queries), ends([len(row) for row in rows])
    longest_q, longest_k = max(queries), max(map(len, rows))
    groups, real = query.shape[1] // key.shape[1], layout.spans[-1].stop

    def run() -> Tensor:
        q, k, v = (part[0].transpose(0, 1) for part in (query[:, :, :real], key, value))
        k, v = (part[take].repeat_interleave(groups, 1) for part in (k, v))
        found: Any = varlen_attn(q, k, v, ends_q, ends_k, longest_q, longest_k, window_size=(-1, 0))
        return torch.as_tensor(found)[None]

    return run


# Whole networks.


def network_note(device: torch.device) -> str:
    """What is timed, in words."""
    return (
        "Random pairs with log-normal lengths, in the median a prompt of 68 tokens and answers of 278; token ids are ready. "
        "Medians of turns. The notebook's "
        "way is one pair a call, padded, eager attention, NF4 where bitsandbytes is there. The sorted loop is transformers "
        f"with fused attention and padded batches of at most {BATCH_TOKENS:,} tokens, sorted by length. The share counts "
        "the matrix products of every token of both conversations, shared or not, against this card's best 8192 x 8192 "
        "product."
        if device.type == "cuda"
        else "On a CPU, with a tiny network: these figures only show that the script runs."
    )


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of the best large matrix product."""
    n = 8192 if device.type == "cuda" else 512
    x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _medians({"product": lambda: x @ y}, device, 5, most=20)["product"]


def _flops(shape: Shape, pairs: Pairs) -> float:
    size = shape.hidden // shape.heads
    a_layer = (shape.heads + 2 * shape.keys) * size * shape.hidden + shape.hidden**2 + 3 * shape.hidden * shape.inner
    lengths = [len(ids) for pair in pairs for ids in pair]
    return float(sum(2 * shape.layers * a_layer * n + 2 * shape.layers * shape.hidden * n * n for n in lengths))


def _padded_call(network: Any, sequences: Sequence[np.ndarray], device: torch.device) -> Tensor:
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), 2)
    mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    body = network.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    hidden = body.last_hidden_state[torch.arange(len(ids)), mask.sum(1) - 1]
    scores: Tensor = network.score(hidden)[:, 0].float().cpu()
    return scores


def _sorted_loop(network: Any, pairs: Pairs, device: torch.device) -> None:
    flat = sorted((ids for pair in pairs for ids in pair), key=len, reverse=True)
    batch: list[np.ndarray] = []
    for ids in flat:
        if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
            _padded_call(network, batch, device)
            batch = []
        batch.append(ids)
    _padded_call(network, batch, device)


def _ours(network: nn.Module, pairs: Pairs, device: torch.device) -> Callable[[], None]:
    engine = Engine(NativeRunner(network, device))
    groups = [Group(pair) for pair in pairs]
    plan = plan_batches([packed_size(group.ids) for group in groups], BATCH_TOKENS)

    def run() -> None:
        for batch in plan:
            if any(isinstance(found, str) for found in engine.run([groups[place] for place in batch])):
                raise RuntimeError("a pair does not fit the memory of this device")

    return run


def network_ways(shape: Shape, device: torch.device, seconds: float) -> list[Way]:
    """Pairs a second of prefcast, of the notebook's way and of a sorted transformers loop."""
    half = torch.float16 if device.type == "cuda" else torch.float32
    pairs = sample_pairs(96 if device.type == "cuda" else 6)
    peak, needed = _peak(device, half), _flops(shape, pairs)
    eager = _as_llama(shape, device, half, "eager")
    four_bit = ""
    try:
        eager, four_bit = _in_4_bit(eager, device), ", NF4"
    except Exception as error:  # without bitsandbytes, or where it has no kernel, the notebook's way runs unquantised
        print(f"NF4 is left out: {type(error).__name__}: {error}")
    fused = _as_llama(shape, device, half, "sdpa")
    own = random_network(shape, device, half)
    first = f"the notebook's way{four_bit}"
    ways: dict[str, Callable[[], object]] = {
        first: lambda: [_padded_call(eager, pair, device) for pair in pairs],
        "a sorted transformers loop, float16": lambda: _sorted_loop(fused, pairs, device),
        "prefcast, float16": _ours(own, pairs, device),
    }
    if four_bit:
        small = _in_4_bit(random_network(shape, device, half), device)
        ways["prefcast, NF4"] = _ours(small, pairs, device)
    if device.type == "cpu":
        ways = {name.replace("float16", "float32"): way for name, way in ways.items()}
    times = _medians(ways, device, seconds, most=5)
    base = times[first]
    return [
        Way(name, f"{len(pairs) / took:.2f}", base / took, f"{needed / took / peak:.0%}")
        for name, took in times.items()
    ]
