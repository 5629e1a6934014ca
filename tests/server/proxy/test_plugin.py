"""In front of the plugin for vLLM: its policy is the proxy's choice on every path, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.proxy.screened import answering
from tests.server.proxy.stand import Proxy, Upstream, proxied, served

OWN = {"guard_policy": "none", "other": 1}
CONFIG = """
[server]
default_policy = "told"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.told]
guards = ["secrets"]
action = "block"
[policies.told.screen]
upstream_policy = "strict"
unscreened = ["/tokenize", "images"]
[policies.untold]
guards = ["secrets"]
action = "block"
"""


@contextmanager
def in_front(folder: Path, upstream: Upstream, more: str = "") -> Iterator[Proxy]:
    with served(upstream) as port:
        url = f'url = "http://127.0.0.1:{port}"'
        text = f'{CONFIG}[[upstreams]]\nname = "v"\n{url}\nplugin = true\n'
        with proxied(folder, text + more.format(url=url)) as proxy:
            yield proxy


def post(
    proxy: Proxy, path: str, policy: str = "told", model: str = "m", **body: Any
) -> httpx.Response:
    headers = {"x-guard-policy": policy}
    return httpx.post(proxy.url + path, json={"model": model, **body}, headers=headers)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_the_policy_goes_to_each_path_that_reads_it(tmp_path: Path, path: str) -> None:
    upstream = answering("ok")
    with in_front(tmp_path, upstream) as proxy:
        for policy in ("told", "untold", "none"):
            assert post(proxy, path, policy, vllm_xargs=OWN).status_code == 200
    handed = [request.json["vllm_xargs"] for request in upstream.requests]
    assert handed == [{"other": 1, "guard_policy": "strict"}, {"other": 1}, {"other": 1}]


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/embeddings"])
def test_a_path_that_runs_no_guards_loses_the_clients_policy(tmp_path: Path, path: str) -> None:
    upstream = answering("ok")
    with in_front(tmp_path, upstream) as proxy:
        for policy in ("told", "none"):
            response = post(proxy, path, policy, vllm_xargs={"guard_policy": "x"}, input="a")
            assert response.status_code == 200
    assert all("vllm_xargs" not in request.json for request in upstream.requests)


@pytest.mark.parametrize(
    "path",
    ["/inference/v1/generate", "/v1/chat/completions/batch", "/invocations", "/collective_rpc"],
)
@pytest.mark.parametrize("policy", ["told", "untold", "none"])
def test_a_path_that_nobody_reads_is_refused(tmp_path: Path, path: str, policy: str) -> None:
    upstream = answering("ok")
    with in_front(tmp_path, upstream) as proxy:
        extra = {"sampling_params": {"extra_args": OWN}}
        responses = [
            post(proxy, path, policy, **extra),
            httpx.post(proxy.url + path, content=b"x", headers={"x-guard-policy": policy}),
            httpx.post(proxy.url + path, files={"a": b"x"}, headers={"x-guard-policy": policy}),
        ]
    assert {response.status_code for response in responses} == {403}
    assert not upstream.requests


def test_what_is_listed_passes_and_what_generates_otherwise_is_refused(tmp_path: Path) -> None:
    upstream = answering("ok")
    with in_front(tmp_path, upstream) as proxy:
        assert post(proxy, "/tokenize", prompt="a").status_code == 200
        refused = post(proxy, "/v1/images/generations", prompt="a")
        assert refused.json()["error"]["code"] == "unscreened_route"
        assert post(proxy, "/v1/images/generations", "untold", prompt="a").status_code == 200
        form = {"prompt": (None, "a"), "vllm_xargs": (None, json.dumps(OWN))}
        asked = httpx.post(
            f"{proxy.url}/v1/images/edits", files=form, headers={"x-guard-policy": "untold"}
        )
        assert asked.status_code == 400
    assert [request.path for request in upstream.requests] == [
        *("/tokenize", "/v1/images/generations"),
    ]


def test_other_upstreams_get_no_argument_of_the_plugins(tmp_path: Path) -> None:
    upstream = answering("ok")
    more = 'models = ["m"]\n[[upstreams]]\nname = "cloud"\n{url}\nmodels = ["big"]\n'
    with in_front(tmp_path, upstream, more) as proxy:
        assert post(proxy, "/v1/chat/completions").status_code == 200
        for path in ("/v1/chat/completions", "/v1/images/generations"):
            unfit = post(proxy, path, model="big", prompt="a")
            assert unfit.json()["error"]["code"] == "policy_not_for_model"
            assert post(proxy, path, "untold", model="big", prompt="a").status_code == 200
    assert ["vllm_xargs" in request.json for request in upstream.requests] == [True, False, False]
