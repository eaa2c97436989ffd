"""Sequences laid end to end in one row, without padding, and attention that keeps them apart.

The beginning that the sequences of a group share is laid down once and every one of them attends to it: the prompt of
a pair is computed once for both answers. Each sequence is attended to alone, so its score does not depend on its
company. This module knows nothing of models; it knows ids, positions and scaled dot products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Layout", "Span", "attend", "attend_last", "common_prefix", "pack", "packed_size"]

Ids = NDArray[np.int32]

# Below this a shared beginning costs more in attention calls than it saves.
_LEAST_SHARED = 16
_QUERIES = 1024
_FEW_QUERIES = 32
_ROW_MULTIPLE = 8


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of the row; they follow the tokens of `prefix`, and `length` is that of their whole
    sequence."""

    start: int
    stop: int
    prefix: tuple[int, int] | None
    length: int

    @property
    def offset(self) -> int:
        return self.prefix[1] - self.prefix[0] if self.prefix else 0


@dataclass(frozen=True)
class Layout:
    """A packed row of T tokens: `ids` and `positions` (T,), its spans, where the last token of every sequence lies
    (`last`), and which span that is the end of (`ends`)."""

    ids: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    last: Tensor
    ends: tuple[int, ...]

    @cached_property
    def _masks(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    def mask(self, index: int, device: torch.device) -> Tensor | None:
        """Which keys (of prefix and span) each query of a span sees; None where that is simply a triangle."""
        span = self.spans[index]
        if not span.prefix:
            return None
        if (index, device) not in self._masks:
            keys = torch.arange(span.offset + span.stop - span.start, device=device)
            self._masks[index, device] = keys[None, :] <= keys[span.offset :, None]
        return self._masks[index, device]


def common_prefix(sequences: Sequence[Ids]) -> int:
    """How many first tokens all `sequences` share; at least one token of each is left over."""
    shortest = min(len(ids) for ids in sequences) - 1
    first = sequences[0][:shortest]
    for other in sequences[1:]:
        differ = np.flatnonzero(first != other[: len(first)])
        if len(differ):
            first = first[: differ[0]]
    return len(first)


def _shared(sequences: Sequence[Ids], longest_shared: int | None) -> int:
    """The part to share, 0 where it does not pay or the sequences are longer than `longest_shared` allows."""
    if len(sequences) < 2 or (longest_shared is not None and max(map(len, sequences)) > longest_shared):
        return 0
    prefix = common_prefix(sequences)
    return prefix if prefix >= _LEAST_SHARED else 0


def packed_size(sequences: Sequence[Ids], longest_shared: int | None = None) -> int:
    """How many tokens a group takes in a row."""
    return sum(map(len, sequences)) - (len(sequences) - 1) * _shared(sequences, longest_shared)


def pack(
    groups: Sequence[Sequence[Ids]], device: torch.device | str = "cpu", longest_shared: int | None = None
) -> Layout:
    """Lay `groups` of sequences (token ids, none empty) into one row.

    Sequences longer than `longest_shared` share nothing: models whose rotary base follows the length of the sequence
    compute another beginning for each.
    """
    ids: list[Ids] = []
    positions: list[NDArray[np.int64]] = []
    spans: list[Span] = []
    last: list[int] = []
    ends: list[int] = []
    at = 0

    def lay(part: Ids, first: int, prefix: tuple[int, int] | None, length: int) -> None:
        nonlocal at
        ids.append(part)
        positions.append(np.arange(first, first + len(part)))
        spans.append(Span(at, at + len(part), prefix, length))
        at += len(part)

    for sequences in groups:
        shared = _shared(sequences, longest_shared)
        prefix = None
        if shared:
            prefix = (at, at + shared)
            lay(sequences[0][:shared], 0, None, max(map(len, sequences)))
        for sequence in sequences:
            lay(sequence[shared:], shared, prefix, len(sequence))
            last.append(at - 1)
            ends.append(len(spans) - 1)
    # A row of whole eights: elementwise kernels split it among threads at whole vectors, and the last digits do not
    # depend on their number. What is added belongs to no sequence.
    more = -at % _ROW_MULTIPLE
    ids.append(np.zeros(more, dtype=np.int32))
    positions.append(np.zeros(more, dtype=np.int64))
    return Layout(
        torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device),
        torch.from_numpy(np.concatenate(positions)).to(device),
        tuple(spans),
        torch.tensor(last, device=device),
        tuple(ends),
    )


def attend(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each sequence of `layout`.

    `query` (1, heads, T, d), `key` and `value` (1, key heads, T, d); heads is a multiple of key heads. `softcap` is
    Gemma-2's c * tanh(score / c), `window` the number of newest keys that a token sees. Gives (1, T, heads, d).
    """
    out = torch.zeros((1, query.shape[2], query.shape[1], value.shape[3]), dtype=query.dtype, device=query.device)
    for index, span in enumerate(layout.spans):
        here = slice(span.start, span.stop)
        q, k, v = query[:, :, here], key[:, :, here], value[:, :, here]
        if span.prefix:
            before = slice(*span.prefix)
            k, v = torch.cat((key[:, :, before], k), 2), torch.cat((value[:, :, before], v), 2)
        if softcap or (window and k.shape[2] > window):
            found = _by_hand(q, k, v, scale or q.shape[3] ** -0.5, softcap, window)
        else:
            found = _fused(q, k, v, layout.mask(index, q.device), scale)
        out[:, here] = found.transpose(1, 2)
    return out


def attend_last(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As `attend`, for the last token of each sequence alone: `query` (1, heads, sequences, d) gives (1, sequences,
    heads, d)."""
    parts = []
    for number, index in enumerate(layout.ends):
        span = layout.spans[index]
        k, v = key[:, :, span.start : span.stop], value[:, :, span.start : span.stop]
        if span.prefix:
            before = slice(*span.prefix)
            k, v = torch.cat((key[:, :, before], k), 2), torch.cat((value[:, :, before], v), 2)
        everything = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
        parts.append(_fused(query[:, :, number : number + 1], k, v, everything, None))
    return torch.cat(parts, 2).transpose(1, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention in one kernel: causal, or where `mask` (queries, keys) says."""
    queries, grouped = q.shape[2], q.shape[1] != k.shape[1]
    if grouped and q.device.type != "cpu":
        # There the kernels that save memory want as many keys as heads.
        k, v = k.repeat_interleave(q.shape[1] // k.shape[1], 1), v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        grouped = False
    if q.device.type == "cpu" and queries < _FEW_QUERIES:
        # For few queries a CPU splits the sums over the keys by its number of threads, and the last digits would depend
        # on that; repeating the last query avoids it.
        more = _FEW_QUERIES - queries
        if mask is None:
            keys = torch.arange(queries)
            mask = keys[None, :] <= keys[:, None]
        q = torch.cat((q, q[:, :, -1:].expand(-1, -1, more, -1)), 2)
        mask = torch.cat((mask, mask[-1:].expand(more, -1)))
    found = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return found[:, :, :queries]


def _by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, window: int | None) -> Tensor:
    """Attention with what the fused kernels do not have; float32 inside, a block of queries at a time."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    offset = k.shape[2] - q.shape[2]
    keys = torch.arange(k.shape[2], device=q.device)
    parts = []
    for first in range(0, q.shape[2], _QUERIES):
        block = q[:, :, first : first + _QUERIES]
        scores = (block @ k.transpose(2, 3)).float() * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        queries = torch.arange(first, first + block.shape[2], device=q.device)[:, None] + offset
        seen = keys <= queries
        if window:
            seen &= keys > queries - window
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        parts.append(weights.to(v.dtype) @ v)
    return torch.cat(parts, 2)
