"""The functions that trainers call, in the form of each trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, Unpack, cast

import numpy as np

from prefcast.errors import UsageError, excerpt
from prefcast.pairs.formats.fields import Fault
from prefcast.service.rewards.core import Core, Settings, one
from prefcast.service.rewards.lengths import LOOKS, Slope, Sums, looks_of
from prefcast.service.rewards.monitor import Monitor
from prefcast.service.rewards.samples import ENDS, Sample, sample_of, split_query
from prefcast.service.rewards.scoring import Given

__all__ = ["RewardFunction", "length_slope", "openrlhf", "trl", "verl"]

# What TRL hands over beside the columns of the data set.
_OF_TRL = ("log_extra", "environments")


class RewardFunction(Protocol):
    """A function for a trainer. `monitor.steps` has the figures of its steps; `close` gives back what its model holds."""

    __name__: str
    monitor: Monitor
    close: Callable[[], None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def trl(
    model: str | None = None,
    *,
    reference: str | None = None,
    on_error: str = "none",
    asynchronous: bool = False,
    name: str = "prefcast",
    **settings: Unpack[Settings],
) -> RewardFunction:
    """A function for `reward_funcs` of TRL's GRPOTrainer and RLOOTrainer.

    `model` names a built-in forecaster (default `embedded`), a reward model, a server or a judge, as `--model` does; `settings` are in
    `Settings`. With `reference`, a column of the data set, samples are compared with the answers in that column instead of the others
    of their prompt. A sample that cannot be scored is None, with one warning line a step; with `on_error="raise"` it raises
    ScoringError. `asynchronous` makes an `async` function. TRL shows the rewards under `name`.

    Raises UsageError, and the errors of the model's files.
    """
    if on_error not in ("none", "raise"):
        raise UsageError(f"on_error is {excerpt(on_error)}; expected 'none' or 'raise'")
    core = Core(model, name, settings)
    if reference is not None and core.rewarder.reading == "score":
        raise UsageError("reference is for reading='preferred'; a score is compared with nothing")

    def rewards(
        prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], state: Any, log_metric: Any
    ) -> list[float | None]:
        if len(prompts) != len(completions):
            raise UsageError(f"there are {len(prompts)} prompts and {len(completions)} completions; expected as many")
        samples = [_sample(*both) for both in zip(prompts, completions, strict=True)]
        beside = None
        if reference is not None:
            if reference not in columns:
                known = ", ".join(column for column in columns if column not in _OF_TRL) or "none"
                raise UsageError(f"the data set has no column {excerpt(reference)}; there are {known}")
            answers = columns[reference]
            beside = [_reference(*both, f"column {reference}") for both in zip(prompts, answers, strict=True)]
        return core.step(samples, beside, on_error, getattr(state, "global_step", None), log_metric)

    def plain(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Any = None,
        trainer_state: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        return rewards(prompts, completions, columns, trainer_state, log_metric)

    async def awaited(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Any = None,
        trainer_state: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        return await asyncio.to_thread(rewards, prompts, completions, columns, trainer_state, log_metric)

    return _finished(awaited if asynchronous else plain, name, core)


def verl(
    model: str | None = None,
    *,
    prompt: str = "prompt",
    reference: str = "ground_truth",
    failed: float | None = None,
    asynchronous: bool = True,
    name: str = "prefcast",
    **settings: Unpack[Settings],
) -> RewardFunction:
    """`compute_score` for verl's `reward.custom_reward_function`.

    verl asks for one sample a call. So in the reading "preferred" a sample is compared with a reference answer: `reference` is
    "ground_truth", or the name of a field of `extra_info`. `prompt` is the field of `extra_info` that has the prompt, a text or a list
    of messages. `failed` is the reward of a sample that cannot be scored; without it such a sample raises ScoringError. An
    `asynchronous` function scores together what waits at the same time. `model`, `name` and `settings` are as in `trl`.
    """
    core = Core(model, name, settings)

    def read(solution: Any, truth: Any, extra_info: Any) -> tuple[Given, Given | None]:
        extra = extra_info if isinstance(extra_info, Mapping) else {}
        if prompt not in extra:
            named = ", ".join(map(excerpt, extra)) or "none"
            return f"extra_info has no field {excerpt(prompt)} with the prompt; it has {named}", None
        sample = _sample(extra[prompt], solution)
        if core.rewarder.reading == "score":
            return sample, None
        answer = truth if reference == "ground_truth" else extra.get(reference)
        return sample, _reference(extra[prompt], answer, reference)

    def plain(data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None, **kwargs: Any) -> float:
        sample, beside = read(solution_str, ground_truth, extra_info)
        return one(core.few([sample], None if beside is None else [beside], failed)[0])[0]

    async def awaited(
        data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None, **kwargs: Any
    ) -> float:
        return await core.one_of_many(*read(solution_str, ground_truth, extra_info), failed)

    return _finished(awaited if asynchronous else plain, name, core)


def openrlhf(
    model: str | None = None,
    *,
    read_prompt: Callable[[str], Any] | None = None,
    ends: Sequence[str] = ENDS,
    failed: float | None = None,
    name: str = "prefcast",
    **settings: Unpack[Settings],
) -> RewardFunction:
    """`reward_func` for a file that OpenRLHF's `--reward.remote_url` names.

    A query is the prompt and the answer in the template of the trained model. The answer is what follows the prompt, or what follows
    the end of the prompt where OpenRLHF cut the prompt at the left; `ends` are tokens that are removed at its end. In the reading
    "score" the query is the text that the reward model reads, as it is: its template must be that of the trained model. In the reading
    "preferred" the answer is compared with the label, an answer to the same prompt. `read_prompt` makes a text or a list of messages of
    the prompt; with it both readings score that conversation. Without it "preferred" reads the prompt with its template. `failed`,
    `model`, `name` and `settings` are as in `verl`.
    """
    core = Core(model, name, settings)
    scores = core.rewarder.reading == "score"

    def read(query: Any, prompt: Any, label: Any) -> tuple[Given, Given]:
        try:
            answer = split_query(query, prompt, ends)
        except Fault as fault:
            return _said(fault), ""
        if read_prompt is None:
            sample: Given = Sample(((prompt, answer),), templated=query if scores else "")
            return sample, "" if scores else _reference(prompt, label, "label")
        before = read_prompt(prompt)
        return _sample(before, answer), "" if scores else _reference(before, label, "label")

    def reward_func(queries: Any, prompts: Any, labels: Any, **kwargs: Any) -> dict[str, Any]:
        import torch

        if not len(queries) == len(prompts) == len(labels):
            raise UsageError(
                f"there are {len(queries)} queries, {len(prompts)} prompts and {len(labels)} labels; expected as many"
            )
        both = [read(*each) for each in zip(queries, prompts, labels, strict=True)]
        samples, beside = [sample for sample, _ in both], None if scores else [reference for _, reference in both]
        found = [one(each) for each in core.few(samples, beside, failed)]
        after, before = torch.tensor(found, dtype=torch.float64).reshape(len(found), 2).float().T
        return {"rewards": after, "scores": before, "extra_logs": {}}

    return _finished(reward_func, name, core)


def length_slope(prompts: Sequence[Any], completions: Sequence[Any], rewards: Sequence[float]) -> Slope:
    """How much the reward changes when the length of an answer doubles, within the samples of one prompt, with its interval: a value
    for `length_penalty` from data of your own.

    Prompts and completions are texts or lists of messages, as TRL has them; all three have n entries. Raises UsageError.
    """
    if not len(prompts) == len(completions) == len(rewards):
        counts = f"{len(prompts)} prompts, {len(completions)} completions and {len(rewards)} rewards"
        raise UsageError(f"there are {counts}; expected as many")
    samples = []
    for number, both in enumerate(zip(prompts, completions, strict=True), 1):
        sample = _sample(*both)
        if isinstance(sample, str):
            raise UsageError(f"sample {number}: {sample}")
        samples.append(sample)
    y = np.array(rewards, dtype=np.float64)
    if not np.isfinite(y).all():
        raise UsageError(f"reward {int(np.flatnonzero(~np.isfinite(y))[0]) + 1} is not a finite number")
    looks = np.array([looks_of(sample.answer) for sample in samples]).reshape(len(samples), len(LOOKS))
    found = Sums.of([sample.group for sample in samples], looks, y).slope()
    if found.groups < 2 or not np.isfinite(found.value):
        raise UsageError("a slope needs at least two prompts that have samples of different lengths")
    return found


def _finished(function: Callable[..., Any] | Callable[..., Awaitable[Any]], name: str, core: Core) -> RewardFunction:
    made = cast(RewardFunction, function)
    made.__name__ = function.__qualname__ = name
    made.monitor, made.close = core.monitor, core.close
    return made


def _sample(prompt: Any, completion: Any, field: str = "completion") -> Given:
    try:
        return sample_of(_plain(prompt), _plain(completion), field)
    except Fault as fault:
        return _said(fault)


def _plain(value: Any) -> Any:
    """A column of messages may come as an array."""
    return value.tolist() if hasattr(value, "tolist") else value


def _reference(prompt: Any, answer: Any, field: str) -> Given:
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return f"{field}: has no reference answer"
    return _sample(prompt, answer, field)


def _said(fault: Fault) -> str:
    return f"{fault.field}: {fault.problem}"
