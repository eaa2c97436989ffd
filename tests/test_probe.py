"""The probe of a server: it finds every fault that a fake can have, and none where there is none."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoints import LABELS, save_deberta, save_decoder
from conftest import EXAMPLES, Run
from prefcast.errors import ServiceError
from prefcast.scorers.remote.probe import Report
from prefcast.testing import FakeTei, FakeVllm, Faults
from remote_models import FAKES, scorer_of, served, tokenizer_only

KINDS = tuple(FAKES)


def drawn(seed: int, labels: int = 1) -> Any:
    """What a sound server may give: scores of any place and width, which each token changes."""
    chance = random.Random(seed)
    centre, width = chance.gauss(0, 3), 10 ** chance.uniform(-0.5, 1)

    def compute(sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        draws = [random.Random(hashlib.sha256(repr((seed, ids)).encode()).digest()) for ids, _ in sequences]
        return [[centre + width * draw.gauss(0, 1) for _ in range(labels)] for draw in draws]

    return compute


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Tokenizers and config.json of models with one label and with three, by protocol and labels."""
    room = tmp_path_factory.mktemp("models")
    one = tokenizer_only(save_decoder(room / "one-whole"), room / "one")
    three = tokenizer_only(save_decoder(room / "three-whole", labels=3, names=LABELS), room / "three")
    encoder = tokenizer_only(save_deberta(room / "encoder-whole"), room / "encoder")
    framed = tokenizer_only(three, room / "framed")
    told = json.loads((framed / "tokenizer_config.json").read_text()) | {"cls_token": "<s>"}
    (framed / "tokenizer_config.json").write_text(json.dumps(told))
    return {
        **{(kind, 1): one for kind in KINDS},
        **{(kind, 3): three for kind in KINDS},
        ("tei", 1): encoder,
        ("tei", 3): framed,
    }


def probed(models: dict[tuple[str, int], Path], kind: str, width: int = 1, seed: int = 1, **faults: Any) -> Report:
    model = models[kind, width]
    with (
        served(kind, model, compute=drawn(seed, width), faults=Faults(**faults)) as server,
        scorer_of(server, kind, tokenizer=str(model)) as remote,
    ):
        report: Report = remote.probed()
        assert server.ignored == [] or {"knows", "squash"} & set(faults)
        return report


@pytest.mark.parametrize(("labels", "seeds"), [(1, range(5)), (3, range(5, 8))])
@pytest.mark.parametrize("kind", KINDS)
def test_sound_servers_raise_no_alarm(models: Any, kind: str, labels: int, seeds: range) -> None:
    for seed in seeds:
        if labels == 1 or kind != "openrlhf":
            assert probed(models, kind, labels, seed).findings == [], (kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_sound_servers_raise_no_alarm(models: Any, kind: str) -> None:
    for seed in range(200):
        labels = 3 if seed % 4 == 3 and kind != "openrlhf" else 1
        assert probed(models, kind, labels, seed).findings == [], (kind, seed)


# (protocol, labels, fault, what is found, in which words)
FOUND = [
    *((kind, 1, {"squash": "sigmoid"}, "scale", "as after a sigmoid") for kind in KINDS),
    *((kind, 1, {"squash": "softmax"}, "scale", "exactly 1: a softmax over one label") for kind in KINDS),
    *((kind, 3, {"squash": "softmax"}, "scale", "a softmax over the labels") for kind in ("vllm", "sglang", "tei")),
    *((kind, 3, {"squash": "sigmoid"}, "scale", "as after a sigmoid") for kind in ("vllm", "sglang", "tei")),
    ("vllm", 1, {"knows": ()}, "scale", "as after a sigmoid"),
    ("tei", 1, {"knows": ()}, "scale", "as after a sigmoid"),
    ("vllm", 3, {"knows": ()}, "scale", "a softmax over the labels"),
    *((kind, 1, {"adds_first": True}, "tokens", "a second first token") for kind in KINDS),
    *((kind, 1, {"cuts_at": 200}, "cut", "") for kind in KINDS),
    *((kind, 1, {"cuts_at": 10}, "cut", "of a short text") for kind in ("vllm", "sglang", "tei")),
    *((kind, 1, {"sorts": True}, "order", "not in the order of the texts") for kind in KINDS),
    *((kind, 1, {"batch_noise": 0.05}, "batch", "scores depend on the batch") for kind in KINDS),
    *(
        (
            kind,
            3,
            {"labels": ("winner_model_b", "winner_model_a", "winner_tie")},
            "labels",
            "the server names its outputs",
        )
        for kind in ("vllm", "tei")
    ),
    ("openrlhf", 1, {"ends_texts": True}, "tokens", "behind a text that does not end so"),
]


@pytest.mark.parametrize(
    ("kind", "labels", "fault", "found", "said"), FOUND, ids=[f"{each[0]}-{each[1]}-{each[2]}" for each in FOUND]
)
def test_every_fault_is_found_with_what_mends_it(
    models: Any, tmp_path: Path, kind: str, labels: int, fault: dict[str, Any], found: str, said: str
) -> None:
    if "ends_texts" in fault:
        # A model whose end token is not its padding: an end token more changes the score.
        model = tokenizer_only(models[kind, labels], tmp_path / "model")
        config = json.loads((model / "config.json").read_text()) | {"pad_token_id": 2}
        (model / "config.json").write_text(json.dumps(config))
        models = {(kind, labels): model}
    report = probed(models, kind, labels, **fault)
    (finding,) = [each for each in report.findings if each.kind == found]
    assert said in finding.fact
    assert finding.mend
    assert [each.kind for each in report.findings if each.kind not in (found, "cut")] == []
    doubt = found == "batch" or (kind == "openrlhf" and found == "tokens")
    assert finding.fault is not doubt


@pytest.mark.parametrize("switch", ["activation", "softmax"])
def test_older_versions_of_vllm_are_asked_by_their_own_word(models: Any, switch: str) -> None:
    report = probed(models, "vllm", knows=(switch,))
    assert report.findings == []
    assert ("scale", f"raw: {switch} changes the scores (this version calls the field {switch})") in report.looked


def test_raw_scores_between_0_and_1_are_raw_where_a_switch_shows_it(models: Any) -> None:
    def compute(sequences: Any) -> Any:
        return [[random.Random(repr(ids)).uniform(0.1, 0.9)] for ids, _ in sequences]

    for kind in ("vllm", "tei"):
        model = models[kind, 1]
        with served(kind, model, compute=compute) as server, scorer_of(server, kind, tokenizer=str(model)) as remote:
            assert remote.probed().findings == []


def test_a_server_that_squashes_is_refused_and_may_be_taken_by_a_word(prefcast_here: Run, models: Any) -> None:
    model = models["openrlhf", 1]
    with served("openrlhf", model, compute=drawn(1), faults=Faults(squash="sigmoid")) as server:
        command = (
            "score",
            EXAMPLES,
            "-o",
            "out.csv",
            "--model",
            server.url,
            "--protocol",
            "openrlhf",
            "--tokenizer",
            model,
        )
        done = prefcast_here(*command)
        assert done.returncode == 2
        assert "lie between 0 and 1, as after a sigmoid; take the sigmoid out of the server" in done.stderr
        done = prefcast_here(*command, "--probe", "warn")
        assert done.returncode == 0
        assert "as after a sigmoid" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_models_probe_says_what_it_looked_at(prefcast_here: Run, models: Any, kind: str) -> None:
    model = models[kind, 1]
    with served(kind, model, compute=drawn(1)) as server:
        command = ("models", "probe", server.url, "--protocol", kind, "--tokenizer", model)
        done = prefcast_here(*command)
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == ["scale", "order", "batch", "tokens"]
        server.faults = Faults(squash="sigmoid", sorts=True)
        done = prefcast_here(*command)
        assert done.returncode == 2
        assert done.stdout.count("\nfault  ") == 2
        assert "2 fault(s)" in done.stderr


def test_hidden_states_and_a_dead_end_are_told(models: Any) -> None:
    def hidden(sequences: Any) -> Any:
        return [[0.5] * 64 for _ in sequences]

    model = models["vllm", 1]
    with served("vllm", model, compute=hidden) as server, scorer_of(server, "vllm", tokenizer=str(model)) as remote:
        (finding,) = remote.probed().findings
        assert "hidden states, no scores" in finding.fact
        assert "--runner pooling --convert classify" in finding.mend
    with (
        served("vllm", model, compute=drawn(1), faults=Faults(refuses="input")) as server,
        scorer_of(server, "vllm", tokenizer=str(model)) as remote,
        pytest.raises(ServiceError, match="refuses a plain text"),
    ):
        remote.prepare()
    with (
        served("vllm", model, compute=lambda sequences: [[2.5]] * len(sequences)) as server,
        scorer_of(server, "vllm", tokenizer=str(model)) as remote,
    ):
        assert "every text has the same score, 2.5" in remote.probed().findings[0].fact


def test_a_probe_is_made_once_a_run(models: Any) -> None:
    from prefcast import Pair

    model = models["vllm", 1]
    with served("vllm", model, compute=drawn(1)) as server, scorer_of(server, "vllm", tokenizer=str(model)) as remote:
        remote.evidence([Pair.of("Q", "a", "b")])
        asked = server.asked
        remote.evidence([Pair.of("Q", "a", "c")])
        assert server.asked == asked + 1
        assert asked < 20


# The fakes themselves


@pytest.mark.parametrize(
    ("kind", "path", "body", "status"),
    [
        ("vllm", "/classify", {"model": "served"}, 400),
        ("vllm", "/classify", {"model": "served", "input": [[1]], "messages": []}, 400),
        ("vllm", "/classify", {"model": "served", "input": {"a": 1}}, 400),
        ("vllm", "/classify", {"model": "served", "input": [[1]], "use_activation": "no"}, 400),
        ("vllm", "/classify", {"model": "other", "input": [[1]]}, 404),
        ("vllm", "/classify", {"model": "served", "input": [[1] * 3000]}, 400),
        ("vllm", "/classify", {"model": "served", "input": [[1]], "activation": False}, 200),
        ("vllm", "/v1/classify", {"model": "served", "input": [[1]]}, 404),
        ("sglang", "/classify", {}, 400),
        ("sglang", "/classify", {"text": "a", "input_ids": [1]}, 400),
        ("sglang", "/classify", {"input_ids": [[1.5]]}, 400),
        ("sglang", "/classify", {"input_ids": [[1], [2]]}, 200),
        ("tei", "/predict", {"inputs": []}, 422),
        ("tei", "/predict", {"text": "a"}, 422),
        ("tei", "/predict", {"inputs": ["a", "b", "c"]}, 422),
        ("tei", "/predict", {"inputs": [["a"]] * 33}, 413),
        ("tei", "/predict", {"inputs": [["a"]], "raw_scores": 1}, 422),
        ("tei", "/predict", {"inputs": [["word " * 3000]], "truncate": False}, 413),
        ("tei", "/predict", {"inputs": [["word " * 3000]]}, 200),
        ("openrlhf", "/get_reward", {"prompts": []}, 500),
        ("openrlhf", "/get_reward", {"query": "text"}, 500),
        ("openrlhf", "/get_reward", {"query": ["word " * 5000]}, 200),
    ],
)
def test_fakes_refuse_what_the_real_ones_refuse(models: Any, kind: str, path: str, body: Any, status: int) -> None:
    import httpx2

    with served(kind, models[kind, 1], compute=drawn(1)) as server:
        answer = httpx2.post(server.url + path, json=body, trust_env=False)
    assert answer.status_code == status, answer.text
    assert (server.ignored != []) == ("activation" in body)


def test_fakes_speak_as_the_real_ones_do(models: Any) -> None:
    import httpx2

    def ask(server: Any, path: str, **body: Any) -> Any:
        return httpx2.post(server.url + path, json=body, trust_env=False).json()

    with served("vllm", models["vllm", 1], compute=lambda rows: [[float(len(ids))] for ids, _ in rows]) as vllm:
        assert isinstance(vllm, FakeVllm)
        # A text gets a first token, ids do not, and one label goes through a sigmoid unless it is told not to.
        assert ask(vllm, "/classify", input="a", use_activation=False)["data"][0]["probs"] == [2.0]
        assert ask(vllm, "/classify", input=[5], use_activation=False)["data"][0]["probs"] == [1.0]
        assert 0.7 < ask(vllm, "/classify", input=[5])["data"][0]["probs"][0] < 0.74
    with served("tei", models["tei", 3], compute=lambda rows: [[1.0, 3.0, 2.0] for _ in rows]) as tei:
        assert isinstance(tei, FakeTei)
        (row,) = ask(tei, "/predict", inputs=[["a"]], raw_scores=True)
        assert [(each["label"], each["score"]) for each in row] == [
            ("winner_model_b", 3.0),
            ("winner_tie", 2.0),
            ("winner_model_a", 1.0),
        ]
        # Two texts in a list are one pair.
        assert len(ask(tei, "/predict", inputs=["a", "b"])) == 3
    with served("sglang", models["sglang", 1], compute=lambda rows: [[7.5] for _ in rows]) as sglang:
        assert ask(sglang, "/v1/classify", model="m", input="a")["data"][0]["probs"] == [1.0]
        assert ask(sglang, "/classify", text="a")["embedding"] == [7.5]
