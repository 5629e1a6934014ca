"""Embeddings in image requests over HTTP: permission, validation, effect."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from guard.audit import AuditLog
from guard.config.schema import load_config
from guard.plans.images import ImagePlan
from guard.tenants.keys import KeyRing
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services.build import build_services
from server.services.images import BatchedImageService
from steering.images.textual_inversion import MAX_PLACEHOLDERS, MAX_VECTORS
from tests.server.live_server import HttpServer, key, serve_app
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
    f'policies = ["none", "block-knife"]\nembeddings = {allowed}\n'
    for secret, allowed in (("may", "true"), ("not", "false"))
)


@dataclass
class EmbeddingServer(HttpServer):
    service: BatchedImageService
    folder: Path

    def word(self, *words: str) -> Any:
        """The vocabulary's vectors of `words` in float16, as a client sends them."""
        table = self.service._engine.family.embeddings
        assert table is not None
        return table.detach()[[WORDS.index(word) for word in words]].numpy().astype("<f2")

    def post(self, prompt: str, secret: str = "may", **options: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "seed": 1} | options
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(
            f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=30
        )

    def image(self, prompt: str, **options: Any) -> str:
        (data,) = self.post(prompt, **options).json()["data"]
        return str(data["b64_json"])

    def refusal(self, embeddings: Any, prompt: str = "a <x>", **options: Any) -> str:
        """The message of a 400 about the embeddings."""
        response = self.post(prompt, embeddings=embeddings, **options)
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


def serve(folder: Path, config: str) -> Iterator[EmbeddingServer]:
    (folder / "config.toml").write_text(config)
    settings = load_config(folder / "config.toml")
    metrics = Metrics()
    assert settings.server.audit_log is not None
    with AuditLog(settings.server.audit_log) as audit:
        services = build_services(settings, Recorder(metrics.verdicts, audit))
        keys = KeyRing(settings.keys) if settings.keys else None
        app = create_app(settings, services, keys=keys, metrics=metrics)
        with serve_app(app, services) as (url, _):
            service = services["tiny"]
            assert isinstance(service, BatchedImageService)
            yield EmbeddingServer(url, service, folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[EmbeddingServer]:
    yield from serve(folder, CONFIG + KEYS)


# -- permission --------------------------------------------------------------------------------


def test_a_key_with_embeddings_works_with_the_official_client(server: EmbeddingServer) -> None:
    reply = server.client("may").images.generate(
        model="tiny",
        prompt="a <x>",
        extra_body={"seed": 1, "embeddings": {"<x>": b64(server.word("knife"))}},
    )
    assert reply.data is not None
    usual = server.image("a cat"), server.image("a <x>"), server.image("a knife")
    assert reply.data[0].b64_json not in usual[:2]


def test_a_key_without_embeddings_gets_an_error_that_says_what_to_change(
    server: EmbeddingServer,
) -> None:
    response = server.post("a <x>", "not", embeddings={"<x>": b64(server.word("cat"))})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (403, "embeddings")
    assert (error["type"], error["code"]) == ("permission_error", "embeddings_forbidden")
    assert "embeddings = true" in error["message"] and "[[keys]]" in error["message"]
    for nothing in ({}, None):
        assert server.post("a cat", "not", embeddings=nothing).status_code == 200


@pytest.mark.parametrize("may", [True, False])
def test_without_keys_the_server_setting_decides(folder: Path, may: bool) -> None:
    config = CONFIG.replace("[server]", "[server]\nembeddings = true") if may else CONFIG
    for server in serve(folder, config):
        response = server.post("a <x>", embeddings={"<x>": b64(server.word("cat"))})
        assert response.status_code == (200 if may else 403)
        assert may or "[server]" in response.json()["error"]["message"]


# -- validation --------------------------------------------------------------------------------


def test_the_vector_of_a_word_generates_the_image_of_the_word(server: EmbeddingServer) -> None:
    """The vectors are rounded to float16, so two requests with them are compared."""
    words, engine = server.word("cat", "dog"), server.service._engine
    reply = server.post("a <x>", embeddings={"<x>": b64(words)})
    assert reply.status_code == 200
    # the row leaves the batch after its response
    server.wait_until(lambda: engine.rows == 0)
    again = server.image("a <other-name>", embeddings={"<other-name>": b64(words)})
    assert reply.json()["data"][0]["b64_json"] == again
    assert again != server.image("a <x>", embeddings={"<x>": b64(words[::-1])})


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
def test_unusable_embeddings_are_refused(
    server: EmbeddingServer, embeddings: Any, message: str
) -> None:
    error = server.refusal(embeddings)
    assert message in error and len(error) < 300 and "\x00" not in error


def test_the_largest_norm_is_listed_and_holds(server: EmbeddingServer) -> None:
    headers = {"Authorization": "Bearer may"}
    facts = httpx.get(f"{server.url}/v1/models/tiny", headers=headers).json()["guard"]["embeddings"]
    finite = server.word(*(word for word in WORDS if word != NAN_WORD)).astype("f8")
    assert facts["width"] == WIDTH
    assert facts["largest_norm"] == pytest.approx(
        10 * np.linalg.norm(finite, axis=1).max(), rel=1e-3
    )
    vector = np.zeros(WIDTH)
    vector[0] = facts["largest_norm"]
    assert server.post("a <x>", embeddings={"<x>": b64(0.99 * vector)}).status_code == 200
    assert "the most is" in server.refusal({"<x>": b64(1.01 * vector)})


def test_a_negative_prompt_takes_no_embeddings(server: EmbeddingServer) -> None:
    embeddings = {"<x>": b64(server.word("cat"))}
    assert "negative_prompt" in server.refusal(embeddings, negative_prompt="no <x>")


def test_a_model_of_several_encoders_takes_no_embeddings(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "info", replace(server.service.info, embeddings=None))
    error = server.refusal({"<x>": b64(server.word("cat"))})
    assert "several text encoders" in error


# -- effect ------------------------------------------------------------------------------------


def test_guards_read_embeddings_and_the_verdict_shows_it(server: EmbeddingServer) -> None:
    knife, cat = ({"<x>": b64(server.word(word))} for word in ("knife", "cat"))
    blocking = {"prompt": "a <x>", "guard": {"policy": "block-knife"}}
    blocked = server.post(**blocking, embeddings=knife)
    assert blocked.status_code == 400
    assert blocked.json()["error"]["code"] == "content_policy_violation"
    assert server.post(**blocking, embeddings=cat).status_code == 200
    past = "cat " * 24 + "<x> " * 12
    assert server.post(past, guard=blocking["guard"], embeddings=knife).status_code == 400
    assert server.post(past, guard=blocking["guard"], embeddings=cat).status_code == 200


def test_each_image_of_a_request_has_the_embeddings(server: EmbeddingServer) -> None:
    embeddings = {"<x>": b64(server.word("knife"))}
    first, second = server.post("a <x>", n=2, embeddings=embeddings).json()["data"]
    assert second["b64_json"] == server.image("a <x>", embeddings=embeddings, seed=2)
    assert first["b64_json"] != second["b64_json"]


def test_a_replacement_has_no_embeddings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replacement prompt is the operator's and has no placeholder."""
    config = CONFIG.replace("[server]", "[server]\nembeddings = true")
    for server in serve(folder, config):
        embeddings = {"<x>": b64(server.word("knife"))}
        monkeypatch.setattr(
            ImagePlan, "decide", lambda plan, _: "replace" if plan.replacement else "generate"
        )
        image = server.image("a <x>", embeddings=embeddings, guard={"policy": "replace-knife"})
        monkeypatch.undo()
        assert image == server.image("a cat")


def test_values_are_in_no_log_and_no_audit_line(
    server: EmbeddingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vectors = server.word("knife", "cat")
    text = b64(vectors)
    server.post("a <x>", embeddings={"<x>": text})
    server.post("a <x>", embeddings={"<x>": text[:-3]})
    server.post("a <x>", embeddings={"<x>": text}, guard={"policy": "block-knife"})
    logged = caplog.text + (server.folder / "audit.jsonl").read_text()
    assert "block-knife" in logged
    assert text[:12] not in logged and f"{float(vectors[0, 0]):.3f}" not in logged


def test_the_schema_is_in_the_document(server: EmbeddingServer) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    properties = document["components"]["schemas"]["ImageRequest"]["properties"]
    kinds = properties["embeddings"]["anyOf"]  # null stands for its absence
    assert {"additionalProperties": {"type": "string"}, "type": "object"} in kinds
