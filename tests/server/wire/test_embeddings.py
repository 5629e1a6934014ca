"""A request's own embeddings over HTTP: who may bring them, which go, and what comes of them."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from guard.audit import AuditLog
from guard.config.keys import KeyRing
from guard.config.schema import load_config
from guard.plans.images import ImagePlan
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services.build import build_services
from server.services.images import BatchedImageService
from steering.images.textual_inversion import MAX_PLACEHOLDERS, MAX_VECTORS
from tests.server.conftest import key, listening
from tests.server.tiny_pipeline import NAN_WORD, WIDTH, WORDS, save_guards, save_pipeline

CONFIG = """
[server]
max_batch = 4
audit_log = "audit.jsonl"
[[models]]
name = "tiny"
source = "./model"
engine = "diffusers"
device = "cpu"
steps = 3
guidance_scale = 3.0
[[guards]]
name = "knife"
artifact = "knife.safetensors"
[policies.block-knife]
guards = ["knife"]
action = "block"
[policies.replace-knife]
guards = ["knife"]
action = "refine"
fallback = "replace"
replacement = "a cat"
"""
KEYS = "".join(
    f'[[keys]]\nhash = "{key(secret)["hash"]}"\ntenant = "t"\n'
    f'policies = ["none", "block-knife"]\nembeddings = {may}\n'
    for secret, may in (("may", "true"), ("not", "false"))
)


@dataclass
class Site:
    url: str
    service: BatchedImageService
    folder: Path

    def word(self, *words: str) -> Any:
        """The vocabulary's own vectors of `words`, as a client holds them."""
        table = self.service._engine.family.embeddings
        assert table is not None
        return table.detach()[[WORDS.index(word) for word in words]].numpy().astype("<f2")

    def post(self, prompt: str, secret: str = "may", **more: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "seed": 1} | more
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(
            f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=30
        )

    def image(self, prompt: str, **more: Any) -> str:
        (data,) = self.post(prompt, **more).json()["data"]
        return str(data["b64_json"])

    def refusal(self, embeddings: Any, prompt: str = "a <x>", **more: Any) -> str:
        """The message of a 400 that is about the embeddings, and stays so."""
        response = self.post(prompt, embeddings=embeddings, **more)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "embeddings"), response.text
        assert error["type"] == "invalid_request_error"
        assert self.service.queued() == 0
        return str(error["message"])


def b64(vectors: Any) -> str:
    return base64.b64encode(np.asarray(vectors, "<f2").tobytes()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    save_guards(folder, save_pipeline(folder / "model"))
    return folder


def served(folder: Path, config: str) -> Iterator[Site]:
    (folder / "config.toml").write_text(config)
    settings = load_config(folder / "config.toml")
    metrics = Metrics()
    assert settings.server.audit_log is not None
    with AuditLog(settings.server.audit_log) as audit:
        services = build_services(settings, Recorder(metrics.verdicts, audit))
        keys = KeyRing(settings.keys) if settings.keys else None
        app = create_app(settings, services, keys=keys, metrics=metrics)
        with listening(app, services) as (url, _):
            service = services["tiny"]
            assert isinstance(service, BatchedImageService)
            yield Site(url, service, folder)


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    yield from served(folder, CONFIG + KEYS)


# -- who may ------------------------------------------------------------------------------------


def test_a_key_that_may_draws_with_the_official_client(site: Site) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="may", max_retries=0, timeout=30)
    reply = client.images.generate(
        model="tiny",
        prompt="a <x>",
        extra_body={"seed": 1, "embeddings": {"<x>": b64(site.word("knife"))}},
    )
    assert reply.data is not None
    usual = site.image("a cat"), site.image("a <x>"), site.image("a knife")
    assert reply.data[0].b64_json not in usual[:2]


def test_a_key_that_may_not_is_told_what_to_change(site: Site) -> None:
    response = site.post("a <x>", "not", embeddings={"<x>": b64(site.word("cat"))})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (403, "embeddings")
    assert (error["type"], error["code"]) == ("permission_error", "embeddings_forbidden")
    assert "embeddings = true" in error["message"] and "[[keys]]" in error["message"]
    for nothing in ({}, None):
        assert site.post("a cat", "not", embeddings=nothing).status_code == 200


@pytest.mark.parametrize("may", [True, False])
def test_without_keys_the_server_says_who_may(folder: Path, may: bool) -> None:
    config = CONFIG.replace("[server]", "[server]\nembeddings = true") if may else CONFIG
    for site in served(folder, config):
        response = site.post("a <x>", embeddings={"<x>": b64(site.word("cat"))})
        assert response.status_code == (200 if may else 403)
        assert may or "[server]" in response.json()["error"]["message"]


# -- which go -----------------------------------------------------------------------------------


def test_a_words_own_vector_draws_what_the_word_draws(site: Site) -> None:
    """Up to float16; the tiny table's numbers are rounded on the way."""
    words, engine = site.word("cat", "dog"), site.service._engine
    drawn = site.post("a <x>", embeddings={"<x>": b64(words)})
    assert drawn.status_code == 200
    # it leaves the batch behind its answer
    for _ in range(100):
        if engine.rows == 0:
            break
        time.sleep(0.05)
    assert engine.rows == 0
    again = site.image("a <other-name>", embeddings={"<other-name>": b64(words)})
    assert drawn.json()["data"][0]["b64_json"] == again
    assert again != site.image("a <x>", embeddings={"<x>": b64(words[::-1])})


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([], "object"),
        ("AAAA", "object"),
        ({"<x>": 5}, "not base64"),
        ({"<x>": None}, "not base64"),
        ({"<x>": [0.5]}, "not base64"),
        ({"<x>": "AAA"}, "not base64"),
        ({"<x>": "AA*A"}, "not base64"),
        ({"<x>": "AAAÄ"}, "not base64"),
        ({"<x>": base64.b64encode(bytes(2 * WIDTH + 1)).decode()}, "odd number"),
        ({"<x>": b64(np.zeros(WIDTH - 1))}, f"vectors of {WIDTH} numbers"),
        ({"<x>": b64(np.zeros(WIDTH + 1))}, f"vectors of {WIDTH} numbers"),
        ({"<x>": ""}, "no vector"),
        ({"<x>": b64([np.nan] * WIDTH)}, "NaN or infinity"),
        ({"<x>": b64([np.inf] * WIDTH)}, "NaN or infinity"),
        ({"<x>": b64([60000.0] * WIDTH)}, "10 times the largest"),
        ({"<y>": b64(np.zeros(WIDTH))}, "not in the prompt"),
        ({"x": b64(np.zeros(WIDTH))}, "<name>"),
        ({"<x y>": b64(np.zeros(WIDTH))}, "<name>"),
        ({"<\x00>": b64(np.zeros(WIDTH))}, "<name>"),
        ({f"<{'x' * 33}>": b64(np.zeros(WIDTH))}, "<name>"),
        ({"<x>": b64(np.zeros((MAX_VECTORS + 1, WIDTH)))}, f"most is {MAX_VECTORS}"),
        ({f"<x{i}>": "" for i in range(MAX_PLACEHOLDERS + 1)}, f"most is {MAX_PLACEHOLDERS}"),
        ({"<x>": b64(np.zeros((6, WIDTH)))}, "words to stand in"),
    ],
)
def test_what_does_not_go_is_refused(site: Site, embeddings: Any, message: str) -> None:
    told = site.refusal(embeddings)
    assert message in told and len(told) < 300 and "\x00" not in told


def test_the_largest_norm_is_listed_and_holds(site: Site) -> None:
    headers = {"Authorization": "Bearer may"}
    facts = httpx.get(f"{site.url}/v1/models/tiny", headers=headers).json()["guard"]["embeddings"]
    finite = site.word(*(word for word in WORDS if word != NAN_WORD)).astype("f8")
    assert facts["width"] == WIDTH
    assert facts["largest_norm"] == pytest.approx(
        10 * np.linalg.norm(finite, axis=1).max(), rel=1e-3
    )
    vector = np.zeros(WIDTH)
    vector[0] = facts["largest_norm"]
    assert site.post("a <x>", embeddings={"<x>": b64(0.99 * vector)}).status_code == 200
    assert "the most is" in site.refusal({"<x>": b64(1.01 * vector)})


def test_a_negative_prompt_takes_none(site: Site) -> None:
    own = {"<x>": b64(site.word("cat"))}
    assert "negative_prompt" in site.refusal(own, negative_prompt="no <x>")


def test_a_model_of_several_encoders_takes_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.service, "info", replace(site.service.info, embeddings=None))
    told = site.refusal({"<x>": b64(site.word("cat"))})
    assert "several text encoders" in told


# -- what comes of them -------------------------------------------------------------------------


def test_guards_see_what_the_words_say_and_say_it(site: Site) -> None:
    knife, cat = ({"<x>": b64(site.word(word))} for word in ("knife", "cat"))
    asked = {"prompt": "a <x>", "guard": {"policy": "block-knife"}}
    blocked = site.post(**asked, embeddings=knife)
    assert blocked.status_code == 400
    assert blocked.json()["error"]["code"] == "content_policy_violation"
    assert site.post(**asked, embeddings=cat).status_code == 200
    past = "cat " * 24 + "<x> " * 12
    assert site.post(past, guard=asked["guard"], embeddings=knife).status_code == 400
    assert site.post(past, guard=asked["guard"], embeddings=cat).status_code == 200


def test_each_image_of_a_request_has_them(site: Site) -> None:
    own = {"<x>": b64(site.word("knife"))}
    first, second = site.post("a <x>", n=2, embeddings=own).json()["data"]
    assert second["b64_json"] == site.image("a <x>", embeddings=own, seed=2)
    assert first["b64_json"] != second["b64_json"]


def test_a_replacement_is_drawn_without_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own prompt does not hold the client's word."""
    config = CONFIG.replace("[server]", "[server]\nembeddings = true")
    for site in served(folder, config):
        own = {"<x>": b64(site.word("knife"))}
        monkeypatch.setattr(
            ImagePlan, "decide", lambda plan, _: "replace" if plan.replacement else "generate"
        )
        drawn = site.image("a <x>", embeddings=own, guard={"policy": "replace-knife"})
        monkeypatch.undo()
        assert drawn == site.image("a cat")


def test_values_are_in_no_log_and_no_audit_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vectors = site.word("knife", "cat")
    text = b64(vectors)
    site.post("a <x>", embeddings={"<x>": text})
    site.post("a <x>", embeddings={"<x>": text[:-3]})
    site.post("a <x>", embeddings={"<x>": text}, guard={"policy": "block-knife"})
    said = caplog.text + (site.folder / "audit.jsonl").read_text()
    assert "block-knife" in said
    assert text[:12] not in said and f"{float(vectors[0, 0]):.3f}" not in said


def test_the_schema_is_in_the_document(site: Site) -> None:
    document = httpx.get(f"{site.url}/openapi.json").json()
    properties = document["components"]["schemas"]["ImageRequest"]["properties"]
    assert properties["embeddings"]["additionalProperties"] == {"type": "string"}
