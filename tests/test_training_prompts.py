"""Groups of first prompts, and what files of a training share."""

from __future__ import annotations

import numpy as np

from prefcast import Pair
from prefcast.training.leaks import leak_lines, leaks_between
from prefcast.training.prompts import prompt_groups, prompt_key


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join("".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(words))


def of(*prompts: str) -> list[Pair]:
    return [Pair.of(prompt, f"a {number}", f"b {number}", id=number) for number, prompt in enumerate(prompts)]


def test_prompts_that_are_nearly_the_same_are_in_one_group() -> None:
    rng = np.random.default_rng(0)
    base, other = text(rng, 40), text(rng, 40)
    found = prompt_groups(
        of(other, base, f"{base} and more", base.upper() + "!", f"Please: {base} and more", text(rng, 40))
    )
    assert found.prompt.tolist() == [0, 1, 2, 1, 3, 4]
    assert found.group.tolist() == [0, 1, 1, 1, 1, 2]
    assert found.parted == 0
    assert found.lines() == ["5 first prompts in 3 groups: near-duplicates stay on one side of a split"]
    assert prompt_groups(of(base, f"And {base}", base.upper()), near=False).group.tolist() == [0, 1, 0]


def test_without_near_duplicates_a_group_is_a_prompt() -> None:
    rng = np.random.default_rng(1)
    pairs = of(*(text(rng, int(rng.integers(1, 30))) for _ in range(300)))
    names: dict[str, int] = {}
    expected = [names.setdefault(prompt_key(pair), len(names)) for pair in pairs]
    found = prompt_groups(pairs)
    assert found.group.tolist() == found.prompt.tolist() == expected
    assert found.lines() == []
    assert prompt_groups([]).group.tolist() == []


def test_short_prompts_are_not_joined() -> None:
    prompts = [
        "hi",
        "hello",
        "why?",
        "why not?",
        "tell me a joke",
        "tell me a story",
        "who are you",
        "who am i",
        "",
        "?",
    ]
    assert prompt_groups(of(*prompts)).group.tolist() == [*range(8), 8, 8]


def test_a_template_does_not_join_everything() -> None:
    rng = np.random.default_rng(2)
    template = text(rng, 120)
    # Three rows of each question, one of them with other words at the end of the template.
    asked = [f"{template} {question}" for question in (text(rng, 3) for _ in range(60))]
    pairs = of(*(text(rng, 40) for _ in range(100)), *asked, *asked, *(f"{each}!" for each in asked))
    found = prompt_groups(pairs)
    sizes = np.bincount(found.group)
    assert found.parted == 60
    assert len(sizes) == 160
    assert sizes[:100].max() == 1
    assert (sizes[100:] == 3).all()
    (line,) = found.lines()
    assert line.startswith(
        "60 first prompts are near-duplicates in groups of more than 5% of all; of those only prompts"
    )
    again = prompt_groups(pairs)
    assert (again.group == found.group).all()


def test_a_chain_is_cut_where_it_is_longest_alike() -> None:
    """A chain of prompts, each like the next: at a higher similarity it falls apart, but near copies stay together."""
    rng = np.random.default_rng(3)
    words = text(rng, 500).split()
    # Each step changes a tenth of 100 words; each has a copy with one more word.
    steps = [" ".join(words[10 * number : 10 * number + 100]) for number in range(40)]
    found = prompt_groups(of(*steps, *(f"{each} so" for each in steps)))
    assert found.parted == 80
    assert found.similarity == 0.9
    assert (found.group[:40] == found.group[40:]).all()
    assert len(set(found.group.tolist())) == 40


def test_what_files_share_is_counted_once_as_the_closest_kind() -> None:
    rng = np.random.default_rng(4)
    one, two, three = (text(rng, 40) for _ in range(3))
    pairs = [
        Pair.of(one, "x", "y"),
        Pair.of(two, "x", "y"),
        Pair.of(f"{three} more", "x", "y"),
        Pair.of(text(rng, 40), "x", "y"),
        Pair.of(one, "y", "x"),
        Pair.of(two.upper(), "x", "z"),
        Pair.of(three, "x", "y"),
        Pair.of(text(rng, 40), "x", "y"),
    ]
    file = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    leaks = leaks_between(pairs, file, ["train.csv", "test.csv", "else.csv"], prompt_groups(pairs))
    assert [leak.to_dict() for leak in leaks] == [
        {"file": "train.csv", "other": "test.csv", "same_pair": 1, "same_prompt": 1, "near_prompt": 1}
    ]
    lines = leak_lines(leaks)
    assert lines[0].split("  ")[-1] == "nearly the same prompt"
    assert lines[1].split() == ["train.csv", "in", "test.csv", "1", "1", "1"]
    assert len(lines) == 3
    assert leak_lines([]) == []
    assert len(leak_lines(leaks * 30)) == 23
