"""Embeddings of a language model and of a sentence encoder, asked for with OpenAI's client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray

from classifiers.text.encoder.conversion import convert
from classifiers.text.encoder.model import MOST_TOKENS, TextEncoder
from guard.audit import AuditLog
from guard.config.schema import load_config
from guard.plans.screens import TextPlans
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from server.services.build import build_services
from steering.engines.transformers.loading.models import load_language_model
from tests.classifiers.text import tiny_bert
from tests.server.live_server import HttpServer, serve_app
from tests.server.screen_configs import write_list
from tests.server.tiny_text_service import TinyTextModel, tokenizer

CONFIG = """
[server]
audit_log = "audit.jsonl"
max_prefill_tokens = 16
[[models]]
name = "tiny"
source = "{model}"
device = "cpu"
[[models]]
name = "encoder"
source = "{encoder}"
engine = "onnxruntime"
[[guards]]
name = "always"
artifact = "always.safetensors"
[[patterns]]
name = "words"
source = "{words}"
[policies.steered]
guards = ["always"]
[policies.screened]
guards = ["words"]
action = "block"
[policies.both]
guards = ["words", "always"]
action = "block"
"""


@dataclass
class Embeddings(HttpServer):
    folder: Path

    def post(self, model: str, input: Any, **more: Any) -> httpx.Response:
        body = {"model": model, "input": input, **more}
        return httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=20)

    def vectors(self, model: str, input: Any, **more: Any) -> NDArray[np.float64]:
        made = self.client().embeddings.create(model=model, input=input, **more)
        assert [item.index for item in made.data] == list(range(len(made.data)))
        return np.array([item.embedding for item in made.data])

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").open()]


@pytest.fixture(scope="module")
def server(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embeddings]:
    folder = tiny_model.copy(tmp_path_factory.mktemp("embeddings"))
    encoder = folder / "encoder"
    encoder.mkdir()
    convert(tiny_bert.write(folder / "bert"), encoder, name="tiny", precision="int8")
    names = {"model": tiny_model.folder / "model", "encoder": encoder, "words": write_list(folder)}
    (folder / "config.toml").write_text(CONFIG.format(**names))
    config = load_config(folder / "config.toml")
    metrics = Metrics()
    plans = TextPlans(config)
    assert config.server.audit_log is not None
    with AuditLog(config.server.audit_log) as audit:
        recorder = Recorder(metrics.verdicts, audit)
        services = build_services(config, recorder)
        screener = Screener(plans.cascade, plans.images)
        screens = Screens(plans, screener, recorder)
        app = create_app(config, services, metrics=metrics, screens=screens)
        with serve_app(app, services) as (url, _):
            yield Embeddings(url, folder)


def test_a_language_model_gives_the_mean_of_its_states(
    server: Embeddings, tiny_model: TinyTextModel
) -> None:
    texts = ["one tale", "another tale that is longer than a part", "x"]
    model, *_ = load_language_model(str(tiny_model.folder / "model"), device="cpu")
    for vector, text in zip(server.vectors("tiny", texts), texts, strict=True):
        with torch.inference_mode():
            ids = tokenizer()(text, return_tensors="pt").input_ids
            mean = model.model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


def test_an_encoder_gives_what_it_gives_screens(server: Embeddings) -> None:
    encoder = TextEncoder.load(server.folder / "encoder")
    made = server.vectors("encoder", ["the quick fox", "lazy"])
    np.testing.assert_allclose(made, encoder.encode(["the quick fox", "lazy"]).embeddings, 1e-5)
    long = server.vectors("encoder", "the quick brown fox jumps over the lazy dog " * 40)
    assert np.linalg.norm(long[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("model", ["tiny", "encoder"])
def test_formats_and_kinds_of_input_agree(server: Embeddings, model: str) -> None:
    text = "the quick fox"
    coded = server.vectors(model, text)
    plain = server.vectors(model, [text], encoding_format="float")
    np.testing.assert_array_equal(coded.astype("f4"), plain.astype("f4"))
    if model == "tiny":
        ids = tokenizer()(text).input_ids
    else:
        ids = TextEncoder.load(server.folder / "encoder").tokens(text)
    for given in (ids, [ids]):
        np.testing.assert_array_equal(server.vectors(model, given), coded)
    body = server.post(model, [text, text]).json()
    assert body["usage"] == {"prompt_tokens": 2 * len(ids), "total_tokens": 2 * len(ids)}
    assert body["guard"]["outcome"] == "pass" and body["model"] == model


def test_many_requests_at_once_agree_with_each_alone(server: Embeddings) -> None:
    texts = [f"tale number {n} " + "and on " * n for n in range(12)]
    alone = [server.vectors("tiny", text)[0] for text in texts]
    with ThreadPoolExecutor(6) as pool:
        together = [*pool.map(lambda text: server.vectors("tiny", text)[0], texts)]
        whole = {"ignore_eos": True}  # a sampled end token would end it before
        chat = server.client().completions.create(
            model="tiny", prompt="x", max_tokens=20, extra_body=whole
        )
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert chat.usage and chat.usage.completion_tokens == 20


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ({"input": ""}, "invalid_parameter", r"input\[0\] is empty"),
        ({"input": ["a", ""]}, "invalid_parameter", r"input\[1\] is empty"),
        ({"input": []}, "invalid_parameter", "give a string"),
        ({"input": [-1]}, "invalid_parameter", "give a string"),
        ({"input": [10**6]}, "invalid_parameter", "token ids must lie in 0.."),
        ({"input": ["a"] * 2049}, "invalid_parameter", "at most 2048"),
        ({"input": "a", "dimensions": 8}, "unsupported_parameter", "leave 'dimensions' out"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_parameter", "encoding_format"),
        ({"input": "a", "n": 2}, "unknown_parameter", "'n'"),
    ],
)
@pytest.mark.parametrize("model", ["tiny", "encoder"])
def test_bad_requests_say_what_to_change(
    server: Embeddings, model: str, body: dict[str, Any], code: str, reason: str
) -> None:
    answer = server.post(model, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] in body and error["code"] == code
    assert re.search(reason, error["message"]), error["message"]


def test_a_text_that_is_too_long_is_refused(server: Embeddings) -> None:
    for model, most in (("tiny", 256), ("encoder", MOST_TOKENS)):
        ids = [5] * (most + 1)
        answer = server.post(model, ids)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert server.post(model, ids[1:], dimensions=None).status_code == 200


def test_models_are_asked_for_what_they_do(server: Embeddings) -> None:
    client = server.client()
    listed = {model.id: model.model_dump()["guard"] for model in client.models.list()}
    can = ["chat", "completions", "structured_output", "embeddings"]
    assert listed["tiny"]["capabilities"] == can
    assert listed["encoder"]["capabilities"] == ["embeddings"]
    assert listed["tiny"]["embedding_width"] == 32
    with pytest.raises(openai.NotFoundError, match=r"generates no text: use /v1/embeddings"):
        client.completions.create(model="encoder", prompt="x")


@pytest.mark.parametrize("model", ["tiny", "encoder"])
def test_screens_read_the_inputs(server: Embeddings, model: str) -> None:
    policy = {"guard": {"policy": "screened"}}
    assert server.post(model, ["a tale", "x"], **policy).json()["guard"]["outcome"] == "pass"
    refused = server.post(model, ["a tale", "a forbidden thing"], **policy)
    assert refused.status_code == 400, refused.text
    assert refused.json()["guard"]["outcome"] == "blocked"
    # ids of tokens are no text that a screen could read
    assert server.post(model, [5, 6], **policy).status_code >= 400
    outcomes = [record["outcome"] for record in server.records()[-3:]]
    assert outcomes[:2] == ["pass", "blocked"]


@pytest.mark.parametrize("model", ["tiny", "encoder"])
def test_a_guard_of_the_model_cannot_act_and_says_so(server: Embeddings, model: str) -> None:
    answer = server.post(model, "a tale", guard={"policy": "steered"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "guard.policy"


def test_a_language_model_refuses_a_policy_of_which_a_part_cannot_act(server: Embeddings) -> None:
    answer = server.post("tiny", "a tale", guard={"policy": "both"})
    assert answer.status_code == 400
    assert "always" in answer.json()["error"]["message"]
