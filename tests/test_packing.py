"""Packed rows and batches: laws, against the plainest possible code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcast.scorers.reward.batching import plan_batches
from prefcast.scorers.reward.packing import attend, common_prefix, pack, packed_size

ids = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda values: np.array(values, dtype=np.int32))


@given(st.lists(ids, min_size=1, max_size=4))
def test_the_common_prefix_is_common_and_longest(sequences: list[np.ndarray]) -> None:
    found = common_prefix(sequences)
    assert found < min(map(len, sequences))
    assert len({tuple(each[:found]) for each in sequences}) == 1
    if found < min(map(len, sequences)) - 1:
        assert len({tuple(each[: found + 1]) for each in sequences}) > 1


@given(st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=4), st.none() | st.integers(1, 40))
def test_a_row_holds_every_sequence(groups: list[list[np.ndarray]], longest_shared: int | None) -> None:
    layout = pack(groups, longest_shared=longest_shared)
    assert layout.spans[-1].stop == sum(packed_size(group, longest_shared) for group in groups)
    assert len(layout.ids) == len(layout.positions)
    assert 0 <= len(layout.ids) - layout.spans[-1].stop < 8
    rebuilt = []
    for span in layout.spans:
        before = [] if span.prefix is None else layout.ids[slice(*span.prefix)].tolist()
        own = layout.ids[span.start : span.stop].tolist()
        positions = layout.positions[span.start : span.stop].tolist()
        assert positions == list(range(len(before), len(before) + len(own)))
        if span.stop - 1 in layout.last.tolist():
            rebuilt.append(before + own)
    assert rebuilt == [each.tolist() for group in groups for each in group]


@settings(max_examples=25)
@given(
    st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 5]),
    st.sampled_from([1, 2, 4]),
)
def test_attention_is_that_of_each_sequence_alone(
    groups: list[list[np.ndarray]], softcap: float | None, window: int | None, keys: int
) -> None:
    # The same ids have the same states, as they do in a network.
    groups = [[np.concatenate([np.zeros(20, dtype=np.int32), each]) for each in group] for group in groups]
    layout = pack(groups)
    generator = torch.Generator().manual_seed(0)
    table = {heads: torch.randn(64, 4, heads, 8, generator=generator) for heads in (4, keys)}
    table[-1] = torch.randn(64, 4, keys, 8, generator=generator)

    def states(which: int, positions: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return table[which][positions, tokens].transpose(0, 1)[None]

    out = attend(
        layout,
        states(4, layout.positions, layout.ids),
        states(keys, layout.positions, layout.ids),
        states(-1, layout.positions, layout.ids),
        softcap=softcap,
        window=window,
    )
    number = 0
    for group in groups:
        for sequence in group:
            tokens, positions = torch.from_numpy(sequence.astype(np.int64)), torch.arange(len(sequence))
            q, k, v = (states(which, positions, tokens) for which in (4, keys, -1))
            k, v = k.repeat_interleave(4 // keys, 1), v.repeat_interleave(4 // keys, 1)
            scores = q @ k.transpose(2, 3) / 8**0.5
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            distance = positions[:, None] - positions[None, :]
            seen = (distance >= 0) & ((distance < window) if window else torch.ones_like(distance, dtype=torch.bool))
            expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
            torch.testing.assert_close(out[0, layout.last[number]], expected[0, :, -1], rtol=1e-4, atol=1e-5)
            number += 1


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_batches_hold_everything_once_longest_first(sizes: list[int], most: int) -> None:
    batches = plan_batches(sizes, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[index] for index in batch) <= most
    flat = [sizes[index] for batch in batches for index in batch]
    assert flat == sorted(sizes, reverse=True)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 2)), max_size=60), st.integers(1, 1000))
def test_padded_batches_count_their_padding(shapes: list[tuple[int, int]], most: int) -> None:
    batches = plan_batches([length * count for length, count in shapes], most, padded=shapes)
    assert sorted(index for batch in batches for index in batch) == list(range(len(shapes)))
    for batch in batches:
        cost = max(shapes[index][0] for index in batch) * sum(shapes[index][1] for index in batch)
        assert len(batch) == 1 or cost <= most


def test_a_short_beginning_is_not_shared() -> None:
    one, other = np.array([1, 2, 3], dtype=np.int32), np.array([1, 2, 4], dtype=np.int32)
    assert packed_size([one, other]) == 6
    long = np.arange(50, dtype=np.int32)
    assert packed_size([long, long[:-1]]) == 48 + 2 + 1


def test_masks_are_made_once() -> None:
    sequences = [np.arange(50, dtype=np.int32), np.concatenate([np.arange(30), np.arange(9)]).astype(np.int32)]
    layout = pack([sequences])
    assert layout.mask(0, torch.device("cpu")) is None
    first = layout.mask(1, torch.device("cpu"))
    assert first is layout.mask(1, torch.device("cpu"))
    assert first is not None
    assert first.shape == (20, 50)
    with pytest.raises(IndexError):
        layout.mask(9, torch.device("cpu"))
