"""From a pipeline on disk to images over HTTP, with the real engine and real guards."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from guard.config.schema import Config, ModelConfig, load_config
from guard.errors import ModelError
from server.app import create_app
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.services import build_images
from server.services.build import build_services
from server.services.images import BatchedImageService
from tests.server.live_server import HttpServer, disconnecting_client, serve_app
from tests.server.running_service import Records
from tests.server.tiny_pipeline import NAN_WORD, SIDE, TOKENS, save_guards, save_pipeline

IMAGES = "/v1/images/generations"

CONFIG = """
[server]
max_batch = 4
[[models]]
name = "tiny"
source = "./model"
engine = "diffusers"
device = "cpu"
default_policy = "refine-knife"
steps = 4
guidance_scale = 3.0
[[guards]]
name = "knife"
artifact = "knife.safetensors"
[[guards]]
name = "other"
artifact = "other.safetensors"
[[guards]]
name = "guide"
artifact = "guide.safetensors"
[[guards]]
name = "overlay"
artifact = "overlay.safetensors"
[policies.refine-knife]
guards = ["knife"]
action = "refine"
[policies.block-knife]
guards = ["knife"]
action = "block"
[policies.open-knife]
guards = ["knife"]
on_error = "open"
[policies.other]
guards = ["other"]
[policies.guide]
guards = ["guide"]
[policies.overlay]
guards = ["overlay"]
action = "overlay"
"""


@dataclass
class TinyImageServer(HttpServer):
    service: BatchedImageService
    verdicts: list[Any] = field(default_factory=list)

    def post(self, prompt: str, policy: str | None = None, **options: Any) -> httpx.Response:
        guard = {} if policy is None else {"guard": {"policy": policy}}
        body = {"model": "tiny", "prompt": prompt, "seed": 1} | guard | options
        return httpx.post(f"{self.url}{IMAGES}", json=body, timeout=20)

    def png(self, prompt: str, policy: str | None = None, **options: Any) -> bytes:
        (data,) = self.post(prompt, policy, **options).json()["data"]
        return base64.b64decode(data["b64_json"])

    def weights(self) -> str:
        digest = hashlib.sha256()
        pipeline = self.service._engine.family.pipeline
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            for name, value in sorted(part.state_dict().items()):
                digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_guards(folder, save_pipeline(folder / "model"))
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
        assert isinstance(service, BatchedImageService)
        yield TinyImageServer(url, service, records.verdicts)


def test_the_official_client_generates_an_image(server: TinyImageServer) -> None:
    reply = server.client().images.generate(
        model="tiny", prompt="a cat", extra_body={"guard": {"policy": "none"}}
    )
    assert reply.data is not None and reply.size == f"{SIDE}x{SIDE}"
    image = Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json or "")))
    assert image.size == (SIDE, SIDE) and len(np.unique(np.asarray(image))) > 10


def test_configured_values_and_those_of_the_pipeline_are_listed(server: TinyImageServer) -> None:
    facts = httpx.get(f"{server.url}/v1/models/tiny").json()["guard"]
    limits = server.service._engine.family.embedding_limits
    assert limits is not None
    assert facts == {
        "engine": "diffusers",
        "capabilities": ["images", "image_edits"],
        "size": f"{SIDE}x{SIDE}",
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "max_steps": 100,
        "embeddings": {"width": limits.width, "largest_norm": limits.norm},
    }
    assert server.service.info.policies == (
        *("none", "refine-knife", "block-knife", "open-knife", "guide", "overlay"),
    )


def test_silent_rows_are_bit_identical_in_any_batch_and_guarded_ones_differ(
    server: TinyImageServer,
) -> None:
    policies = ("none", "refine-knife", "guide", "overlay")
    requested = [(prompt, policy) for prompt in ("a cat", "a knife") for policy in policies]
    alone = [server.png(*arguments) for arguments in requested]
    assert len(set(alone[:4])) == 1 and len(set(alone[4:])) == 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda arguments: server.png(*arguments), requested))
    assert together == alone


@pytest.mark.parametrize(
    ("policy", "outcome", "action"),
    [
        (None, "refined", "refine"),
        ("guide", "steered", "steer"),
        ("overlay", "overlaid", "overlay"),
    ],
)
def test_the_verdict_says_what_the_method_did(
    server: TinyImageServer, policy: str | None, outcome: str, action: str
) -> None:
    response = server.post("a knife", policy)
    verdict = response.json()["guard"]
    assert response.headers["X-Guard-Verdict"] == verdict["outcome"] == outcome
    (guard,) = verdict["guards"]
    assert (guard["action"], guard["position"]) == (action, 0)
    assert guard["score"] > guard["threshold"] == 0.5


def test_a_blocked_prompt_gets_no_image(server: TinyImageServer) -> None:
    response = server.post("a knife", "block-knife", n=3)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "content_policy_violation"


def test_a_concept_past_the_encoders_length_is_found(server: TinyImageServer) -> None:
    hidden = "cat " * (2 * TOKENS) + "knife " * TOKENS
    assert server.post("cat " * (4 * TOKENS), "block-knife").status_code == 200
    response = server.post(hidden, "block-knife")
    assert response.json()["error"]["code"] == "content_policy_violation"
    assert server.png(hidden, "refine-knife") == server.png(hidden, "none"), (
        "the encoder drops the concept"
    )


@pytest.mark.parametrize("prompt", ["🔪🍌", "قطة فوق كلب", "\u202eefink a", "x" * 4000, "\0"])
def test_any_text_is_guarded_and_generates_an_image(server: TinyImageServer, prompt: str) -> None:
    response = server.post(prompt, "refine-knife")
    assert response.status_code == 200
    assert response.json()["guard"]["guards"][0]["score"] is not None


@pytest.mark.parametrize(
    ("policy", "code"),
    [("refine-knife", "guard_failed"), ("open-knife", "engine_failed"), ("none", "engine_failed")],
)
def test_nan_in_an_embedding_is_an_error_and_no_image(
    server: TinyImageServer, policy: str, code: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(server.png, "a cat", "none")
        response = server.post(f"a {NAN_WORD}", policy)
    assert (response.status_code, response.json()["error"]["code"]) == (500, code)
    assert response.headers["X-Guard-Verdict"] == "error"
    assert other.result() == server.png("a cat", "none")


def test_a_guard_of_another_encoder_fails_closed(server: TinyImageServer) -> None:
    response = server.post("a cat", "other")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "guard_failed")
    assert "was fitted on" in response.json()["guard"]["guards"][0]["error"]


def test_a_guidance_guard_needs_guidance(server: TinyImageServer) -> None:
    error = server.post("a cat", "guide", guidance_scale=1).json()["error"]
    assert error["param"] == "guidance_scale"
    assert server.post("a knife", "refine-knife", guidance_scale=0).status_code == 200


def test_a_disconnect_does_not_change_other_rows(server: TinyImageServer) -> None:
    engine, before = server.service._engine, len(server.verdicts)
    usual = server.png("a dog", num_inference_steps=40)

    body = {"model": "tiny", "prompt": "a cat", "n": 2, "num_inference_steps": 100}
    leaving = disconnecting_client(f"{server.url}{IMAGES}", body, after_s=0.1)
    assert server.png("a dog", num_inference_steps=40) == usual
    leaving.join()
    server.wait_until(lambda: engine.rows == 0)
    assert len(server.verdicts) == before + 4


def test_no_traffic_changes_a_weight(server: TinyImageServer) -> None:
    before = server.weights()
    for policy in ("none", "refine-knife", "guide"):
        server.png("a knife", policy)
    assert server.weights() == before


# -- models that cannot be served ---------------------------------------------------------------


def refused(source: Path, **settings: Any) -> str:
    model = ModelConfig(name="m", source=str(source), engine="diffusers", device="cpu", **settings)
    with pytest.raises(ModelError) as raised:
        build_services(Config(models=(model,)), lambda request, verdict: None)
    assert "\n" not in raised.value.message
    return raised.value.message


def test_unusable_models_are_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a model" in refused(tmp_path / "empty")
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    assert "model m" in refused(strange)


def test_a_pipeline_that_generates_videos_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = types.SimpleNamespace(frames=9)
    monkeypatch.setattr(build_images, "family_of", lambda pipeline: video)
    assert "videos" in refused(folder / "model")


def test_without_configured_defaults_those_of_the_pipeline_hold(folder: Path) -> None:
    models = tuple(
        ModelConfig(
            name=name, source=str(folder / "model"), engine="diffusers", device="cpu", **limits
        )
        for name, limits in (("plain", {}), ("few", {"max_steps": 20}))
    )
    services = build_services(Config(models=models), lambda request, verdict: None)
    try:
        defaults = {name: (s.info.steps, s.info.guidance) for name, s in services.items()}  # type: ignore[attr-defined]
        assert defaults == {"plain": (50, 7.5), "few": (20, 7.5)}
    finally:
        for service in services.values():
            service.close()
