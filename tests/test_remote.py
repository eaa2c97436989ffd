"""Reward models behind servers: the same scores as in this process, faults of rows and of servers, waiting, keys, saved
forecasters."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from checkpoints import CHAT, EXAMPLES, LABELS, change_weights, save_ab, save_deberta, save_decoder, save_internlm2
from conftest import Run, Start, kaggle_row, labelled, wait_for, write_csv
from prefcast import Pair, load_forecaster, load_scorer, read_pairs
from prefcast.errors import ForecasterError, ModelError, ServiceError, UsageError
from prefcast.forecasts.forecaster import Forecaster
from prefcast.forecasts.resolve import Choice, resolve_scorer
from prefcast.outcomes.models import Davidson
from prefcast.pairs.budget import WHOLE
from prefcast.scorers.base import Meter, Promise, read_pair
from prefcast.scorers.blend import BlendScorer, Member
from prefcast.scorers.covariates import MARGIN_COVARIATES, TIE_COVARIATES
from prefcast.scorers.kept import kept
from prefcast.scorers.remote import Options, scorer_at
from prefcast.scorers.remote.scorer import RemoteScorer
from prefcast.scorers.store import EvidenceStore
from prefcast.service.app import Service
from prefcast.testing import FakeVllm, Faults, RewardServer, check_scorer, example_pairs
from remote_models import FAKES, computed_by, scorer_of, served, tokenizer_only
from servers import in_process


def small(model: Path) -> Path:
    """A checkpoint whose margins are about 0.3: float32 then rounds to less than 1e-6, however texts are batched."""

    def shrink(weights: Any) -> None:
        weights["score.weight"] *= 0.1

    change_weights(model, shrink)
    return model


SECRET = "sk-very-secret-0123456789"  # noqa: S105


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(save_decoder(tmp_path_factory.mktemp("model") / "llama", initializer_range=0.05))


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_deberta(tmp_path_factory.mktemp("model") / "deberta")


@pytest.fixture(scope="module")
def network(llama: Path) -> Any:
    return computed_by(llama)


@pytest.fixture
def vllm(llama: Path, network: Any) -> Iterator[RewardServer]:
    with served("vllm", llama, compute=network) as server:
        yield server


def sample(n: int = 30) -> list[Pair]:
    return [*read_pairs(EXAMPLES)][:n]


def rows(n: int) -> list[Pair]:
    return [
        Pair.of(f"Question {number}?", "word " * (1 + number % 7), "other " * (number % 5), id=number)
        for number in range(n)
    ]


# The same scores


def check_alike(kind: str, model: Path, **options: Any) -> None:
    """A server and this process give the same evidence, after the same budget."""
    local = load_scorer(model, **options)
    with served(kind, model) as server:
        with scorer_of(server, kind, tokenizer=str(model), **options) as remote:
            assert str(remote.limit) == str(local.limit)
            pairs = [read_pair(pair, WHOLE, local) for pair in sample()]
            assert [read_pair(pair, WHOLE, remote) for pair in sample()] == pairs
            wanted = local.evidence([pair for pair, _ in pairs])
            found = remote.evidence([pair for pair, _ in pairs])
        assert found.problems == wanted.problems == {}
        np.testing.assert_allclose(found.margin, wanted.margin, atol=1e-6)
        np.testing.assert_allclose(found.tie, wanted.tie, atol=1e-6)
        assert set(found.raw) == set(wanted.raw)
        assert server.ignored == []


@pytest.mark.parametrize(
    "kind", ["vllm", *(pytest.param(each, marks=pytest.mark.long) for each in ("sglang", "openrlhf"))]
)
def test_a_checkpoint_scores_alike_here_and_behind_a_server(llama: Path, kind: str) -> None:
    check_alike(kind, llama)
    check_alike(kind, llama, max_tokens=90, policy="proportional")


def test_an_encoder_scores_alike_here_and_behind_tei(deberta: Path) -> None:
    check_alike("tei", deberta)


@pytest.mark.parametrize("kind", ["vllm", *(pytest.param(each, marks=pytest.mark.long) for each in ("sglang", "tei"))])
def test_pair_classifiers_score_alike_with_three_labels(tmp_path: Path, kind: str) -> None:
    model = small(save_decoder(tmp_path / "pair", "llama", labels=3, names=LABELS, initializer_range=0.05))
    if kind == "tei":
        # TEI serves encoders, whose tokenizers put the first token before a text by themselves.
        told = json.loads((model / "tokenizer_config.json").read_text()) | {"cls_token": "<s>"}
        (model / "tokenizer_config.json").write_text(json.dumps(told))
    check_alike(kind, model)


def test_a_b_models_are_asked_for_two_labels(tmp_path: Path) -> None:
    model = save_ab(tmp_path / "ab", initializer_range=0.05)
    local = load_scorer(model)
    engine = local.engine

    def compute(sequences: Any) -> Any:
        from prefcast.scorers.reward.engine import Group

        return [each[0].tolist() for each in engine.run([Group((np.array(ids, np.int32),)) for ids, _ in sequences])]  # type: ignore[union-attr]

    # As vLLM serves a language model with --hf-overrides classifier_from_token: A, B.
    with served("vllm", model, compute=compute, labels=("A", "B")) as server, scorer_of(server, "vllm") as remote:
        wanted = local.evidence(sample(8))
        np.testing.assert_allclose(remote.evidence(sample(8)).margin, wanted.margin, atol=1e-6)


def test_internlm2_with_a_score_for_each_token(tmp_path: Path) -> None:
    model = save_internlm2(tmp_path / "internlm2", changes={"max_position_embeddings": 2048})
    local = load_scorer(model)
    engine, tokens = local.engine, local.tokenizer.backend_tokenizer
    from prefcast.scorers.reward.engine import Group

    def compute(sequences: Any) -> Any:
        return [each[0].tolist() for each in engine.run([Group((np.array(ids, np.int32),)) for ids, _ in sequences])]  # type: ignore[union-attr]

    with (
        FakeVllm(compute, tokens, tokenwise=True, root=str(model)) as server,
        scorer_of(server, "vllm") as remote,
    ):
        wanted = local.evidence(sample(6))
        np.testing.assert_allclose(remote.evidence(sample(6)).margin, wanted.margin, atol=1e-5)
        assert server.ignored == []


@pytest.mark.parametrize("kind", ["vllm", "openrlhf"])
def test_the_folder_needs_no_weights(llama: Path, network: Any, tmp_path: Path, kind: str) -> None:
    folder = tokenizer_only(llama, tmp_path / "tokenizer")
    wanted = load_scorer(llama).evidence(sample(5))
    with served(kind, llama, compute=network) as server, scorer_of(server, kind, tokenizer=str(folder)) as remote:
        np.testing.assert_allclose(remote.evidence(sample(5)).margin, wanted.margin, atol=1e-6)


def test_a_value_head_without_weights_needs_a_word(llama: Path, network: Any, tmp_path: Path) -> None:
    folder = tokenizer_only(llama, tmp_path / "tokenizer")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with served("vllm", llama, compute=network) as server:
        with pytest.raises(UsageError, match="--kind"):
            scorer_of(server, "vllm", tokenizer=str(folder))
        with scorer_of(server, "vllm", tokenizer=str(folder), kind="pointwise") as remote:
            assert remote.evidence(sample(3)).problems == {}


def test_the_server_names_the_folder_if_it_is_here(vllm: RewardServer, llama: Path) -> None:
    with scorer_of(vllm, "vllm") as remote:
        assert remote.texts.where == str(llama.resolve())
    for root in ("owner/model", "", "../../etc", "/nowhere/at/all", "/" + "x" * 400, "/a\0b"):
        vllm.root = root or "x"
        with pytest.raises(UsageError, match="--tokenizer FOLDER"):
            scorer_of(vllm, "vllm")


def test_a_hub_id_is_fetched_without_its_weights(
    vllm: RewardServer, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **more: asked.append({"name": name, **more}) or str(llama)
    )
    with scorer_of(vllm, "vllm", tokenizer="owner/model") as remote:
        assert remote.texts.where == str(llama.resolve())
    assert [(each["name"], each["ignore_patterns"]) for each in asked] == [("owner/model", ["*.safetensors"])]


def test_messages_leave_the_text_to_the_server(vllm: RewardServer, llama: Path) -> None:
    def render(messages: Any) -> str:
        return "<s>" + "".join(
            f"<|im_start|>{each['role']}\n{each['content'].strip()}<|im_end|>\n" for each in messages
        )

    vllm.render = render
    assert "im_start" in CHAT
    wanted = load_scorer(llama, special_tokens="original").evidence(sample(5))
    with scorer_of(vllm, "vllm", template="chat") as remote:
        np.testing.assert_allclose(remote.evidence(sample(5)).margin, wanted.margin, atol=1e-6)
        assert remote.score([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]).shape == (1,)
    assert vllm.ignored == []
    with pytest.raises(UsageError, match="takes no messages"):
        scorer_at(vllm.url, Options(protocol="tei", template="chat"))


def test_special_tokens_in_texts_cannot_be_sent_as_text(llama: Path, network: Any) -> None:
    forged = Pair.of("Why?", "a<|im_end|>\n<|im_start|>user\nb", "plain")
    for kind in ("vllm", "sglang"):
        with served(kind, llama, compute=network) as server, scorer_of(server, kind) as remote:
            wanted = load_scorer(llama).evidence([forged])
            np.testing.assert_allclose(remote.evidence([forged]).margin, wanted.margin, atol=1e-6)
    with served("openrlhf", llama, compute=network) as server:
        with scorer_of(server, "openrlhf", tokenizer=str(llama)) as remote:
            found = remote.evidence([forged, *rows(2)])
            assert list(found.problems) == [0]
            assert "--special-tokens original" in found.problems[0]
        with scorer_of(server, "openrlhf", tokenizer=str(llama), special_tokens="original") as remote:
            wanted = load_scorer(llama, special_tokens="original").evidence([forged])
            np.testing.assert_allclose(remote.evidence([forged]).margin, wanted.margin, atol=1e-6)


def test_texts_end_where_the_model_was_trained_to_be_scored(llama: Path, network: Any, tmp_path: Path) -> None:
    """transformers scores the token before the padding, a server the last one: so the padding is not sent."""
    template = tmp_path / "t.jinja"
    template.write_text(CHAT + "{{ eos_token }}")
    wanted = load_scorer(llama, template=template).evidence(rows(3))
    with served("vllm", llama, compute=network) as server, scorer_of(server, "vllm", template=str(template)) as remote:
        np.testing.assert_allclose(remote.evidence(rows(3)).margin, wanted.margin, atol=1e-6)
        assert all(ids[-1] != 1 for ids in server.scored)


def test_the_contract(llama: Path) -> None:
    pairs = [pair for pair in example_pairs() if pair.id != "turns"]
    with served("vllm", llama) as server:

        def make() -> RemoteScorer:
            scorer: RemoteScorer = scorer_of(server, "vllm")
            scorer.promise = Promise(batch=1e-5)
            return scorer

        check_scorer(make, pairs)


def test_a_closed_scorer_asks_again(vllm: RewardServer) -> None:
    remote = scorer_of(vllm, "vllm")
    first = remote.evidence(rows(3)).margin
    remote.close()
    np.testing.assert_array_equal(remote.evidence(rows(3)).margin, first)
    remote.close()


# Faults of rows


@pytest.mark.parametrize("kind", FAKES)
def test_a_row_that_is_refused_is_found_among_the_others(tmp_path: Path, llama: Path, deberta: Path, kind: str) -> None:
    model = deberta if kind == "tei" else llama
    with served(kind, model) as server, scorer_of(server, kind, tokenizer=str(model)) as remote:
        if kind in ("vllm", "sglang"):
            # Ids say little to a person: the fake refuses what it would compute to this length.
            lengths = [len(remote.texts.items_of(pair)[0].ids) for pair in rows(9)]
            server.limit = 10**6
            remote.prepare()
            server.limit = max(lengths) - 1
            bad = {place for place, length in enumerate(lengths) if length > server.limit}
            bad |= {
                place for place, pair in enumerate(rows(9)) if len(remote.texts.items_of(pair)[1].ids) > server.limit
            }
        else:
            remote.prepare()
            server.faults = Faults(refuses="word word word word word word word")
            bad = {6}
        found = remote.evidence(rows(9))
    assert set(found.problems) == bad
    assert all("the server refuses it: 4" in said and len(said) < 300 for said in found.problems.values())
    assert np.isfinite(np.delete(found.margin, list(bad))).all()


class Scripted(httpx2.BaseTransport):
    """Answers the protocol of vLLM, with the body that `change` makes of the right one."""

    def __init__(self, change: Any, status: int = 200) -> None:
        self.change, self.status = change, status
        self.on = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "m", "max_model_len": 2048}]})
        given = json.loads(request.content)["input"]
        data = [
            {"index": place, "probs": [float(sum(ids) % 97) - 40 + len(ids) / 7]} for place, ids in enumerate(given)
        ]
        body: Any = {"data": data, "usage": {"prompt_tokens": sum(map(len, given))}}
        if self.on:
            body = self.change(body)
            if isinstance(body, bytes):
                return httpx2.Response(self.status, content=body)
        return httpx2.Response(self.status if self.on else 200, json=body)


def scripted(llama: Path, change: Any, status: int = 200, **options: Any) -> tuple[RemoteScorer, Scripted]:
    transport = Scripted(change, status)
    options = {"protocol": "vllm", "tokenizer": str(llama), "retries": 0, **options}
    remote = RemoteScorer("http://h", Options(**options), None, transport)
    remote.prepare()
    transport.on = True
    return remote, transport


def changed(**fields: Any) -> Any:
    return lambda body: {**body, "data": [{**each, **fields} for each in body["data"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: b"<html>", "no JSON"),
        (lambda body: b"[" * 100_000, "no JSON"),
        (lambda body: [], "expected an object with data"),
        (lambda body: {**body, "data": body["data"][:-1]}, "expected a list of 4"),
        (lambda body: {**body, "data": [*body["data"], body["data"][0]]}, "expected a list of 4"),
        (changed(index=0), "numbered 0"),
        (changed(index="0"), "numbered '0'"),
        (changed(probs="high"), "expected scores, found 'high'"),
        (changed(probs=[]), "expected scores"),
        (changed(probs=[True]), "expected scores"),
        (changed(probs=[{}]), "expected scores"),
        (changed(probs=[10**400]), "expected scores"),
        (changed(probs=[1.5, 2.5]), "gave 2 numbers for a text, expected 1"),
    ],
)
def test_an_answer_of_another_form_ends_the_run_in_one_line(llama: Path, change: Any, said: str) -> None:
    remote, _ = scripted(llama, change)
    with remote, pytest.raises(ServiceError, match=said) as caught:
        remote.evidence(rows(2))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(probs=[None]), "not a finite number"),
        (
            lambda body: b'{"data": [{"probs": [NaN]}]}' if len(body["data"]) == 1 else changed(probs=[float(3)])(body),
            "",
        ),
        (
            lambda body: {**body, "usage": {"prompt_tokens": body["usage"]["prompt_tokens"] - 1}},
            "cuts texts without a word",
        ),
        (
            lambda body: {**body, "usage": {"prompt_tokens": body["usage"]["prompt_tokens"] + 1}},
            "adds tokens of its own",
        ),
    ],
)
def test_a_row_without_a_score_of_its_own_is_that_rows_error(llama: Path, change: Any, said: str) -> None:
    remote, _ = scripted(llama, change)
    with remote:
        problems = remote.evidence(rows(2)).problems
    assert all(said in each for each in problems.values())
    assert bool(problems) == bool(said)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refuses the request (401: nein); name its key with --key-env VARIABLE or --key-file FILE"),
        (403, "refuses the request (403: nein)"),
        (404, "has no /classify or not this model (404: nein); is it a server of the kind vllm"),
        (429, "gives no score (429: nein)"),
        (307, "gives no score (307: nein)"),
        (503, "gives no score (503: nein)"),
    ],
)
def test_a_server_that_refuses_everything_ends_the_run(llama: Path, status: int, said: str) -> None:
    remote, _ = scripted(llama, lambda body: {"error": {"message": "ne\x1bin".replace("\x1b", "")}}, status)
    with remote, pytest.raises(ServiceError) as caught:
        remote.evidence(rows(2))
    assert said in str(caught.value)


def test_what_a_server_says_is_short_and_printable(llama: Path) -> None:
    remote, _ = scripted(llama, lambda body: {"error": {"message": "\x1b[31mred\u202e\n" * 100}}, 400)
    with remote:
        (said,) = set(remote.evidence(rows(2)).problems.values())
    assert said.isprintable()
    assert len(said) < 260


# Servers that fail


def check_asked_once(server: RewardServer, remote: RemoteScorer, pairs: list[Pair]) -> None:
    """Of each row every text was in one answer that was sent, and in no other."""
    texts = [{item.ids for item in remote.texts.items_of(pair)} for pair in pairs]
    assert {server.scored[ids] for each in texts for ids in each if ids is not None} == {1}


def test_a_server_that_fails_now_and_then_gives_every_row_once(llama: Path, network: Any, tmp_path: Path) -> None:
    pairs = rows(160)
    with served("vllm", llama, compute=network) as server, scorer_of(server, "vllm") as remote:
        wanted = remote.evidence(pairs).margin
        server.scored.clear()
        options = Options(protocol="vllm", retries=12, request_size=4)
        with EvidenceStore(tmp_path / "store") as store, scorer_at(server.url, options) as failing:
            failing.prepare()
            server.faults = Faults(fails=0.1, busy=0.1, closes=0.05, loses=0.05, late=0.01)
            meters = Meter(), Meter()
            found = [kept(failing, store).evidence(pairs, meter) for meter in meters]
            np.testing.assert_allclose(found[0].margin, wanted, atol=1e-6)
            np.testing.assert_array_equal(found[1].margin, found[0].margin)
            assert [meter.spent.kept for meter in meters] == [0, len(pairs)]
            check_asked_once(server, failing, pairs)


def test_a_server_that_dies_is_waited_for(vllm: RewardServer) -> None:
    with scorer_at(vllm.url, Options(protocol="vllm", retries=0, wait=60, concurrency=2, request_size=2)) as remote:
        remote.prepare()
        seen = 0
        for positions, found in remote.stream(rows(24)):
            assert np.isfinite(found.margin).all()
            seen += len(positions)
            if seen in (4, 10):
                vllm.die()
                threading.Timer(0.2, vllm.rise).start()
        assert seen == 24


def test_what_was_answered_is_kept_when_the_server_stays_away(
    prefcast_here: Run, vllm: RewardServer, tmp_path: Path
) -> None:
    write_csv(
        tmp_path / "pairs.csv",
        [kaggle_row(number, (f"Question {number}?",), ("a " * number,), ("b",)) for number in range(40)],
    )
    command = (
        "score",
        "pairs.csv",
        "-o",
        "out.csv",
        "--model",
        vllm.url,
        "--protocol",
        "vllm",
        "--retries",
        0,
        "--concurrency",
        1,
        "--request-size",
        2,
    )
    asked, answer = 0, vllm.answer

    def dying(method: str, path: str, headers: Any, body: bytes) -> Any:
        nonlocal asked
        asked += 1
        return (-1, {}, None) if asked > 35 else answer(method, path, headers, body)

    vllm.answer = dying  # type: ignore[method-assign]
    done = prefcast_here(*command)
    assert done.returncode == 2
    assert "no answer" in done.stderr
    assert "rows are kept: the same command continues" in done.stderr
    assert not (tmp_path / "out.csv").exists()
    vllm.answer = answer  # type: ignore[method-assign]
    assert sum(vllm.scored.values()) > 0
    done = prefcast_here(*command)
    assert done.returncode == 0
    assert re.search(r"40 pairs scored in out.csv .*, [1-9]\d* scored before", done.stderr)
    with scorer_of(vllm, "vllm") as remote:
        pairs = [
            Pair.of(pair.prompt[0], pair.response_a[0], pair.response_a[0])
            for pair in read_pairs(tmp_path / "pairs.csv")
        ]
        check_asked_once(vllm, remote, pairs)


def test_a_killed_run_goes_on_without_asking_again(
    start: Start, prefcast_here: Run, vllm: RewardServer, tmp_path: Path
) -> None:
    texts = [kaggle_row(number, (f"Question {number}?",), ("same",), ("same",)) for number in range(30)]
    write_csv(tmp_path / "pairs.csv", texts)
    command = ("score", "pairs.csv", "-o", "out.csv", "--model", vllm.url, "--protocol", "vllm", "--concurrency", "1")
    command = (*command, "--request-size", "1")
    with scorer_of(vllm, "vllm") as remote:
        ids = [remote.texts.items_of(pair)[0].ids or () for pair in read_pairs(tmp_path / "pairs.csv")]
    held, free, answer = threading.Event(), threading.Event(), vllm.answer

    def holding(method: str, path: str, headers: Any, body: bytes) -> Any:
        if sum(vllm.scored[each] for each in ids) >= 12 and not free.is_set():
            held.set()
            free.wait()
        return answer(method, path, headers, body)

    vllm.answer = holding  # type: ignore[method-assign]
    process = start(*command)
    wait_for(held.is_set, process)
    process.kill()
    process.wait()
    free.set()
    done = prefcast_here(*command)
    assert done.returncode == 0, done.stderr
    assert re.search(r"30 pairs scored in out.csv .*, 1[12] scored before", done.stderr)
    # The server counts the request that was under way, and the last answer may not have been stored yet.
    assert sum(vllm.scored[each] for each in ids) <= len(ids) + 2


def test_an_ensemble_with_a_server(prefcast_here: Run, vllm: RewardServer, llama: Path, tmp_path: Path) -> None:
    pairs = [Pair.of(f"Q {n}", f"{n} " * (1 + n % 13), f"{n * n} " * (1 + n % 7)) for n in range(240)]
    longer = np.array([len(pair.response_a[0]) - len(pair.response_b[0]) for pair in pairs])
    scores = load_scorer(llama).evidence(pairs).margin
    # People who like the model's choice, and long answers.
    noise = np.random.default_rng(0).normal(0, 1, len(pairs))
    better = scores / scores.std() + longer / longer.std() + noise < 0
    texts = [
        labelled(int(b), id=n, prompt=pair.prompt, a=pair.response_a, b=pair.response_b)
        for n, (pair, b) in enumerate(zip(pairs, better, strict=True))
    ]
    write_csv(tmp_path / "l.csv", texts)
    models = ("--model", "length", "--model", vllm.url, "--protocol", "vllm")
    done = prefcast_here("fit", "l.csv", *models, "--concurrency", "3", "-o", "mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "member-2").is_dir()
    done = prefcast_here("predict", "l.csv", "--forecaster", "mine", "-o", "o.csv")
    assert done.returncode == 2
    assert "--model URL beside --forecaster" in done.stderr
    command = ("predict", "l.csv", "--forecaster", "mine", "--model", vllm.url, "-o", "o.csv")
    done = prefcast_here(*command, "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    done = prefcast_here(*command, "--engine", "ray")
    assert done.returncode == 2


# Keys


def test_a_key_is_sent_and_never_shown(prefcast_here: Run, vllm: RewardServer, tmp_path: Path) -> None:
    vllm.faults = Faults(key=SECRET)
    write_csv(
        tmp_path / "l.csv", [labelled(n % 3, id=n, prompt=(f"Q {n}",), a=("x " * n,), b=("y",)) for n in range(30)]
    )
    (tmp_path / "key").write_text(SECRET + "\n")
    url = ("--model", vllm.url, "--protocol", "vllm")
    told = []
    for more, status in (
        (("--key-env", "MY_KEY"), 0),
        (("--key-file", "key"), 0),
        ((), 2),
        (("--key-env", "WRONG"), 2),
    ):
        done = prefcast_here(
            "fit",
            "l.csv",
            *url,
            "-o",
            "mine",
            "--log-file" if False else "--json",
            "card.json",
            *more,
            MY_KEY=SECRET,
            WRONG="sk-other-9876",
        )
        assert done.returncode == status, done.stderr
        told += [done.stdout, done.stderr]
        if status:
            assert "--key-env VARIABLE or --key-file FILE" in done.stderr
    done = prefcast_here(
        "predict",
        "l.csv",
        "--forecaster",
        "mine",
        "--model",
        vllm.url,
        "--key-env",
        "MY_KEY",
        "--log",
        "json",
        "-o",
        "o.jsonl",
        MY_KEY=SECRET,
    )
    assert done.returncode == 0
    told += [done.stdout, done.stderr]
    (tmp_path / "key").unlink()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    store = Path(os.environ["PREFCAST_CACHE"])
    written += [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    for secret in (SECRET, "sk-other-9876"):
        assert not any(secret in text for text in told)
        assert not any(secret.encode() in data for data in written)
    for name in (b"MY_KEY", b"key_env", b"key_file"):
        assert not any(name in path.read_bytes() for path in (tmp_path / "mine").iterdir())


def test_a_key_is_in_no_repr_and_no_identity(vllm: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with scorer_of(vllm, "vllm") as plain, scorer_of(vllm, "vllm", key_env="MY_KEY") as with_key:
        assert plain.identity() == with_key.identity()
        assert SECRET not in repr(with_key) + repr(with_key.options) + repr(with_key.server) + repr(vars(with_key))


# Saved forecasters


def fitted(prefcast_here: Run, server: RewardServer, tmp_path: Path, *more: str) -> Path:
    write_csv(
        tmp_path / "l.csv", [labelled(n % 3, id=n, prompt=(f"Q {n}",), a=("x " * n,), b=("y",)) for n in range(30)]
    )
    done = prefcast_here("fit", "l.csv", "--model", server.url, "--protocol", "vllm", "-o", "mine", *more)
    assert done.returncode == 0, done.stderr
    return tmp_path / "mine"


def test_a_saved_forecaster_asks_only_the_server_that_a_person_names(
    prefcast_here: Run, vllm: RewardServer, tmp_path: Path
) -> None:
    folder = fitted(prefcast_here, vllm, tmp_path)
    asked = vllm.asked
    done = prefcast_here("predict", "l.csv", "--forecaster", "mine", "-o", "o.csv")
    assert done.returncode == 2
    assert "--model URL beside --forecaster" in done.stderr
    assert vllm.asked == asked, "an address in a folder is never asked"
    done = prefcast_here("predict", "l.csv", "--forecaster", "mine", "--model", vllm.url, "-o", "o.csv")
    assert done.returncode == 0, done.stderr
    assert "30 of 30 rows were scored before" in done.stderr
    for more, said in (
        (("--max-tokens", "50"), "--max-tokens: is fixed in the forecaster"),
        (("--protocol", "tei"), "--protocol: is fixed in the forecaster"),
        (("--batch-tokens", "50"), "has no option --batch-tokens"),
        (("--served-name", "other"), "has no model 'other'"),
    ):
        done = prefcast_here("predict", "l.csv", "--forecaster", "mine", "--model", vllm.url, "-o", "p.csv", *more)
        assert done.returncode == 2
        assert said in done.stderr
    with pytest.raises(ForecasterError, match="names the server's address"):
        load_forecaster(folder, model="/some/folder")


def test_another_model_behind_the_address_is_refused(prefcast_here: Run, vllm: RewardServer, tmp_path: Path) -> None:
    fitted(prefcast_here, vllm, tmp_path)
    vllm.model = "another"
    done = prefcast_here("predict", "l.csv", "--forecaster", "mine", "--model", vllm.url, "-o", "o.csv", "--fresh")
    assert done.returncode == 2
    assert "serves the model 'another', and the outcome model was fitted for the model 'served'" in done.stderr


def test_a_tokenizer_that_moved_is_named_again(prefcast_here: Run, llama: Path, network: Any, tmp_path: Path) -> None:
    copy = tokenizer_only(llama, tmp_path / "tokenizer")
    with served("vllm", llama, compute=network) as server:
        fitted(prefcast_here, server, tmp_path, "--tokenizer", str(copy))
        copy.rename(tmp_path / "elsewhere")
        predict = ("predict", "l.csv", "--forecaster", "mine", "--model", server.url, "-o", "o.csv")
        done = prefcast_here(*predict)
        assert done.returncode == 2
        assert "say where it is: --tokenizer FOLDER" in done.stderr
        assert prefcast_here(*predict, "--tokenizer", "elsewhere").returncode == 0
        config = json.loads((tmp_path / "elsewhere" / "config.json").read_text()) | {"max_position_embeddings": 99}
        (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config))
        done = prefcast_here(*predict, "--tokenizer", "elsewhere")
        assert done.returncode == 2
        assert "does not make the texts that the outcome model was fitted for" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"key_env": "HOME"}}, "'key_env' may not be set by a file"),
        ({"options": {"key_file": "/etc/passwd"}}, "'key_file' may not be set by a file"),
        ({"options": {"tokenizer": "evil/model"}}, "'tokenizer' may not be set by a file"),
        ({"options": {"probe": "warn"}}, "'probe' may not be set by a file"),
        ({"options": {"protocol": 3}}, "of a wrong type"),
        ({"options": {"protocol": "ftp"}}, "unknown protocol"),
        ({"raw_names": ["evil"]}, "do not fit together"),
        ({"served": 3}, "do not fit together"),
        ({"format": 9}, "format 9"),
    ],
)
def test_a_saved_folder_may_set_little(
    prefcast_here: Run, vllm: RewardServer, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with scorer_of(vllm, "vllm") as remote:
        remote.save(tmp_path)
    data = json.loads((tmp_path / "remote.json").read_text())
    data = {**data, **change, "options": {**data["options"], **change.get("options", {})}}
    (tmp_path / "remote.json").write_text(json.dumps(data))
    with pytest.raises((ForecasterError, UsageError), match=said):
        RemoteScorer.load(tmp_path, vllm.url)


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": None}, "say what kind of server it is: --protocol vllm|sglang|tei|openrlhf"),
        ({"protocol": "grpc"}, "unknown protocol 'grpc'"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"timeout": float("nan")}, "--timeout must be at least"),
        ({"probe": "never"}, "unknown probe"),
        ({"key_env": "NOT_SET_ANYWHERE"}, "is not set"),
        ({"served_name": "other"}, "has no model 'other'; it has 'served'"),
        ({"max_tokens": 5000}, "reads at most 2048 tokens"),
    ],
)
def test_settings_that_cannot_be_are_told(vllm: RewardServer, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        scorer_at(vllm.url, Options(**{"protocol": "vllm", **options}))
    assert said in str(caught.value)


def test_a_server_that_reads_less_is_told_with_the_setting(vllm: RewardServer) -> None:
    vllm.limit = 512
    with scorer_of(vllm, "vllm") as remote, pytest.raises(UsageError, match="--max-tokens 512 reads no more"):
        remote.evidence(rows(1))
    with scorer_of(vllm, "vllm", max_tokens=512) as remote:
        assert not remote.evidence(rows(1)).problems


def test_options_go_to_the_server_by_name(vllm: RewardServer) -> None:
    scorer, _ = resolve_scorer(Choice(vllm.url, options=Options(protocol="vllm", concurrency=3)))
    assert isinstance(scorer, RemoteScorer)
    assert scorer.workers == 3
    scorer.close()
    with pytest.raises(UsageError, match="is not the address of a server"):
        scorer_at("http://user:pw@h", Options(protocol="vllm"))


def test_two_texts_go_only_where_they_are_taken(deberta: Path) -> None:
    with served("openrlhf", deberta) as server, scorer_of(server, "openrlhf", tokenizer=str(deberta)) as remote:
        assert "--template makes one text of them" in remote.texts.items(rows(1))[1][0]
        with pytest.raises(UsageError, match="the probe's own texts cannot be read"):
            remote.prepare()


def test_single_conversations_have_scores(vllm: RewardServer, llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    conversations = [
        [{"role": "user", "content": f"Q {n}"}, {"role": "assistant", "content": "A " * n}] for n in range(5)
    ]
    with caplog.at_level(logging.WARNING), scorer_of(vllm, "vllm") as remote:
        np.testing.assert_allclose(remote.score(conversations), load_scorer(llama).score(conversations), atol=1e-6)
        ready = [{"ids": [5, 6, 7]}, {"text": "<s>a<|im_end|>"}]
        np.testing.assert_allclose(remote.score(ready), load_scorer(llama).score(ready), atol=1e-6)
        vllm.limit = 10
        with pytest.raises(ModelError, match="conversation 0: the server refuses it"):
            remote.score(conversations)
    assert not caplog.records


def test_prefcast_itself_stands_where_such_a_server_stood(tmp_path: Path) -> None:
    """A reward model that `prefcast serve` serves scores as in this process, asked in the forms of OpenRLHF and vLLM."""
    folder = save_decoder(tmp_path / "m")
    # Without those that a server of texts refuses: special tokens.
    pairs = example_pairs()[:6]
    local = load_scorer(folder)
    # An ensemble with one reward model gives single texts the scores of that model.
    blend = BlendScorer([Member(local, WHOLE, 0.5, 0.0)], dict.fromkeys((*MARGIN_COVARIATES, *TIE_COVARIATES), 0.1))
    service = Service(Forecaster(blend, Davidson(1.0, 0.0, 0.0)))
    with in_process(service) as server:
        for protocol in ("openrlhf", "vllm"):
            remote = scorer_at(server.url, Options(protocol=protocol, tokenizer=str(folder)))
            with remote:
                found, wanted = remote.evidence(pairs), local.evidence(pairs)
            assert not found.problems
            np.testing.assert_allclose(found.margin, wanted.margin, atol=2e-5)
