"""Reward models side by side in one run: make bench-reward DATA=../shared/data

One random InternLM2-reward of about 100 million parameters scores the first dev pairs (a) as the Kaggle notebook does: one
pair a call, padded, eager attention; (b) in a batched transformers loop: sorted by length, padded, fused attention; (c)
with sentence-transformers' CrossEncoder; (d) with prefcast, in several precisions. The first three run the same weights
as a Llama, into which they convert exactly. All get the same token ids, so reading and tokenising is left out.

Prints pairs a second (medians over the repeats, the ways taking turns), the largest difference to (a), the share of the
measured matrix-multiply peak, and the tokens that the shared prefix and sorting save. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForSequenceClassification

from checkpoint import FIXTURE, Shape, make_checkpoint
from prefcast import Pair, load_scorer, read_pairs
from prefcast.scorers.reward.engine import Group
from prefcast.scorers.reward.packing import packed_size
from prefcast.scorers.reward.scorer import RewardScorer

HIDDEN, LAYERS, HEADS, KEYS, INNER = 768, 12, 12, 4, 3072
Ids = list[tuple[np.ndarray, ...]]


def as_llama(folder: Path, attention: str) -> Any:
    """The same network as transformers' Llama."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    sizes: dict[str, Any] = dict(  # noqa: C408 - as keywords
        vocab_size=config["vocab_size"],
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=32768,
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
        num_labels=1,
        pad_token_id=2,
        attn_implementation=attention,
    )
    size, group = HIDDEN // HEADS, HEADS // KEYS
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("wqkv.weight"):
            parts = tensor.view(KEYS, group + 2, size, HIDDEN)
            for own, part in (("q", parts[:, :-2]), ("k", parts[:, -2]), ("v", parts[:, -1])):
                weights[name.replace("attention.wqkv", f"self_attn.{own}_proj")] = part.reshape(-1, HIDDEN)
            continue
        key = name
        for old, new in (
            ("v_head", "score"),
            ("tok_embeddings", "embed_tokens"),
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            key = key.replace(old, new)
        weights[key] = tensor
    network: Any = LlamaForSequenceClassification(LlamaConfig(**sizes))
    network.load_state_dict(weights)
    return network.eval()


def padded_scores(network: Any, sequences: list[np.ndarray]) -> list[float]:
    """Scores of one padded batch."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), 2)
    mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    with torch.inference_mode():
        hidden = network.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(sequences)), mask.sum(1) - 1]
        scores: list[float] = network.score(last)[:, 0].float().tolist()
    return scores


def notebook_way(network: Any, pairs: Ids) -> np.ndarray:
    """One pair a call."""
    return np.array([padded_scores(network, list(pair)) for pair in pairs])


def batched_way(network: Any, pairs: Ids, most_tokens: int) -> np.ndarray:
    """All conversations sorted by length, in padded batches of at most `most_tokens`."""
    flat = [ids for pair in pairs for ids in pair]
    order = sorted(range(len(flat)), key=lambda index: -len(flat[index]))
    scores = np.zeros(len(flat))
    batch: list[int] = []
    for index in [*order, -1]:
        if batch and (index < 0 or (len(batch) + 1) * len(flat[batch[0]]) > most_tokens):
            scores[batch] = padded_scores(network, [flat[each] for each in batch])
            batch = []
        batch.append(index)
    return scores.reshape(-1, 2)


def cross_encoder_way(folder: Path, pairs: Ids) -> Callable[[], np.ndarray] | str:
    """sentence-transformers with its own sorting and batches of 32, or why it cannot."""
    try:
        from sentence_transformers import CrossEncoder
        from transformers import PreTrainedTokenizerFast

        from prefcast.scorers.reward.sentencepiece import build_tokenizer
    except ImportError as error:
        return f"not installed ({error.name})"
    converted = folder / "llama"
    as_llama(folder, "sdpa").save_pretrained(converted)
    backend = build_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.save_pretrained(converted)
    encoder = CrossEncoder(str(converted), device="cpu", activation_fn=torch.nn.Identity())
    # It wants two texts; the second adds nothing.
    texts = [(backend.decode(ids.tolist(), skip_special_tokens=False), "") for pair in pairs for ids in pair]
    try:
        encoder.predict(texts[:2], show_progress_bar=False)
    except Exception as error:
        return f"cannot: {type(error).__name__}: {str(error)[:100]}"
    return lambda: np.asarray(encoder.predict(texts, show_progress_bar=False)).reshape(-1, 2)


def prefcast_way(scorer: RewardScorer, pairs: Ids) -> np.ndarray:
    """What `evidence` does with ready token ids."""
    groups, scores = [Group(pair) for pair in pairs], np.zeros((len(pairs), 2))
    for batch in scorer.planned(groups):
        for place, result in zip(batch, scorer.engine.run([groups[place] for place in batch]), strict=True):
            if isinstance(result, str):
                raise SystemExit("a pair is too large for the memory of this machine: a smaller --max-tokens")
            scores[place] = result[:, 0]
    return scores


def median_seconds(run: Callable[[], Any], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(dtype: torch.dtype) -> float:
    """FLOP a second of this machine's best matrix product of the network's largest shape."""
    x = torch.randn(2048, HIDDEN).to(dtype)
    weight = torch.randn(INNER, HIDDEN).to(dtype)
    ways: list[Callable[[], Any]] = [lambda: linear(x, weight)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    with torch.inference_mode():
        return 2 * 2048 * HIDDEN * INNER / min(median_seconds(way, 15) for way in ways)


def flops(lengths: list[int]) -> float:
    """Of the matrix products over sequences of these lengths, attention included."""
    matrices = LAYERS * ((HEADS + 2 * KEYS) * HIDDEN // HEADS * HIDDEN + HIDDEN**2 + 3 * HIDDEN * INNER)
    return sum(2 * matrices * length + 2 * LAYERS * HIDDEN * length**2 for length in lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fixture", type=Path, default=FIXTURE)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=2048, help="a conversation's longest; all ways get the same")
    parser.add_argument("--tune", action="store_true", help="only try sizes of batches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        make_checkpoint(folder, Shape(HIDDEN, LAYERS, HEADS, KEYS, INNER), args.fixture)
        reader = load_scorer(folder, max_tokens=args.max_tokens, special_tokens="original")
        rows: list[Pair] = []
        for path in sorted((args.data / "dev").glob("*.csv")):
            rows += [row for row in read_pairs(path) if isinstance(row, Pair)]
        from prefcast.pairs.budget import WHOLE
        from prefcast.scorers.base import read_pair

        pairs: Ids = [reader.group(read_pair(row, WHOLE, reader)[0]).ids for row in rows[: args.pairs]]
        lengths = [len(ids) for pair in pairs for ids in pair]
        print(
            f"{len(pairs)} pairs, {sum(lengths)} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        if args.tune:
            for dtype in ("float32", "bfloat16"):
                for size in (512, 1024, 2048, 4096, 8192):
                    scorer = load_scorer(folder, dtype=dtype, batch_tokens=size, special_tokens="original")
                    seconds = median_seconds(partial(prefcast_way, scorer, pairs), 2)
                    print(dtype, size, f"{len(pairs) / seconds:.2f} pairs a second", flush=True)
            return
        compare(folder, pairs, args.repeats)
        saved(pairs, lengths)


def compare(folder: Path, pairs: Ids, repeats: int) -> None:
    """Time the ways in turns."""
    eager, fused = as_llama(folder, "eager"), as_llama(folder, "sdpa")
    half = as_llama(folder, "sdpa").to(torch.bfloat16)
    ours = {dtype: load_scorer(folder, dtype=dtype, special_tokens="original") for dtype in ("float32", "bfloat16")}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "the notebook's way, float32": lambda: notebook_way(eager, pairs),
        "transformers, batches of 2,000 tokens, float32": lambda: batched_way(fused, pairs, 2000),
        "prefcast, float32": lambda: prefcast_way(ours["float32"], pairs),
        "transformers, batches of 2,000 tokens, bfloat16": lambda: batched_way(half, pairs, 2000),
        "prefcast, bfloat16": lambda: prefcast_way(ours["bfloat16"], pairs),
    }
    encoder = cross_encoder_way(folder, pairs)
    if isinstance(encoder, str):
        print(f"sentence-transformers CrossEncoder: {encoder}")
    else:
        ways["sentence-transformers CrossEncoder, float32"] = encoder
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for name, way in ways.items():
        start = time.perf_counter()
        scores[name] = way()
        # The first run warms up; the slowest way has no other.
        if way is encoder:
            times[name].append(time.perf_counter() - start)
    for _ in range(repeats):
        for name, way in ways.items():
            if way is encoder:
                continue
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    first = next(iter(ways))
    base, spread = statistics.median(times[first]), float(np.std(scores[first]))
    peaks = {"float32": peak(torch.float32), "bfloat16": peak(torch.bfloat16)}
    needed = flops([len(ids) for pair in pairs for ids in pair])
    print(
        f"matrix products: {peaks['float32'] / 1e9:.0f} GFLOP/s in float32, {peaks['bfloat16'] / 1e9:.0f} in bfloat16"
    )
    print(f"\n{'':52} pairs/s   ratio  of peak  largest change of a score (their spread: {spread:.3g})")
    for name in ways:
        seconds = statistics.median(times[name])
        share = needed / seconds / peaks[name.rsplit(", ", 1)[1]]
        change = np.abs(scores[name] - scores[first]).max()
        print(f"{name:52} {len(pairs) / seconds:7.2f}  {base / seconds:5.2f}x  {share:6.0%}   {change:.2g}")


def saved(pairs: Ids, lengths: list[int]) -> None:
    """What packing leaves out, in tokens."""
    in_pairs = sum(2 * max(len(ids) for ids in pair) for pair in pairs)
    packed = sum(packed_size(pair) for pair in pairs)
    fours = [max(lengths[start : start + 8]) * len(lengths[start : start + 8]) for start in range(0, len(lengths), 8)]
    ordered = sorted(lengths)
    sorted_fours = [
        max(ordered[start : start + 8]) * len(ordered[start : start + 8]) for start in range(0, len(ordered), 8)
    ]
    print(f"\ntokens: {sum(lengths)} real; {in_pairs} padded a pair at a time (the notebook's way)")
    print(
        f"  padded in batches of 8: {sum(fours)} in file order, {sum(sorted_fours)} sorted ({1 - sum(sorted_fours) / sum(fours):.1%} saved by sorting)"
    )
    print(
        f"  prefcast: {packed} (no padding; {1 - packed / sum(lengths):.1%} of the real tokens saved by the shared prefix)"
    )


if __name__ == "__main__":
    main()
