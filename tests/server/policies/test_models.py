"""Policies of a language model that change while it answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.config.schema import load_config
from guard.plans.screens import TextPlans
from guard.tenants.secret import hash_key
from server.app import create_app
from server.lifecycle.opening import follow_policies
from server.observe.exchange import Exchange
from server.policies.live import LiveConfiguration
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from tests.server.live_server import serve_app
from tests.server.policies.stand import ADMIN, SECRET
from tests.server.tiny_text_service import RunningText, TinyTextModel

LIVE = '[live_policies]\ndatabase = "versions.sqlite"\nrefresh_s = 0.05\n'
LIST = '[[patterns]]\nname = "secrets"\nsource = "secrets"\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyTextModel:
    return TinyTextModel(tmp_path_factory.mktemp("tiny"))


@dataclass
class ModelServer:
    url: str
    running: RunningText
    live: LiveConfiguration

    def put(self, policy: str, settings: Any) -> httpx.Response:
        url = f"{self.url}/guard/v1/policies/{policy}"
        return httpx.put(url, json={"settings": settings}, headers=ADMIN, timeout=20)

    def chat(self, policy: str) -> Any:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "tell me a tale"}],
            "max_tokens": 12,
            "temperature": 0,
            "guard": {"policy": policy},
        }
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)


@contextmanager
def serving(model: TinyTextModel, folder: Path) -> Iterator[ModelServer]:
    path = model.write_config(model.copy(folder), admin_hash=hash_key(SECRET))
    path.write_text(path.read_text() + LIVE + LIST)
    config = load_config(path)
    with model.serve(folder, config) as running:
        services, recorder = {"tiny": running.service}, running.records.recorder
        plans = TextPlans(config)
        screens = Screens(plans, Screener(plans.cascade, plans.images), recorder)
        live = LiveConfiguration(config, services.values())
        policies = follow_policies(config, live, services, screens, None, recorder, running.metrics)
        app = create_app(
            *(config, services),
            metrics=running.metrics,
            screens=screens,
            live=live,
            policies=policies,
        )
        with serve_app(app, services) as (url, _):
            yield ModelServer(url, running, live)


def test_a_change_follows_without_a_new_bank(model: TinyTextModel, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        bank = server.running.service.plans.bank
        steered = server.chat("steer-always").json()
        assert steered["guard"]["outcome"] == "steered"
        assert (
            server.put("steer-always", {"guards": ["always"], "action": "flag"}).status_code == 200
        )
        flagged = server.chat("steer-always").json()
        assert flagged["guard"]["outcome"] == "flagged"
        # what is only marked is what the bare model says
        text = flagged["choices"][0]["message"]["content"]
        assert text == server.chat("none").json()["choices"][0]["message"]["content"]
        assert text != steered["choices"][0]["message"]["content"]
        assert server.running.service.plans.bank is bank
        assert "steer-always" in server.running.service.info.policies


def test_a_threshold_is_a_policys_own(model: TinyTextModel, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        assert server.chat("block-never").status_code == 200
        settings = {"guards": ["never"], "action": "block", "thresholds": {"never": -1e9}}
        assert server.put("block-never", settings).status_code == 200
        assert server.chat("block-never").json()["error"]["code"] == "content_filter"
        # other policies of the guard keep its threshold
        assert server.chat("flag-never").json()["guard"]["outcome"] == "pass"
        bad = server.put("block-never", {**settings, "thresholds": {"never": 1e300}})
        assert bad.json()["error"]["param"] == "thresholds.never"


def test_running_rows_keep_their_guards(model: TinyTextModel, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        server.running.engine.go.clear()
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(server.chat("steer-always").json()))
        asking.start()
        assert server.running.engine.stalled.wait(20)
        assert server.put("steer-always", {"guards": ["never"]}).status_code == 200
        server.running.engine.go.set()
        asking.join(20)
        assert answers[0]["guard"]["outcome"] == "steered"
        assert server.chat("steer-always").json()["guard"]["outcome"] == "pass"


def test_a_policy_that_no_model_could_follow_is_refused(
    model: TinyTextModel, tmp_path: Path
) -> None:
    with serving(model, tmp_path) as server:
        # fitted on another model
        answer = server.put("steer-always", {"guards": ["other"]})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_policy", "guards")
        assert "fitted on" in error["message"]
        assert server.chat("steer-always").json()["guard"]["outcome"] == "steered"


def test_a_request_is_never_decided_half_under_each_policy(
    model: TinyTextModel, tmp_path: Path
) -> None:
    """From a guard of the model to a screen: a request that was let past the screens under the one
    must not reach the model under the other."""
    with serving(model, tmp_path) as server:
        screened = server.live.config
        exchange = Exchange("one")
        assert exchange.under(screened) is screened
        assert server.put("steer-always", {"guards": ["secrets"], "action": "block"}).is_success
        assert exchange.under(server.live.config) is screened
        plans = server.running.service.plans
        assert [guard.name for guard in plans.admitted("steer-always", screened).guards] == [
            "always"
        ]
        assert not plans.admitted("steer-always", None).guards
