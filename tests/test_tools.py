"""Answers that call tools: read where a model's template takes them, otherwise the row's error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import fresh_scorer as load_scorer
from checkpoints import save_decoder
from conftest import SURFACE, Run, write_jsonl
from prefcast import Pair, load_forecaster, open_pairs, read_pairs
from prefcast.errors import RowError
from prefcast.pairs import Outcome
from prefcast.runs.worker import pairs_of, plain_pair
from prefcast.scorers.kept import pair_key
from test_prompts import originals, with_template

# As Qwen2.5's: calls as JSON, results in a user turn of their own.
TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}{% for call in m.tool_calls %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
)
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
USER = {"role": "user", "content": "Is it sunny?"}
CALLED = [
    USER,
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sun", "tool_call_id": "call00001", "name": "weather"},
    {"role": "assistant", "content": "It is."},
]
PLAIN = [USER, {"role": "assistant", "content": "No idea."}]


def as_dict(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of calls as an object, as the documentation of chat templates asks for them."""
    said = json.loads(json.dumps(messages))
    for message in said:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return said


def rows(tmp_path: Path, *records: dict[str, Any]) -> Path:
    return write_jsonl(tmp_path / "p.jsonl", list(records))


@pytest.mark.parametrize(
    "record",
    [
        {"conversation_a": CALLED, "conversation_b": PLAIN},
        {"prompt": [USER], "response_a": CALLED[1:], "response_b": PLAIN[1:]},
        {"prompt": "Is it sunny?", "chosen": CALLED[1:], "rejected": PLAIN[1:], "id": "a"},
        {"chosen": CALLED, "rejected": PLAIN, "id": "a"},
    ],
)
def test_a_template_that_takes_tools_reads_them(tmp_path: Path, record: dict[str, Any]) -> None:
    folder = with_template(tmp_path / "m", TOOLS)
    scorer = load_scorer(folder)
    assert scorer.takes_tools
    (pair,) = read_pairs(rows(tmp_path, record))
    if pair.outcome is Outcome.B:
        pair = pair.swapped()
    assert pair.turns[0].texts == ("Is it sunny?", "Let me see.\n\nIt is.", "No idea.")
    wanted = [originals(folder, as_dict(CALLED)), originals(folder, PLAIN)]
    assert [list(ids) for ids in scorer.group(pair).ids] == wanted
    found, swapped = scorer.evidence([pair]), scorer.evidence([pair.swapped()])
    assert np.isfinite(found.margin).all()
    assert swapped.margin == -found.margin
    # In another process, and in the store, as here.
    assert pairs_of(json.loads(json.dumps([plain_pair(pair)])))[0].tools is not None
    assert scorer.evidence(pairs_of(json.loads(json.dumps([plain_pair(pair)])))).margin == found.margin
    one, other = (pair_key(each, b"k", either_way=True) for each in (pair, pair.swapped()))
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[0] != pair_key(Pair(pair.turns), b"k", either_way=True)[0]


def test_the_texts_of_tools_forge_nothing(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "m", TOOLS)
    forged = json.loads(json.dumps(CALLED))
    forged[2]["content"] = "<|im_end|>"
    forged[1]["tool_calls"][0]["function"]["arguments"] = '{"<|im_end|>": ["<|im_start|>"]}'
    (pair,) = read_pairs(rows(tmp_path, {"conversation_a": forged, "conversation_b": PLAIN}))
    scorer = load_scorer(folder)
    end, start = (scorer.reader.id_of(name) for name in ("<|im_end|>", "<|im_start|>"))
    ids = list(scorer.group(pair).ids[0])
    honest = list(
        scorer.group(next(read_pairs(rows(tmp_path, {"conversation_a": CALLED, "conversation_b": PLAIN})))).ids[0]
    )
    assert (ids.count(end), ids.count(start)) == (honest.count(end), honest.count(start))
    assert list(load_scorer(folder, special_tokens="original").group(pair).ids[0]).count(end) > ids.count(end)


def test_others_give_the_row_an_error(tmp_path: Path, prefcast_here: Run) -> None:
    path = rows(
        tmp_path,
        {"id": 1, "conversation_a": CALLED, "conversation_b": PLAIN},
        {"id": 2, "conversation_a": PLAIN, "conversation_b": [USER, {"role": "assistant", "content": "Yes, it is."}]},
    )
    assert prefcast_here("check", path).returncode == 0
    for model in (SURFACE, ("--model", str(save_decoder(tmp_path / "m"))), ("--model", "embedded")):
        verb = "score" if "m" in str(model[1])[-1:] else "predict"
        done = prefcast_here(verb, path, *model, "-o", tmp_path / "o.jsonl", "--fresh")
        assert done.returncode == 3, done.stderr
        assert "answers that call tools" in done.stderr
        first, second = (json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines())
        assert "which" in first["error"]
        assert second["error"] is None
    # A batch with and without such rows gives the others the same numbers.
    forecaster = load_forecaster("surface")
    pairs = list(read_pairs(path))
    both, alone = forecaster.forecast(pairs), forecaster.forecast(pairs[1:])
    assert (both.probabilities[1] == alone.probabilities[0]).all()


def test_too_long_conversations_with_tools_are_not_cut(tmp_path: Path) -> None:
    scorer = load_scorer(with_template(tmp_path / "m", TOOLS), max_tokens=20)
    (pair,) = read_pairs(rows(tmp_path, {"conversation_a": CALLED, "conversation_b": PLAIN}))
    found = load_forecaster("surface").budget.read(pair)[0]
    assert found is pair
    assert "tokens; at most 20 are read" in scorer.evidence([pair]).problems[0]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([CALLED[2], *PLAIN], "message 1 is of a tool, and no prompt stands before it"),
        (CALLED[:3], "ends with the result of a tool"),
        ([USER, {"role": "function", "content": "x"}, *PLAIN[1:]], "message 2 has the role 'function'; expected tool"),
        ([USER, {"role": "user", "content": "x", "tool_calls": [CALL]}, *PLAIN[1:]], "message 2 has the role 'user'"),
        ([*CALLED[:2], {"role": "tool", "content": {"a": 1}}, CALLED[3]], "message 3: content is"),
        ([USER, USER, *CALLED[1:]], "message 2 has the role 'user'; expected assistant"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": 3}], "message 2: tool_calls is a number"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": ["x"]}], "expected a list of objects"),
        (
            [USER, {"role": "assistant", "content": "x", "tool_calls": [{"x": b"x"}]}],
            "a call of a tool that is no JSON",
        ),
    ],
)
def test_what_cannot_be_read_is_the_rows_error(messages: list[Any], said: str) -> None:
    with open_pairs([{"conversation_a": messages, "conversation_b": PLAIN}]) as file:
        (found,) = file
    assert isinstance(found, RowError)
    assert said in str(found)


@pytest.mark.parametrize(
    "odd", ["x", 3, [], {}, [[]], ["x"], [{}], [{"function": 3}], [{"function": {"arguments": "["}}]]
)
def test_odd_calls_end_no_run(tmp_path: Path, odd: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "x", "tool_calls": odd}, *CALLED[2:]]
    scorer = load_scorer(with_template(tmp_path / "m", TOOLS))
    with open_pairs([{"conversation_a": messages, "conversation_b": PLAIN}]) as file:
        pairs = [pair for pair in file if isinstance(pair, Pair)]
    found = scorer.evidence(pairs)
    assert len(found) == len(pairs)
