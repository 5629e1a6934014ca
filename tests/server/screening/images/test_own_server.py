"""Screens of images in front of `guard serve`: what it draws, and what it is shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import pytest

from guard.audit import AuditLog
from guard.config.schema import Config, load_config
from guard.plans.screens import TextPlans
from server.app import create_app
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from tests.classifiers.images import tiny_encoder
from tests.classifiers.images.tiny_encoder import file_of
from tests.server.live_server import live_server, serve_app
from tests.server.toy_image_service import serve_images

CONFIG = """
[server]
default_policy = "p"
audit_log = "audit.jsonl"
[[models]]
name = "{model}"
source = "{model}"
engine = "{engine}"
[[guards]]
name = "red"
artifact = "red.safetensors"
threshold = {threshold}
[policies.p]
guards = ["red"]
action = "block"
"""


def _config(folder: Path, model: str, engine: str, threshold: float) -> Config:
    card = tiny_encoder.write(folder / "cache" / "models" / "colours")
    tiny_encoder.red_screen(card, folder / "red.safetensors")
    path = folder / "config.toml"
    path.write_text(CONFIG.format(model=model, engine=engine, threshold=threshold))
    return load_config(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_images_that_it_draws(tmp_path: Path, threshold: float) -> None:
    config = _config(tmp_path, "toy", "diffusers", threshold)
    with serve_images(tmp_path, config) as running:
        plans = TextPlans(config)
        recorder = running.records.recorder
        screens = Screens(plans, Screener(plans.cascade, plans.images), recorder)
        services = {"toy": running.service}
        app = create_app(config, services, metrics=running.records.metrics, screens=screens)
        with serve_app(app, services) as (url, _):
            body = {"model": "toy", "prompt": "a cat", "n": 2, "seed": 1}
            answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=20).json()
    if threshold == 1.0:
        assert len(answer["data"]) == 2 and answer["guard"]["outcome"] == "pass"
    else:
        assert answer["error"]["code"] == "content_policy_violation" and "data" not in answer
    (guard,) = answer["guard"]["guards"]
    assert guard["guard"] == "red" and guard["fired"] == (threshold == 0.0)
    assert guard["place"] in {"data[0].b64_json", "data[1].b64_json"}


def test_images_that_a_chat_shows_it(tmp_path: Path) -> None:
    config = _config(tmp_path, "fake", "transformers", 0.5)
    with (
        AuditLog(tmp_path / "audit.jsonl") as audit,
        live_server(config=config, audit=audit, sees=True) as live,
    ):
        answers = []
        for colour in ("red", "blue"):
            coded = base64.b64encode(file_of(colour)).decode()
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}}
            messages = [{"role": "user", "content": [{"type": "text", "text": "what"}, part]}]
            answers.append(
                live.post("/v1/chat/completions", json={"model": "fake", "messages": messages})
            )
    refused, passed = answers
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "content_filter"
    assert passed.status_code == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["blocked", "pass"]
    assert [line["guards"][0]["fired"] for line in lines] == [True, False]


def _parts(*colours: str) -> list[dict[str, object]]:
    coded = (base64.b64encode(file_of(colour)).decode() for colour in colours)
    urls = [{"url": f"data:image/png;base64,{code}"} for code in coded]
    return [{"type": "image_url", "image_url": url} for url in urls]


def test_moderations_read_images(tmp_path: Path) -> None:
    """OpenAI's parts: one result for all of them, a category that says what it was applied to."""
    config = _config(tmp_path, "fake", "transformers", 0.5)
    text = {"type": "text", "text": "a paint chart"}
    with live_server(config=config) as live:

        def moderated(given: object) -> httpx.Response:
            return live.post("/v1/moderations", json={"input": given})

        for parts, fires in (([text, *_parts("blue")], False), (_parts("blue", "red"), True)):
            (result,) = moderated(parts).json()["results"]
            assert result["flagged"] == result["categories"]["red"] == fires
            assert (result["category_scores"]["red"] > 0.5) == fires
            assert result["category_applied_input_types"] == {"red": ["image"]}
        (result,) = moderated("a paint chart").json()["results"]
        assert not result["flagged"] and result["category_applied_input_types"] == {"red": []}
        address = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        for parts, code, place in (
            ([text, address], "unreadable_image", "input[1].image_url.url"),
            ([text, {"type": "image_url"}], "unscreened_content", "input[1]"),
            (_parts("blue") * 65, "too_many_images", None),
        ):
            error = moderated(parts).json()["error"]
            assert (error["code"], error["param"]) == (code, place)
