"""A language model that writes images, from its folder to images over HTTP, with real guards."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from guard.config.schema import load_config
from guard.errors import ModelError
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services.build import build_services
from server.services.token_images import TokenImageService
from steering.engines.transformers.image_tokens import IMAGE_TOKENS
from tests.server.live_server import HttpServer, serve_app
from tests.server.running_service import Records
from tests.server.tiny_text_service import NAN_LETTER
from tests.server.tiny_token_images import (
    COLUMNS,
    LONGEST,
    ROWS,
    SETTINGS,
    save_guards,
    save_model,
)

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
SIZE = f"{4 * COLUMNS}x{4 * ROWS}"

CONFIG = """
[server]
max_batch = 4
max_images = 6
[[models]]
name = "tiny"
source = "./model"
device = "cpu"
[[guards]]
name = "always"
artifact = "always.safetensors"
[[guards]]
name = "never"
artifact = "never.safetensors"
[[guards]]
name = "again"
artifact = "always.safetensors"
recheck = 1e9
[policies.steer]
guards = ["always"]
[policies.silent]
guards = ["never"]
[policies.observe]
guards = ["always"]
action = "observe"
[policies.block]
guards = ["always"]
action = "block"
[policies.say]
guards = ["always"]
action = "say"
message = "No such image here."
[policies.rewind]
guards = ["again"]
rewind = true
"""


@dataclass
class TinyImageServer(HttpServer):
    service: TokenImageService
    verdicts: list[Any] = field(default_factory=list)

    def post(self, prompt: str = "a cat", policy: str = "none", **options: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "seed": 1, "guard": {"policy": policy}} | options
        return httpx.post(f"{self.url}{IMAGES}", json=body, timeout=20)

    def png(self, prompt: str = "a cat", policy: str = "none", **options: Any) -> bytes:
        (data,) = self.post(prompt, policy, **options).json()["data"]
        return base64.b64decode(data["b64_json"])

    def weights(self) -> str:
        digest = hashlib.sha256()
        model = self.service._engine._run._model
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_guards(folder, save_model(folder / "model"))
    (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TinyImageServer]:
    config = load_config(folder / "config.toml")
    metrics = Metrics()
    records = Records(Recorder(metrics.verdicts, None), metrics)
    services = build_services(config, records)
    app = create_app(config, services, metrics=metrics)
    with serve_app(app, services) as (url, _):
        service = services["tiny"]
        assert isinstance(service, TokenImageService)
        yield TinyImageServer(url, service, records.verdicts)


def test_the_official_client_generates_images(server: TinyImageServer) -> None:
    reply = server.client().images.generate(model="tiny", prompt="a cat", n=3, size=SIZE)  # type: ignore[call-overload]
    files = [base64.b64decode(data.b64_json) for data in reply.data]
    images = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    assert [image.shape for image in images] == [(4 * ROWS, 4 * COLUMNS, 3)] * 3
    assert len(set(files)) == 3 and len(np.unique(images[0])) > 10


def test_the_model_is_listed_without_settings_of_denoising(server: TinyImageServer) -> None:
    facts = httpx.get(f"{server.url}/v1/models/tiny").json()["guard"]
    assert facts == {"engine": "transformers", "capabilities": ["images"], "size": SIZE}


def test_the_seed_of_an_image_is_the_next_one_of_its_request(server: TinyImageServer) -> None:
    data = server.post(n=3, seed=5).json()["data"]
    assert [each["seed"] for each in data] == [5, 6, 7]
    assert base64.b64decode(data[2]["b64_json"]) == server.png(seed=7) != server.png(seed=5)


def test_silent_rows_are_bit_identical_in_any_batch_and_guarded_ones_differ(
    server: TinyImageServer,
) -> None:
    before = server.weights()
    policies = ("none", "silent", "observe", "steer")
    requested = [(prompt, policy) for prompt in ("a cat", "a long dog") for policy in policies]
    alone = [server.png(*arguments) for arguments in requested]
    assert [len(set(alone[:3])), len(set(alone[:4])), len(set(alone))] == [1, 2, 4]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda arguments: server.png(*arguments), requested))
    assert together == alone
    assert server.weights() == before


def test_the_verdict_says_what_the_guard_did(server: TinyImageServer) -> None:
    response = server.post(policy="steer")
    verdict = response.json()["guard"]
    assert response.headers["X-Guard-Verdict"] == verdict["outcome"] == "steered"
    (guard,) = verdict["guards"]
    assert (guard["guard"], guard["fired"], guard["action"]) == ("always", True, "steer")
    assert server.verdicts[-1].outcome == "steered"


@pytest.mark.parametrize(
    ("policy", "words"), [("block", "blocks the image"), ("say", "No such image here.")]
)
def test_a_blocked_prompt_gets_no_image(server: TinyImageServer, policy: str, words: str) -> None:
    response = server.post(policy=policy, n=2)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "content_policy_violation")
    assert words in error["message"]


@pytest.mark.parametrize(("policy", "prompt"), [("rewind", "a cat"), ("steer", f"a {NAN_LETTER}")])
def test_a_policy_that_cannot_be_applied_fails_closed(
    server: TinyImageServer, policy: str, prompt: str
) -> None:
    response = server.post(prompt, policy)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "guard_failed")


@pytest.mark.parametrize(
    ("options", "status", "code", "param", "words"),
    [
        ({"num_inference_steps": 5}, 400, "unsupported_parameter", "num_inference_steps", "token"),
        ({"guidance_scale": 0}, 400, "unsupported_parameter", "guidance_scale", "leave it out"),
        ({"negative_prompt": "x"}, 400, "unsupported_parameter", "negative_prompt", "leave it"),
        ({"size": "64x64"}, 400, "invalid_parameter", "size", SIZE),
        ({"n": 7}, 400, "invalid_parameter", "n", "at most 6"),
        ({"prompt": "x" * LONGEST}, 400, "context_length_exceeded", "prompt", f"most {LONGEST}"),
        ({"prompt": " "}, 400, "invalid_parameter", "prompt", "empty"),
        ({"guard": {"policy": "nothing"}}, 400, None, None, "nothing"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    server: TinyImageServer,
    options: dict[str, Any],
    status: int,
    code: str | None,
    param: str | None,
    words: str,
) -> None:
    response = server.post(**options)
    error = response.json()["error"]
    assert response.status_code == status and words in error["message"]
    assert code in (None, error["code"]) and param in (None, error["param"])


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        (EDITS, {"prompt": "a cat", "image": "data:image/png;base64,AAAA"}, "edits no images"),
        ("/v1/completions", {"prompt": "a cat"}, "generates no text"),
    ],
)
def test_other_routes_name_the_one_for_images(
    server: TinyImageServer, route: str, body: dict[str, Any], words: str
) -> None:
    response = httpx.post(f"{server.url}{route}", json={"model": "tiny"} | body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "model_not_supported")
    assert words in error["message"] and IMAGES in error["message"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "rows": 0}, "no size"),
        ({"rows": ROWS}, "cannot be read"),
        ({**SETTINGS, "columns": 1000}, "no room for a prompt"),
    ],
)
def test_a_damaged_model_is_refused_at_start(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    path = folder / "model" / IMAGE_TOKENS
    path.write_text(json.dumps(settings))
    try:
        with pytest.raises(ModelError, match=words):
            build_services(load_config(folder / "config.toml"), lambda _request, _verdict: None)
    finally:
        path.write_text(json.dumps(SETTINGS))


def test_settings_of_models_of_text_are_refused(folder: Path) -> None:
    (folder / "other.toml").write_text(
        '[[models]]\nname = "tiny"\nsource = "./model"\ndevice = "cpu"\npooling = "mean"\n'
    )
    with pytest.raises(ModelError, match="'pooling' is for models of text"):
        build_services(load_config(folder / "other.toml"), lambda _request, _verdict: None)
