"""LoRA adapters over HTTP: models of their own in each API, in one batch with their model."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForCausalLM

from guard.config.schema import load_config
from guard.errors import ModelError
from guard.plans.screens import TextPlans
from server.app import close_services, create_app
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from server.services.build import build_services
from server.services.interface import SamplingParams, TextRowRequest
from tests.server.live_server import serve_app
from tests.server.running_service import Records, recording
from tests.server.tiny_text_service import TinyTextModel
from tests.steering.adapters import merged, save_adapter, save_settings

ADAPTERS = """
[[models.adapters]]
name = "one"
source = "one"
[[models.adapters]]
name = "two"
source = "two"
guards = "of-base"
default_policy = "steer-always"
"""
SCREEN = """
[[patterns]]
name = "secrets"
source = "secrets"
[policies.screened]
guards = ["secrets"]
action = "block"
"""
CHAT = "/v1/chat/completions"
APIS: dict[str, tuple[dict[str, Any], Any]] = {
    CHAT: (
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12},
        lambda body: body["choices"][0]["message"]["content"],
    ),
    "/v1/completions": (
        {"prompt": "hello", "max_tokens": 12},
        lambda body: body["choices"][0]["text"],
    ),
    "/v1/responses": (
        {"input": "hello", "max_output_tokens": 16},
        lambda body: body["output"][0]["content"][0]["text"],
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12},
        lambda body: body["content"][0]["text"],
    ),
}


@dataclass
class Served:
    url: str
    records: Records

    def post(self, model: str, path: str = CHAT, **options: Any) -> Any:
        body = {"model": model, "temperature": 0} | APIS[path][0] | options
        return httpx.post(self.url + path, json=body, timeout=60)

    def text(self, model: str, path: str = CHAT, **options: Any) -> str:
        response = self.post(model, path, **options)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == model
        return str(APIS[path][1](response.json()))


@pytest.fixture(scope="module")
def folder(tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.copy(tmp_path_factory.mktemp("adapters"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model.folder / "model")
    save_adapter(folder / "one", model)
    save_adapter(folder / "two", model, ("q_proj", "up_proj"), rank=6, alpha=12, seed=1)
    path = tiny_model.write_config(folder)
    text = path.read_text().replace("[[guards]]", ADAPTERS + "[[guards]]", 1)
    path.write_text(text + SCREEN)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder / "config.toml") as served:
        yield served


@contextmanager
def serving(path: Path) -> Iterator[Served]:
    config = load_config(path)
    plans = TextPlans(config)
    with recording(config) as records:
        screens = Screens(plans, Screener(plans.cascade, plans.images), records.recorder)
        services = build_services(config, records)
        app = create_app(config, services, metrics=records.metrics, screens=screens)
        with serve_app(app, services) as (url, _):
            yield Served(url, records)


@pytest.fixture(scope="module")
def merged_texts(
    tiny_model: TinyTextModel, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], str]:
    """The answers of a server of each merged model, by adapter and path."""
    texts: dict[tuple[str, str], str] = {}
    for name in ("one", "two"):
        target = tmp_path_factory.mktemp("merged")
        model = AutoModelForCausalLM.from_pretrained(tiny_model.folder / "model")
        shutil.copytree(tiny_model.folder / "model", target / "model")
        merged(model, folder / name).save_pretrained(target / "model")
        config = target / "config.toml"
        config.write_text(
            '[server]\naudit_log = "audit.jsonl"\n'
            '[[models]]\nname = "m"\nsource = "./model"\ndevice = "cpu"\n'
        )
        with serving(config) as alone:
            texts |= {(name, path): alone.text("m", path) for path in APIS}
    return texts


NO_GUARDS = {"guard": {"policy": "none"}}


@pytest.mark.parametrize("path", APIS)
def test_each_api_serves_the_merged_models_answers(
    served: Served, merged_texts: dict[tuple[str, str], str], path: str
) -> None:
    answers = {name: served.text(name, path, **NO_GUARDS) for name in ("tiny", "one", "two")}
    assert all(answers[name] == merged_texts[name, path] for name in ("one", "two"))
    assert len({*answers.values()}) == 3


def test_one_batch_holds_rows_of_several_adapters(
    served: Served, merged_texts: dict[tuple[str, str], str]
) -> None:
    async def all_at_once() -> list[str]:
        models = ["tiny", "one", "two"] * 3
        return await asyncio.gather(
            *(asyncio.to_thread(served.text, model, **NO_GUARDS) for model in models)
        )

    base = served.text("tiny", **NO_GUARDS)
    answers = asyncio.run(all_at_once())
    assert answers == [base, merged_texts["one", CHAT], merged_texts["two", CHAT]] * 3


def test_streams_name_the_adapter(served: Served, merged_texts: dict[tuple[str, str], str]) -> None:
    lines = served.post("one", stream=True).text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert {event["model"] for event in events} == {"one"}
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert text == merged_texts["one", CHAT]


def test_models_lists_adapters_with_their_parent(served: Served) -> None:
    models = {m["id"]: m for m in httpx.get(f"{served.url}/v1/models").json()["data"]}
    assert list(models) == ["tiny", "one", "two"]
    assert (models["one"]["parent"], models["one"]["root"]) == ("tiny", "tiny")
    assert "parent" not in models["tiny"]
    assert "embeddings" in models["tiny"]["guard"]["capabilities"]
    assert "embeddings" not in models["one"]["guard"]["capabilities"]
    assert "embedding_width" not in models["one"]["guard"]
    assert httpx.get(f"{served.url}/v1/models/two").json() == models["two"]
    policies = httpx.get(f"{served.url}/guard/v1/policies").json()
    by_name = {policy["id"]: policy["models"] for policy in policies["data"]}
    assert by_name["none"] == ["tiny", "one", "two"]
    assert by_name["steer-always"] == by_name["block-never"] == ["tiny", "two"]
    assert policies["defaults"] == {"tiny": "none", "one": "none", "two": "steer-always"}


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("policy", ["steer-never", "open-always", "open-other", "observe-never"])
def test_guards_of_the_model_are_refused_for_an_adapter(
    served: Served, path: str, policy: str
) -> None:
    response = served.post("one", path, guard={"policy": policy})
    assert response.status_code == 400
    for words in ("guard rebind", "of-base", "'one'", "'tiny'"):
        assert words in response.text


def test_screens_of_text_act_on_an_adapter(
    served: Served, merged_texts: dict[tuple[str, str], str]
) -> None:
    screened = {"guard": {"policy": "screened"}}
    assert served.text("one", **screened) == merged_texts["one", CHAT]
    secret = [{"role": "user", "content": "my key: AKIAQ3EGRNQ4EXF6Y7XD"}]
    blocked = served.post("one", messages=secret, **screened)
    assert blocked.status_code == 400 and blocked.json()["error"]["code"] == "content_filter"


def test_guards_act_on_an_adapter_that_allows_them(
    served: Served, merged_texts: dict[tuple[str, str], str]
) -> None:
    steered = served.post("two").json()
    assert steered["choices"][0]["message"]["content"] != merged_texts["two", CHAT]
    assert steered["guard"]["outcome"] == "steered"
    assert served.text("two", guard={"policy": "steer-never"}) == merged_texts["two", CHAT]
    blocked = served.post("two", guard={"policy": "block-always"})
    assert blocked.status_code == 400 and blocked.json()["error"]["code"] == "content_filter"


def test_verdicts_and_metrics_name_the_adapter(served: Served) -> None:
    served.records.verdicts.clear()
    served.text("one")
    (verdict,) = served.records.verdicts
    assert verdict.model == "one"
    metrics = httpx.get(f"{served.url}/metrics").text
    assert any('model="one"' in line for line in metrics.splitlines() if "tokens" in line)


def test_rows_that_wait_are_counted_under_the_adapters_name(folder: Path) -> None:
    config = load_config(folder / "config.toml")
    services: Any = build_services(config, lambda request, verdict: None)
    base, one = services["tiny"], services["one"]

    async def waiting() -> tuple[int, int]:
        release = threading.Event()
        base._between_steps(release.wait)  # the engine takes no row meanwhile
        prompt, sampling = base.encode("hello"), SamplingParams(2)
        asked = [TextRowRequest("r", prompt, "none", sampling)] * 3
        rows = [*one.submit(asked[:2]), *base.submit(asked[:1])]
        counts = one.queued(), base.queued()
        release.set()
        for row in rows:
            [event async for event in row]
        return counts

    try:
        assert asyncio.run(waiting()) == (2, 1)
        assert (one.queued(), base.queued()) == (0, 0)
    finally:
        close_services(services)


def test_unknown_models_and_embeddings_are_refused(served: Served) -> None:
    missing = served.post("three")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    refused = httpx.post(f"{served.url}/v1/embeddings", json={"model": "one", "input": "x"})
    assert refused.status_code == 404
    assert "'one' gives no embeddings" in refused.json()["error"]["message"]


def test_an_adapter_that_does_not_fit_stops_the_start(folder: Path) -> None:
    config = load_config(folder / "config.toml")
    save_settings(folder / "two", r=5, target_modules=["q_proj", "up_proj"])
    with pytest.raises(ModelError, match="^model tiny: adapter two has F32 .* fits this model"):
        close_services(build_services(config, lambda request, verdict: None))
