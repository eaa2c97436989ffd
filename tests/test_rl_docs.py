"""docs/rl.md: its commands and its program run, with a stand-in for TRL that calls a reward function as TRL 1.16 does."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoints import save_decoder
from conftest import EXAMPLES, ROOT, Run
from prefcast import rewards

PAGE = (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
TRAIN, SLOPE, VERL, OPENRLHF = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Trainer:
    """Two steps of four samples each."""

    def __init__(self, model: str, reward_funcs: Any, args: Any, train_dataset: list[dict[str, Any]]) -> None:
        self.reward, self.data, self.logged = reward_funcs, train_dataset, {}
        Trainer.made = self

    def train(self) -> None:
        for step in range(2):
            self.state = type("State", (), {"global_step": step})
            self.found = self.reward(
                prompts=[self.data[step]["prompt"]] * 4,
                completions=[[{"role": "assistant", "content": f"word {'more ' * n}"}] for n in range(4)],
                completion_ids=[[1]] * 4,
                trainer_state=self.state,
                log_extra=lambda column, values: None,
                log_metric=self.logged.__setitem__,
            )

    made: Any = None


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


def test_from_install_to_result_are_three_commands() -> None:
    (block,) = COMMANDS
    assert [shlex.split(line)[0] for line in block.splitlines()] == ["pip", "prefcast", "python"]


def test_the_commands_and_programs_run(tmp_path: Path, prefcast_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_decoder(tmp_path / "my-reward-model")
    (tmp_path / "votes.csv").write_bytes(EXAMPLES.read_bytes())
    command = next(line for line in COMMANDS[0].splitlines() if line.startswith("prefcast"))
    done = prefcast_here(*shlex.split(command, comments=True)[1:])
    assert done.returncode == 0, done.stderr
    asked = [{"prompt": [{"role": "user", "content": text}]} for text in ("Why?", "How?")]
    monkeypatch.setitem(sys.modules, "datasets", module("datasets", load_dataset=lambda *args, **more: asked))
    monkeypatch.setitem(sys.modules, "trl", module("trl", GRPOConfig=dict[str, str], GRPOTrainer=Trainer))
    monkeypatch.chdir(tmp_path)
    code = TRAIN.replace('GRPOConfig("out")', "GRPOConfig(out='')")
    exec(code, {})  # noqa: S102
    trainer = Trainer.made
    assert all(isinstance(reward, float) for reward in trainer.found)
    assert len((tmp_path / "rewards.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    figures = {name.removeprefix("prefcast/") for name in trainer.logged}
    assert {"length_correlation", "length_correlation_before", "length_removed"} <= figures
    for name in trainer.reward.monitor.steps[0]:
        assert name in PAGE or name.removeprefix("length_correlation_recent") in ("_low", "_high"), name
    said: dict[str, Any] = {"rewards": rewards, "prompts": ["a"] * 4 + ["b"] * 3}
    said |= {"completions": ["x" * n for n in range(1, 8)], "scores": [1.0, 2, 3, 4, 2, 3, 5]}
    exec(SLOPE, said)  # noqa: S102
    assert said["slope"].low < said["slope"].value < said["slope"].high
    exec(VERL.replace("rewards.verl(", "rewards.verl(asynchronous=False, "), said)  # noqa: S102
    assert 0 <= said["compute_score"]("source", "Because.", "No idea.", {"question": "Why?"}) <= 1
    exec(OPENRLHF, said)  # noqa: S102
    assert said["reward_func"](["Why? Because.</s>"], ["Why? "], [None])["rewards"].shape == (1,)


def test_the_settings_on_the_page_are_there() -> None:
    known = set(rewards.Settings.__annotations__)
    for name in (
        "reading",
        "opponents",
        "residualise",
        "length_penalty",
        "length_alarm",
        "log",
        "options",
        "forecaster",
    ):
        assert name in known
        assert name in PAGE
