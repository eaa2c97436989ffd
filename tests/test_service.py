"""The service's routes: their answers are those of the library, and concurrent requests do not affect them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import EXAMPLES
from prefcast import Client, Pair, load_forecaster, load_scorer, open_pairs
from prefcast.errors import UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.predictions import Forecast
from prefcast.outcomes.models import Link
from servers import PAIR, Server, serving

LONG = "word " * 9_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--model", "surface") as found:
        yield found


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return load_forecaster("surface")


def as_json(pair: Pair) -> dict[str, object]:
    return {"id": pair.id, **{name: list(getattr(pair, name)) for name in ("prompt", "response_a", "response_b")}}


def examples() -> list[Pair]:
    with open_pairs(EXAMPLES) as file:
        return [pair for pair in file if isinstance(pair, Pair)]


def same(answer: dict[str, object], forecast: Forecast) -> None:
    """To the last bit."""
    expected = dict(zip(("a", "b", "tie"), forecast.probabilities, strict=True))
    assert answer["probabilities"] == expected
    assert (answer["margin"], answer["tie"]) == (forecast.margin, forecast.tie)
    assert forecast.interval is not None
    ends = dict(zip(("a", "b", "tie"), map(list, forecast.interval), strict=True))
    assert answer["interval"] == {"level": 0.95, **ends}
    assert answer["error"] is None


def test_a_pair_is_forecast_as_the_library_does(server: Server, forecaster: Forecaster) -> None:
    answer = server.forecast(**PAIR, id="mine")
    same(answer, forecaster.forecast([Pair.of(**PAIR)])[0])
    assert answer["id"] == "mine"
    assert answer["swapped"] is None
    assert answer["influences"] is None
    characters = sum(map(len, PAIR.values()))
    assert answer["truncation"] == {
        "truncated": False,
        "characters_kept": characters,
        "characters": characters,
        "turns_kept": 1,
        "turns": 1,
        "texts": [],
    }


def test_several_turns_and_messages_are_the_same_pair(server: Server) -> None:
    turns = {"prompt": ["Hi", "Why?"], "response_a": ["Hello", "So."], "response_b": ["Yes", None]}

    def messages(side: str) -> list[dict[str, object]]:
        pairs = zip(turns["prompt"], turns[side], strict=True)
        return [
            {"role": role, "content": text}
            for turn in pairs
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]

    answer = server.forecast(**turns)
    assert server.forecast(conversation_a=messages("response_a"), conversation_b=messages("response_b")) == answer
    assert answer["truncation"]["turns"] == 2


def test_pairs_are_answered_in_order_with_errors_in_place(server: Server, forecaster: Forecaster) -> None:
    pairs = examples()[:5]
    items: list[object] = [as_json(pair) for pair in pairs]
    items[2:2] = [{"id": 7, "prompt": "x", "response_a": "y"}, "no pair", {**PAIR, "response_b": ["a", "b"]}]
    answer = server.forecast(pairs=items)
    forecasts = answer["forecasts"]
    faults = [(one["id"], one["error"]["type"], one["error"]["field"]) for one in forecasts[2:5]]
    assert faults == [
        (7, "invalid", "pairs.2.response_b"),
        (None, "invalid", "pairs.3"),
        (None, "invalid", "pairs.4.response_b"),
    ]
    assert all(one["probabilities"] is None and one["margin"] is None for one in forecasts[2:5])
    expected = forecaster.forecast(pairs)
    for one, forecast, pair in zip(forecasts[:2] + forecasts[5:], expected, pairs, strict=True):
        same(one, forecast)
        assert one["id"] == pair.id
    assert answer["forecaster"]["name"] == "surface"


def test_both_orders_and_the_influences(server: Server, forecaster: Forecaster) -> None:
    answer = server.forecast(**PAIR, both_orders=True, explain=True)
    assert answer["swapped"]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-12)
    assert 0 <= answer["swapped"]["largest_difference"] < 1e-12
    expected = forecaster.explain(Pair.of(**PAIR)).influences
    assert [one["name"] for one in answer["influences"]] == [one.name for one in expected]
    assert list(answer["influences"][0]["change"].values()) == list(expected[0].change)
    values = [tuple(value.values()) for value in answer["influences"][0]["values"]]
    assert values == list(expected[0].values)
    many = server.forecast(pairs=[PAIR, {**PAIR, "prompt": "Who?"}], explain=True, both_orders=True)
    assert many["forecasts"][0] == answer
    assert many["forecasts"][1]["influences"]
    assert many["forecasts"][1]["swapped"]


def test_what_was_not_read_is_marked(server: Server) -> None:
    answer = server.forecast(prompt=["Old?", "Why?"], response_a=["Old.", LONG], response_b=["Old!", "Short."])
    cut = answer["truncation"]
    assert cut["truncated"]
    assert (cut["turns_kept"], cut["turns"]) == (1, 2)
    assert [(text["turn"], text["field"]) for text in cut["texts"]] == [
        (0, "prompt"),
        (0, "response_a"),
        (0, "response_b"),
        (1, "response_a"),
    ]
    last = cut["texts"][-1]
    assert last["characters"] == len(LONG)
    assert last["head"] > 0
    assert last["tail"] > 0
    assert last["head"] + last["tail"] + len("Why?Short.") == cut["characters_kept"]


def test_ranking_is_by_the_mean_share_of_wins(server: Server, forecaster: Forecaster) -> None:
    responses = ["No.", "Because air scatters short waves more.", "- one\n- two", "No."]
    reply = server.ask("POST", "/v1/rank", {"id": "r", "prompt": PAIR["prompt"], "responses": responses})
    assert reply.status == 200
    answer = reply.json
    shares = {index: [] for index in range(4)}
    for one in answer["pairwise"]:
        pair = Pair.of(PAIR["prompt"], responses[one["a"]], responses[one["b"]])
        probabilities = forecaster.forecast([pair])[0].probabilities
        assert tuple(one["probabilities"].values()) == probabilities
        shares[one["a"]].append(probabilities[0] + probabilities[2] / 2)
        shares[one["b"]].append(probabilities[1] + probabilities[2] / 2)
    means = [sum(shares[index]) / 3 for index in range(4)]
    assert answer["strengths"] == pytest.approx(means)
    assert answer["order"] == sorted(range(4), key=lambda index: -answer["strengths"][index])
    assert (answer["id"], answer["best"]) == ("r", answer["order"][0])


def test_a_forecaster_of_pairs_has_no_scores(server: Server) -> None:
    reply = server.ask("POST", "/v1/score", {"conversations": [{"prompt": "a", "response": "b"}]})
    assert reply.status == 409
    assert reply.error["type"] == "not_pointwise"
    assert not server.ask("GET", "/v1/models").json["forecaster"]["pointwise"]


def test_the_probes_and_the_models(server: Server) -> None:
    assert server.ask("GET", "/health").json == {"status": "ok"}
    assert server.loaded().ask("GET", "/ready").json == {"status": "ready"}
    models = server.ask("GET", "/v1/models").json
    assert [one["name"] for one in models["models"] if one["served"]] == ["surface"]
    assert models["limits"]["pairs"] == 256
    before = server.metric("prefcast_items_total")
    server.forecast(pairs=[PAIR] * 3)
    assert server.metric("prefcast_items_total") == before + 3
    assert server.metric("prefcast_waiting_items") == 0


def test_the_documents_work_without_a_network(server: Server) -> None:
    page = server.ask("GET", "/docs").body.decode()
    document = server.ask("GET", "/openapi.json").json
    for path in document["paths"]:
        assert path in page
    assert "<script" not in page
    loaded = re.findall(r"(?:src|href)='?\"?([^'\" >]+)", page)
    assert {link for link in loaded if not link.startswith("#")} == {"/docs.css", "/openapi.json"}
    assert server.ask("GET", "/docs.css").headers["content-type"].startswith("text/css")
    text = json.dumps(document)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named
    assert named <= set(document["components"]["schemas"])


def test_the_page_is_served_and_not_sent_twice(server: Server) -> None:
    first = server.ask("GET", "/")
    assert first.headers["content-type"].startswith("text/html")
    again = server.ask("GET", "/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    for name in ("..%2fapp.py", "%2e%2e/app.py", "app.py", "..", "../app.py", "%00"):
        assert server.ask("GET", f"/static/{name}").status == 404


@pytest.mark.parametrize("model", ["surface", "embedded"])
def test_results_do_not_depend_on_who_shares_the_batch(model: str) -> None:
    pairs = examples()[:16]
    with serving("--model", model, "--batch-wait", "20") as server:
        alone = [server.forecast(**as_json(pair)) for pair in pairs]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda pair: server.forecast(**as_json(pair)), pairs))
        assert server.metric("prefcast_batch_items_count") < 2 * len(pairs)  # some did share
        assert together == alone
        assert server.forecast(pairs=[as_json(pair) for pair in reversed(pairs)])["forecasts"] == alone[::-1]


def test_an_interval_does_not_depend_on_the_rows_beside_it() -> None:
    generator = np.random.default_rng(0)
    link = Link("davidson", ("margin", "x"), ("tie", "y"), np.ones(5), generator.normal(size=(200, 5)))
    m, t = generator.normal(size=(64, 2)), generator.normal(size=(64, 2))
    low, high = link.interval(m, t)
    for row in range(64):
        alone = link.interval(m[row : row + 1], t[row : row + 1])
        assert np.array_equal(alone[0][0], low[row])
        assert np.array_equal(alone[1][0], high[row])


def _check_forms(server: Server, folder: Path, chats: list[Any], expected: Any) -> None:
    """The requests of other reward servers give the same scores."""
    local = load_scorer(folder, quantize="nf4")
    ids = [local.encode(chat) for chat in chats]
    texts = [local.chat.render(chat) for chat in chats]
    squashed = 1 / (1 + np.exp(-expected))
    raw = {"use_activation": False}

    def ask(path: str, **body: Any) -> Any:
        reply = server.ask("POST", path, body)
        assert reply.status == 200, reply.json
        return reply.json

    rewards = ask("/get_reward", query=texts, prompts=["", ""], labels=["", ""])
    assert rewards["rewards"] == rewards["scores"] == pytest.approx(list(expected), rel=1e-5)
    assert ask("/get_reward", query=[])["rewards"] == []
    for given in (ids, texts):
        found = ask("/classify", input=given, add_special_tokens=False, model="mine", **raw)
        assert [one["probs"][0] for one in found["data"]] == pytest.approx(list(expected), rel=1e-5)
        assert (found["model"], found["data"][1]["index"], found["data"][0]["num_classes"]) == ("mine", 1, 1)
    assert ask("/classify", input=ids[0], **raw)["data"][0]["probs"] == pytest.approx([expected[0]], rel=1e-5)
    assert ask("/classify", messages=chats[1], **raw)["data"][0]["probs"] == pytest.approx([expected[1]], rel=1e-5)
    # As vLLM does, unless it is told not to.
    assert ask("/classify", input=ids)["data"][1]["probs"] == pytest.approx([squashed[1]], rel=1e-5)
    both = ask("/score", text_1="Why?", text_2=["Because.", "No idea."], **raw)
    assert [one["score"] for one in both["data"]] == pytest.approx(list(expected), rel=1e-5)
    assert ask("/score", text_1="Why?", text_2="Because.")["data"][0]["score"] == pytest.approx(squashed[0], rel=1e-5)
    for path, body, field in (
        ("/get_reward", {"query": ["a", 3]}, "query.1"),
        ("/get_reward", {"queries": ["a"]}, "query"),
        ("/classify", {}, "input"),
        ("/classify", {"input": [[10**9]]}, "input.0"),
        ("/classify", {"input": [[-1]]}, "input.0"),
        ("/classify", {"input": ["a", 1]}, "input"),
        ("/classify", {"input": [True]}, "input.0"),
        ("/classify", {"input": "a", "messages": chats[0]}, "input"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/classify", {"input": [[1] * 200_001]}, "input.0"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
    ):
        reply = server.ask("POST", path, body)
        assert (reply.status, reply.json["error"]["field"]) == (422, field), (path, reply.json)


def test_a_reward_model_scores_conversations() -> None:
    folder = Path(__file__).parent / "fixtures" / "internlm2_tiny"
    options = ("--model", str(folder), "--preset", "notebook")
    chats = [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
        for text in ("Because.", "No idea.")
    ]
    expected = load_scorer(folder, quantize="nf4").score(chats)
    with serving(*options) as server, Client(server.url) as client:
        assert client.models()["forecaster"]["pointwise"]
        assert client.score(chats) == pytest.approx(expected, rel=1e-5)
        items = [chats[0], {"prompt": "Why?", "response": "No idea."}, {"prompt": "Why?"}, chats[0][:1], 3]
        reply = server.ask("POST", "/v1/score", {"conversations": items})
        assert reply.status == 200
        scores = reply.json["scores"]
        assert [one["score"] for one in scores[:2]] == pytest.approx(list(expected), rel=1e-5)
        fields = [one["error"]["field"] for one in scores[2:]]
        assert fields == ["conversations.2.response", "conversations.3", "conversations.4"]
        with pytest.raises(UsageError, match=r"conversations\.0"):
            client.score([chats[0][:1]])
        _check_forms(server, folder, chats, expected)
        answer = server.forecast(**PAIR, explain=True)
        assert (answer["influences"], answer["interval"]) == ([], None)
        assert answer["margin"] == pytest.approx(client.forecast([Pair.of(**PAIR)])[0].margin)
    assert "Traceback" not in "".join(server.lines)
