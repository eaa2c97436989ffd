"""Packs sequences into one row without padding; attention keeps them apart.

The sequences of a group share their common beginning: the prompt of a pair is computed once for both answers. No
sequence attends to another one, so a score does not depend on the rest of the batch. This module works on ids, positions
and scaled dot products alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Layout", "Span", "attend", "attend_last", "common_prefix", "pack", "packed_size"]

Ids = NDArray[np.int32]

# A shorter beginning is not shared: the attention calls would cost more than they save.
_LEAST_SHARED = 16
_QUERIES = 1024
_FEW_QUERIES = 32
_ROW_MULTIPLE = 8


@dataclass(frozen=True)
class Span:
    """The tokens start..stop of the row, which follow the tokens of `prefix`. `length` is that of the whole sequence."""

    start: int
    stop: int
    prefix: tuple[int, int] | None
    length: int

    @property
    def offset(self) -> int:
        return self.prefix[1] - self.prefix[0] if self.prefix else 0


@dataclass(frozen=True)
class Layout:
    """A packed row of T tokens: their `ids` (T,) and `positions` (T,), and the spans.

    For each sequence `last` has the position of its last token, and `ends` has the index of its last span.
    """

    ids: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    last: Tensor
    ends: tuple[int, ...]
    _masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def split(self, part: Tensor) -> tuple[Tensor, ...]:
        """A tensor (1, heads, T, d) in pieces, one for each span; the last piece belongs to no sequence.

        One split, not a slice for each span: the gradient of a slice is as wide as the whole row.
        """
        sizes = [span.stop - span.start for span in self.spans]
        pieces: tuple[Tensor, ...] = part.split([*sizes, part.shape[2] - sum(sizes)], 2)
        return pieces

    def with_prefix(self, index: int, pieces: Sequence[Tensor]) -> Tensor:
        """Of the pieces that `split` gives, that of a span with that of its prefix before it."""
        prefix = self.spans[index].prefix
        if not prefix:
            return pieces[index]
        return torch.cat((pieces[self._starts[prefix[0]]], pieces[index]), 2)

    @cached_property
    def _starts(self) -> dict[int, int]:
        return {span.start: index for index, span in enumerate(self.spans)}

    def place(self, sequence: int, back: int) -> int:
        """Where in the row the token of a sequence stands that is `back` tokens before its last one."""
        span = self.spans[self.ends[sequence]]
        own = span.stop - span.start
        return span.stop - 1 - back if back < own or not span.prefix else span.prefix[1] - 1 - (back - own)

    def mask(self, index: int, device: torch.device) -> Tensor | None:
        """Which keys of prefix and span each query of a span sees; None for a span without a prefix, which is causal."""
        span = self.spans[index]
        if not span.prefix:
            return None
        if (index, device) not in self._masks:
            keys = torch.arange(span.offset + span.stop - span.start, device=device)
            self._masks[index, device] = keys[None, :] <= keys[span.offset :, None]
        return self._masks[index, device]


def common_prefix(sequences: Sequence[Ids]) -> int:
    """How many first tokens all `sequences` share. At least one token of each sequence is not shared."""
    shortest = min(len(ids) for ids in sequences) - 1
    first = sequences[0][:shortest]
    for other in sequences[1:]:
        differ = np.flatnonzero(first != other[: len(first)])
        if len(differ):
            first = first[: differ[0]]
    return len(first)


def _shared(sequences: Sequence[Ids], longest_shared: int | None) -> int:
    """How many first tokens are shared; 0 if there are few, or if a sequence is longer than `longest_shared`."""
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
    """Pack `groups` of sequences (token ids, none empty) into one row.

    Sequences longer than `longest_shared` share nothing: for models whose rotary base depends on the length of the
    sequence, their beginnings differ.
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
    # The width is a multiple of 8: elementwise kernels then split it among threads at whole vectors, and the last digits
    # do not depend on the number of threads. The added tokens belong to no sequence.
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
    queries, keys, values = map(layout.split, (query, key, value))
    parts = []
    for index, q in enumerate(queries[:-1]):
        k, v = (layout.with_prefix(index, pieces) for pieces in (keys, values))
        if softcap or (window and k.shape[2] > window):
            found = _by_hand(q, k, v, scale or q.shape[3] ** -0.5, softcap, window)
        else:
            found = _fused(q, k, v, layout.mask(index, q.device), scale)
        parts.append(found.transpose(1, 2))
    rest = (1, queries[-1].shape[2], query.shape[1], value.shape[3])
    return torch.cat([*parts, torch.zeros(rest, dtype=query.dtype, device=query.device)], 1)


def attend_last(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` for the last token of each sequence alone: `query` is (1, heads, sequences, d), the result (1, sequences,
    heads, d)."""
    parts = []
    keys, values = map(layout.split, (key, value))
    for number, index in enumerate(layout.ends):
        k, v = (layout.with_prefix(index, pieces) for pieces in (keys, values))
        everything = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
        parts.append(_fused(query[:, :, number : number + 1], k, v, everything, None))
    return torch.cat(parts, 2).transpose(1, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention in one kernel: causal, or with `mask` (queries, keys)."""
    queries, grouped = q.shape[2], q.shape[1] != k.shape[1]
    if grouped and q.device.type != "cpu":
        # The kernels that save memory need as many keys as heads.
        k, v = k.repeat_interleave(q.shape[1] // k.shape[1], 1), v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        grouped = False
    if q.device.type == "cpu" and queries < _FEW_QUERIES:
        # For few queries a CPU splits the sums over the keys among its threads, and the last digits would depend on
        # their number. Repeating the last query avoids that.
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
    """Attention with soft caps and windows, which the fused kernels lack. It computes in float32, some queries at a
    time."""
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
