"""The proxy in front of vLLM with the plugin: screens there, guards here, one verdict."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import BadRequestError, OpenAI  # noqa: E402

from tests.vllm.standing import Stand, asked, free_port, serving, until_up, words  # noqa: E402

CONFIG = """
[server]
default_policy = "always"
[[patterns]]
name = "topic"
source = "topic.toml"
[[upstreams]]
name = "vllm"
url = "{url}"
plugin = true
[policies.always]
guards = ["topic"]
action = "flag"
screen = {{ upstream_policy = "firm" }}
[policies.asked]
guards = ["topic"]
action = "policy"
screen = {{ upstream_policy = "stop" }}
[policies.shut]
guards = ["topic"]
action = "block"
"""
NUMBERS = range(6, 18)
"""Of prompts, about half of which the guard fires on."""
TOPIC = '[[words]]\nlabel = "TOPIC"\nwords = ["forbidden"]\n'


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with serving(tmp_path_factory.mktemp("behind")) as made:
        yield made


@pytest.fixture(scope="module")
def proxied(stand: Stand) -> Iterator[OpenAI]:
    folder = stand.folder / "proxy"
    folder.mkdir()
    (folder / "topic.toml").write_text(TOPIC, "utf-8")
    (folder / "config.toml").write_text(CONFIG.format(url=stand.url), "utf-8")
    port = free_port()
    command = [sys.executable, "-m", "guard", "proxy", "--config", str(folder / "config.toml")]
    with (folder / "log").open("w") as log:
        proxy = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    try:
        until_up(proxy, f"http://127.0.0.1:{port}/health", folder / "log")
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        proxy.terminate()
        proxy.wait(60)


def _said(client: OpenAI, number: int, extra: dict[str, Any], more: str = "") -> tuple[str, Any]:
    reply = client.completions.create(
        model="tiny",
        prompt=words(number) + more,
        max_tokens=4,
        temperature=0,
        extra_body=extra | {"ignore_eos": True},
    )
    return reply.choices[0].text, reply.model_extra["guard"]  # type: ignore[index]


def test_the_policy_is_handed_down_whatever_the_client_asks(stand: Stand, proxied: OpenAI) -> None:
    steered = 0
    for number in NUMBERS:
        text, told = _said(stand.client, number, asked("firm"))
        through, both = _said(proxied, number, {"vllm_xargs": {"guard_policy": "none"}})
        assert through == text
        assert [guard["guard"] for guard in both["guards"]] == ["firm", "topic"]
        assert both["guards"][0] == told["guards"][0]
        assert both["policy"] == "always" and both["outcome"] == told["outcome"]
        steered += told["outcome"] == "steered"
    assert 0 < steered < len(NUMBERS)


def test_a_screen_chooses_the_upstreams_policy(stand: Stand, proxied: OpenAI) -> None:
    ends = set()
    for number in NUMBERS:
        policy = {"guard": {"policy": "asked"}}
        assert _said(proxied, number, policy)[0] == _said(stand.client, number, asked("none"))[0]
        text, told = _said(stand.client, number, asked("stop"), " forbidden")
        through, both = _said(proxied, number, policy, " forbidden")
        assert through == text
        assert {guard["guard"] for guard in both["guards"]} == {"firm", "topic"}
        ends.add(both["outcome"])
    assert "blocked" in ends and len(ends) == 2


def test_what_is_blocked_never_comes_here(stand: Stand, proxied: OpenAI) -> None:
    before = len(stand.audited())
    with pytest.raises(BadRequestError) as refused:
        _said(proxied, 1, {"guard": {"policy": "shut"}}, " forbidden")
    assert refused.value.code == "content_filter"
    assert len(stand.audited()) == before


def test_a_stream_ends_with_the_verdict_of_both(proxied: OpenAI) -> None:
    parts = proxied.completions.create(
        model="tiny", prompt=words(3), max_tokens=4, stream=True, extra_body={"ignore_eos": True}
    )
    told = [part.model_extra["guard"] for part in parts if (part.model_extra or {}).get("guard")]
    assert len(told) == 1
    assert [guard["guard"] for guard in told[0]["guards"]] == ["firm", "topic"]
