"""Guards that act inside a model cannot act in a proxy: an error, never a silent pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.guard.conftest import MakeArtifact, make_artifact
from tests.server.proxy.screened import BODY, answering
from tests.server.proxy.stand import Proxy, proxied, served
from tests.server.proxy.test_command import running

__all__ = ["make_artifact"]

ROOT = Path(__file__).parents[3]
GUARDS = (
    '[[guards]]\nname = "inside"\nartifact = "inside.safetensors"\n'
    '[[patterns]]\nname = "secrets"\nsource = "secrets"\n'
)
SECRET = "AKIA" + "IOSFODNN7EXAMPLE"


def _policy(guards: str, rest: str = "") -> str:
    return GUARDS + f'[policies.p]\nguards = {guards}\naction = "block"\n{rest}'


@pytest.fixture
def folder(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "inside.safetensors")
    return tmp_path


def _ask(proxy: Proxy, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(
        f"{proxy.url}{path}", json={**BODY, **body}, headers={"X-Guard-Policy": "p"}, timeout=20
    )


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/files"]
)
def test_a_policy_of_guards_inside_a_model_is_refused_as_a_whole(folder: Path, path: str) -> None:
    upstream = answering("ok")
    with served(upstream) as port, proxied(folder, _policy('["inside"]'), port) as proxy:
        answer = _ask(proxy, path)
        assert answer.status_code in {400, 403}
        if path == "/v1/chat/completions":
            assert answer.json()["error"]["code"] == "policy_not_for_model"
            assert "guard serve" in answer.json()["error"]["message"]
        (line,) = proxy.audit_lines(1)
        assert line["outcome"] == "error"
    assert not upstream.requests


def test_one_that_has_screens_too_fails_closed_and_names_the_guard(folder: Path) -> None:
    upstream = answering("ok")
    text = _policy('["inside", "secrets"]')
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        answer = _ask(proxy)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "guard_failed"
        assert "inside: acts inside a model" in answer.json()["error"]["message"]
    assert not upstream.requests


@pytest.mark.parametrize("guards", ['["inside"]', '["inside", "secrets"]'])
def test_one_that_fails_open_says_error_and_its_screens_act(folder: Path, guards: str) -> None:
    upstream = answering("ok")
    text = _policy(guards, 'on_error = "open"\n')
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        answer = _ask(proxy)
        assert answer.status_code == 200
        verdict = answer.json()["guard"]
        assert verdict["outcome"] == answer.headers["X-Guard-Verdict"] == "error"
        (inside,) = [each for each in verdict["guards"] if each["guard"] == "inside"]
        assert "acts inside a model" in inside["error"]
        told = [{"role": "user", "content": SECRET}]
        blocked = _ask(proxy, messages=told)
        assert (blocked.status_code == 400) == ("secrets" in guards)


def test_a_policy_that_the_upstreams_plugin_applies_passes_to_it_alone(folder: Path) -> None:
    plain, plugin = answering("plain"), answering("plugin")
    with served(plain) as plain_port, served(plugin) as plugin_port:
        upstreams = "".join(
            f'[[upstreams]]\nname = "{name}"\nurl = "http://127.0.0.1:{port}"\nplugin = {flag}\n'
            f"models = {models}\n"
            for name, port, flag, models in (
                ("a", plain_port, "false", '["m", "other"]'),
                ("b", plugin_port, "true", '["m"]'),
            )
        )
        delegates = '[policies.p.screen]\nupstream_policy = "careful"\n'
        text = _policy('["inside", "secrets"]', delegates) + upstreams
        with proxied(folder, text) as proxy:
            for _ in range(8):
                assert _ask(proxy).status_code == 200
            refused = _ask(proxy, model="other")
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "policy_not_for_model"
    assert not plain.requests
    assert {each.json["vllm_xargs"]["guard_policy"] for each in plugin.requests} == {"careful"}


def test_a_default_that_cannot_act_keeps_the_proxy_from_starting(folder: Path) -> None:
    path = folder / "config.toml"
    path.write_text('[server]\ndefault_policy = "p"\n' + _policy('["inside"]'))
    with (
        pytest.raises(AssertionError, match="error: all guards of the policy 'p'"),
        running("-u", "http://127.0.0.1:1", "--config", str(path)),
    ):
        pass


def test_the_first_command_of_the_docs_screens_under_the_projects_own_configuration() -> None:
    upstream = answering("ok")
    config = str(ROOT / "config.toml")
    with (
        served(upstream) as port,
        running("-u", f"http://127.0.0.1:{port}", "--config", config) as (url, _),
    ):
        for model in ("m", "emoji", "smollm2"):
            told = {"model": model, "messages": [{"role": "user", "content": "I am a@example.com"}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=told, timeout=20)
            assert answer.status_code == 200
            assert answer.headers["X-Guard-Policy"] == "private"
            assert "a@example.com" not in json.dumps(upstream.requests[-1].json)
        secret = {"model": "m", "messages": [{"role": "user", "content": f"key {SECRET}"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=secret, timeout=20).status_code == 400
        for policy in ("harry-potter", "rose", "watch"):
            answer = httpx.post(
                f"{url}/v1/chat/completions", json=BODY, headers={"X-Guard-Policy": policy}
            )
            assert answer.json()["error"]["code"] == "policy_not_for_model"
    assert len(upstream.requests) == 3
