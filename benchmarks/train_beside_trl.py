"""Tokens a second of `prefcast train reward` beside TRL's RewardTrainer: make bench-trl DATA=DIR

Both train the same Llama with random weights on the same decided pairs, with the same token ids, pairs a step, loss (Bradley-Terry),
optimiser and precision (float32), each run in a process of its own, in turns. TRL groups by length; neither recomputes layers. Counted are
the tokens of both conversations of every pair, prompt and answer, as TRL computes them. The clocks run from the end of the first step to that of
the last but one: the first step warms up, and prefcast evaluates in the last one. One clock is the wall's, the other the processor's: on
a machine that does other work too, the second one is the fairer. The memory is the largest of the whole process.

Needs an environment with trl (`make bench-trl` makes it). Without --data the pairs are random words of such lengths. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

FILES = ("arena33k_sample574", "arena33k_writing1277", "arena_llama3_70b")
VOCABULARY, MOST, HELD, SEED = 8192, 1024, 24, 0
SETTINGS = {"adapters": 16, "all weights": None}


def real_pairs(data: Path) -> list[Any]:
    """Pairs of one turn that people decided, in an order of their own."""
    from prefcast.pairs.formats import read_pairs

    pairs = [pair for name in FILES for pair in read_pairs(data / "train" / f"{name}.csv.gz")]
    decided = [
        pair for pair in pairs if getattr(pair, "outcome", None) in (0, 1) and len(pair.turns) == 1 and not pair.system
    ]
    return [decided[place] for place in np.random.default_rng(SEED).permutation(len(decided))]


def random_pairs(count: int) -> list[Any]:
    """Pairs of random words with log-normal lengths: in the median a prompt of 40 words and answers of 160."""
    from prefcast import Pair

    rng = np.random.default_rng(SEED)
    words = ["".join(rng.choice(list("aeioubcdfglmnprst"), rng.integers(2, 9))) for _ in range(5000)]

    def text(middle: float, spread: float) -> str:
        return " ".join(rng.choice(words, min(400, int(rng.lognormal(np.log(middle), spread)) + 1)))

    return [Pair.of(text(40, 1.0), text(160, 0.7), text(160, 0.7)) for _ in range(count)]


def save_base(folder: Path, texts: list[str], given: argparse.Namespace) -> None:
    """A Llama as a language model, with a tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from checkpoints import CHAT, save_decoder

    sizes = {"hidden_size": given.hidden, "intermediate_size": given.inner, "num_hidden_layers": given.layers}
    heads = {"num_attention_heads": given.hidden // 64, "num_key_value_heads": given.hidden // 128, "head_dim": 64}
    save_decoder(folder, labels=None, vocab_size=VOCABULARY, initializer_range=0.02, **sizes, **heads)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    ).save_pretrained(folder)


def recipe_of(given: argparse.Namespace) -> Any:
    from prefcast import Recipe

    return Recipe(
        lora=SETTINGS[given.setting],
        likelihood="bradley-terry",
        epochs=1,
        batch=given.batch,
        rate=1e-4,
        evaluations=1,
        recompute="off",
        max_tokens=MOST,
        seed=SEED,
    )


def prepare(room: Path, given: argparse.Namespace) -> str:
    """Write the base, the pairs for prefcast and their token ids for TRL; tell what they are."""
    from prefcast.pairs.budget import WHOLE
    from prefcast.scorers.base import read_pair
    from prefcast.scorers.reward.packing import packed_size
    from prefcast.training.reward.start import make_start, opened_start

    pairs = random_pairs(2 * (given.pairs + HELD)) if given.data is None else real_pairs(given.data)
    texts = [text for pair in pairs for turn in pair.turns for text in turn.texts]
    save_base(room / "base", texts, given)
    make_start(str(room / "base"), room / "start", recipe_of(given))
    scorer: Any = opened_start(room / "start", recipe_of(given), "cpu")
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    groups: list[Any] = []
    held: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        turn = pair.turns[0]
        group = scorer.group(read_pair(pair, WHOLE, scorer)[0])
        said = [
            [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": answer}]
            for answer in (turn.response_a, turn.response_b)
        ]
        # TRL's own way to the ids: both trainers must see the same.
        theirs = [
            scorer.tokenizer.apply_chat_template(each, tokenize=True, return_dict=True)["input_ids"] for each in said
        ]
        same = all(list(ours) == list(ids) for ours, ids in zip(group.ids, theirs, strict=True))
        if not same or max(map(len, theirs)) > MOST:
            continue
        won = int(pair.outcome or 0)
        row: dict[str, Any] = {
            "id": f"p{number}",
            "prompt": json.dumps([turn.prompt]),
            "response_a": json.dumps([turn.response_a]),
            "response_b": json.dumps([turn.response_b]),
            "winner_model_a": int(won == 0),
            "winner_model_b": int(won == 1),
            "winner_tie": 0,
        }
        if len(held) < HELD:
            held.append(row)
            continue
        groups.append(group)
        ids = {"chosen_ids": theirs[won], "rejected_ids": theirs[1 - won], "length": max(map(len, theirs))}
        rows.append((row, ids))
        if len(rows) == given.pairs:
            break
    if len(rows) < given.pairs:
        sys.exit(f"there are only {len(rows)} pairs; --pairs says {given.pairs}")
    (room / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
    (room / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in rows), encoding="utf-8")
    (room / "ids.json").write_text(json.dumps([ids for _, ids in rows]))
    lengths = np.array([len(ids) for group in groups for ids in group.ids])
    packed = sum(packed_size(group.ids) for group in groups)
    return (
        f"{len(rows)} pairs, {lengths.sum():,} tokens; a conversation has {np.median(lengths):.0f} in the median, {lengths.max()} at most. "
        f"Common beginnings are {1 - packed / lengths.sum():.1%} of the tokens."
    )


class Clocks:
    """Tokens, and seconds of both clocks, at the end of each step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []

    def mark(self, tokens: float) -> None:
        self.marks.append((tokens, time.monotonic(), time.process_time()))

    def rates(self) -> dict[str, float]:
        """Tokens a second of each clock, without the first step and the last one."""
        tokens, wall, processor = (last - first for first, last in zip(self.marks[0], self.marks[-2], strict=True))
        return {"rate": tokens / wall, "processor": tokens / processor}


def run_prefcast(room: Path, given: argparse.Namespace) -> dict[str, float]:
    from prefcast import train_reward

    clocks, losses = Clocks(), []

    def follow(progress: Any) -> None:
        # The seconds so far follow from those that are left, by the mean step; in the last step, which does not count, none are left.
        seconds = progress.left * progress.done / max(1, progress.of - progress.done)
        clocks.mark(progress.rate * seconds)
        losses.append(progress.loss)

    train_reward(
        room / "pairs.jsonl",
        room / "out",
        base=str(room / "base"),
        recipe=recipe_of(given),
        validation_pairs=[room / "held.jsonl"],
        progress=follow,
    )
    return {**clocks.rates(), "loss": float(np.mean(losses))}


def run_trl(room: Path, given: argparse.Namespace) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class Follow(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clocks.mark(trainer._total_train_tokens)

    clocks = Clocks()
    rank, each = SETTINGS[given.setting], given.trl_batch
    adapters: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * (rank or 0),
        "target_modules": "all-linear",
        "modules_to_save": ["score"],
    }
    trainer = RewardTrainer(
        model=str(room / "base"),
        args=RewardConfig(
            str(room / "out"),
            per_device_train_batch_size=each,
            gradient_accumulation_steps=given.batch // each,
            num_train_epochs=1,
            learning_rate=1e-4,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            # Otherwise the column with the lengths is gone before it is read.
            remove_unused_columns=False,
            max_length=MOST,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=SEED,
        ),
        train_dataset=Dataset.from_list(json.loads((room / "ids.json").read_text())),
        peft_config=None if rank is None else LoraConfig(task_type=TaskType.SEQ_CLS, **adapters),
        callbacks=[Follow()],
    )
    loss = trainer.train().training_loss
    return {**clocks.rates(), "loss": loss}


def one(given: argparse.Namespace) -> None:
    """A run in this process: its figures as JSON."""
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        for path in given.room.iterdir():
            (room / path.name).symlink_to(path)
        found = (run_prefcast if given.run == "prefcast" else run_trl)(room, given)
    found["memory"] = largest_memory() / 2**20
    print("\n" + json.dumps(found))


def largest_memory() -> int:
    """The largest memory of this process in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        # Where the process that started this one was larger, some systems give its memory.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with train/*.csv.gz")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--trl-batch", type=int, default=2, help="pairs that TRL computes at once")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inner", type=int, default=704)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", choices=list(SETTINGS), help="only this setting")
    parser.add_argument("--run", choices=("prefcast", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        one(given)
        return
    settings = [given.setting] if given.setting else list(SETTINGS)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        given.setting = settings[0]
        told = prepare(room, given)
        print(f"{processor()}, {given.threads} threads, load {os.getloadavg()[0]:.1f}. {told}\n")
        heads = [
            "what is learned",
            "",
            "tokens a second",
            "ratio",
            "tokens a processor second",
            "ratio",
            "memory, MiB",
            "mean loss",
            "n",
        ]
        print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
        for setting in settings:
            compare(room, setting, given)


def compare(room: Path, setting: str, given: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {"trl": [], "prefcast": []}
    command = [sys.executable, __file__, *sys.argv[1:], "--room", str(room), "--setting", setting]
    for number in range(given.rounds):
        for way in sorted(found, reverse=bool(number % 2)):
            done = subprocess.run([*command, "--run", way], check=False, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    for way, runs in found.items():
        cells = []
        for key in ("rate", "processor"):
            # Each round has one run of both: its ratio is that of neighbours in time.
            ratios = [run[key] / their[key] for run, their in zip(runs, found["trl"], strict=True)]
            cells += [spread([run[key] for run in runs], ",.0f"), "1" if way == "trl" else spread(ratios, ".2f")]
        memory, loss = max(run["memory"] for run in runs), statistics.median(run["loss"] for run in runs)
        title = "TRL" if way == "trl" else "**prefcast**"
        print(f"| {setting} | {title} | {' | '.join(cells)} | {memory:,.0f} | {loss:.4f} | {len(runs)} |", flush=True)


def spread(values: list[float], form: str) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
