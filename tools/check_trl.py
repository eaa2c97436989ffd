"""Trains with a real TRL and prefcast's rewards and pairs, a few steps on the CPU: make test-trl.

Needs an environment that has trl, prefcast and transformers. A tiny random language model trains ten steps of GRPO for each form of
reward function, and ten steps of DPO on a file of pairs, in plain and in conversational form; then the program of docs/rl.md runs. It
checks that every step had rewards, that the figures of the monitor arrived in TRL's log, and that DPO had a loss at every step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
STEPS, GROUP = 10, 4
PROMPTS = ["Why is the sky blue?", "Name a bird.", "What is a prime number?", "How do I boil an egg?"]
ANSWERS = ["Air scatters blue light more than red light.", "A robin.", "A number with two divisors.", "Seven minutes."]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="the model that gives the rewards")
    args = parser.parse_args()
    print(
        f"trl {version('trl')}, transformers {version('transformers')}, torch {version('torch')}, prefcast {version('prefcast')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        model = tiny_model(room / "policy")
        sound = [
            _grpo(room, model, args.model, chat=chat, awaited=awaited)
            for chat in (False, True)
            for awaited in (False, True)
        ]
        sound += [_dpo(room, model, *each) for each in pair_files(room)]
        sound.append(_page(room, model))
    return 0 if all(sound) else 1


def tiny_model(folder: Path) -> Path:
    """A random Llama with two small layers, and a tokenizer of bytes with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: place for place, token in enumerate([*special, *letters])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
        additional_special_tokens=special[2:],
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **sizes, **tokens)).save_pretrained(folder)
    return folder


def _settings(folder: Path) -> dict[str, Any]:
    """What every trainer is told: ten steps on the CPU, with a log of each."""
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        **quiet,
    }


def _grpo(room: Path, model: Path, name: str, *, chat: bool, awaited: bool) -> bool:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from prefcast import rewards

    log = room / f"rewards-{chat}-{awaited}.jsonl"
    function = rewards.trl(name, asynchronous=awaited, log=log)
    reference = rewards.trl(
        "surface", reference="answer", residualise="length", asynchronous=awaited, name="against_reference"
    )
    # The same prompt twice in a step would be one group.
    texts = [f"{text} ({number})" for number in range(5) for text in PROMPTS]
    asked: list[Any] = [_user(text) for text in texts] if chat else texts
    data = Dataset.from_dict({"prompt": asked, "answer": ANSWERS * 5})
    config = GRPOConfig(
        **_settings(room / "grpo"),
        per_device_train_batch_size=2 * GROUP,
        num_generations=GROUP,
        max_completion_length=24,
        learning_rate=1e-3,
    )
    trainer = GRPOTrainer(model=str(model), reward_funcs=[function, reference], args=config, train_dataset=data)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    steps = [each for each in trainer.state.log_history if "reward" in each]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    means = [each["rewards/prefcast/mean"] for each in steps]
    checks = {
        "a line and a log entry for each step": len(steps) == len(lines) == STEPS,
        # The mean over a group of the probabilities of being preferred is a half.
        "mean of one half": all(abs(mean - 0.5) < 1e-5 for mean in means),
        "rewards that differ": all(0 < each["rewards/prefcast/std"] < 1 for each in steps),
        "rewards against the reference": all(math.isfinite(each["rewards/against_reference/mean"]) for each in steps),
        "figures in TRL's log": all("prefcast/length_correlation_recent" in each for each in steps),
        "what was removed": any("against_reference/length_removed" in each for each in steps),
        "the steps of the trainer": [line["step"] for line in lines] == list(range(STEPS)),
        "no sample without a reward": all((line["samples"], line["failed"]) == (2 * GROUP, 0) for line in lines),
        "two groups": all(line["groups"] == 2 for line in lines),
        "a gradient": any(each.get("grad_norm", 0) > 0 for each in steps),
    }
    missing = [what for what, holds in checks.items() if not holds]
    form = f"{'conversational' if chat else 'plain'}, {'async' if awaited else 'sync'}"
    return _said(
        not missing, f"GRPO, {form}: {len(steps)} steps in {seconds:.1f} s, rewards of {name} and of surface", missing
    )


def pair_files(room: Path) -> list[tuple[str, Path]]:
    """Files of pairs in TRL's form: what `prefcast pairs` writes, if there is such a verb, and files made by hand."""
    made = []
    for chat in (False, True):
        rows = [
            {"prompt": _user(prompt), "chosen": _said_by(good), "rejected": _said_by("No.")}
            if chat
            else {"prompt": prompt, "chosen": good, "rejected": "No."}
            for prompt, good in zip(PROMPTS, ANSWERS, strict=True)
        ]
        path = room / f"by-hand-{chat}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
        made.append((f"by hand, {'conversational' if chat else 'plain'}", path))
    samples = room / "samples.jsonl"
    listed = [
        {"prompt": prompt, "responses": [good, "No.", "I do not know that."]}
        for prompt, good in zip(PROMPTS, ANSWERS, strict=True)
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    if _prefcast("pairs", "--help").returncode:
        print("  prefcast has no verb pairs: its files are not tried")
        return made
    for more in ((), ("--plain",)):
        path = room / f"pairs{len(more)}.jsonl"
        done = _prefcast("pairs", str(samples), "-o", str(path), "--model", "embedded", *more)
        if done.returncode:
            print(f"  prefcast pairs {' '.join(more)} ends with {done.returncode}: {done.stderr.strip()}")
        made.append((f"prefcast pairs {' '.join(more)}".strip(), path))
    return made


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _said_by(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _prefcast(*arguments: str, at: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefcast.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=at)


def _dpo(room: Path, model: Path, name: str, path: Path) -> bool:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    if not path.is_file():
        return _said(False, f"DPO on pairs of {name}: there is no file", [])
    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(room / "cache"))
    config = DPOConfig(**_settings(room / "dpo"), per_device_train_batch_size=4, learning_rate=1e-3, max_length=256)
    trainer = DPOTrainer(model=str(model), args=config, train_dataset=data)
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    sound = len(losses) == STEPS and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    return _said(
        sound,
        f"DPO on {len(data)} pairs, {name}: {len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}",
        losses,
    )


def _page(room: Path, model: Path) -> bool:
    """The commands and the program of docs/rl.md, with tiny models in the places of its models."""
    page = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("prefcast fit"))
    _tiny_reward_model(model, room / "my-reward-model")
    shutil.copy(ROOT / "examples" / "pairs.csv", room / "votes.csv")
    fitted = _prefcast(*shlex.split(command, comments=True)[1:], at=room)
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "GRPOTrainer" in block)
    told = 'GRPOConfig("out"'
    code = code.replace("./my-policy", str(model)).replace(
        told, f"{told}, max_steps=2, use_cpu=True, bf16=False, report_to='none', max_completion_length=16"
    )
    rows = [{"prompt": _user(prompt)} for prompt in PROMPTS * 16]
    (room / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], cwd=room, capture_output=True, text=True, check=False)
    log = room / "rewards.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    sound = done.returncode == fitted.returncode == 0 and len(lines) == 2
    what = f"the commands and the program of docs/rl.md: {len(lines)} steps"
    return _said(sound, what, [] if sound else [fitted.stderr, done.stderr[-2000:]])


def _tiny_reward_model(policy: Path, folder: Path) -> None:
    """A classifier of one label with the tokenizer of the policy."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(policy)
    config.num_labels = 1
    network = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(network.score.weight)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)


def _said(sound: bool, what: str, details: Sequence[Any]) -> bool:
    print(f"{what}: {'sound' if sound else f'NOT SOUND {details}'}", flush=True)
    return sound


if __name__ == "__main__":
    raise SystemExit(main())
