"""What `/v1/moderations` tells a key: the screens of policies that it may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from guard.config.schema import load_config
from guard.tenants.secret import hash_key
from tests.server.live_server import live_server
from tests.server.proxy.screened import answering
from tests.server.proxy.stand import proxied, served

CONFIG = f"""
[server]
default_policy = "private"
[[models]]
name = "fake"
source = "fake"
[[patterns]]
name = "private-list"
source = "personal-data"
[[patterns]]
name = "house-list"
source = "secrets"
[policies.private]
guards = ["private-list"]
action = "flag"
[policies.house]
guards = ["house-list"]
action = "block"
[[keys]]
hash = "{hash_key("guest")}"
tenant = "guest"
[[keys]]
hash = "{hash_key("house")}"
tenant = "house"
policies = ["house"]
[[keys]]
hash = "{hash_key("bare")}"
tenant = "bare"
default_policy = "none"
"""


def _moderation(url: str, key: str) -> Any:
    return httpx.post(
        f"{url}/v1/moderations",
        json={"input": "mail me: ann@example.com"},
        headers={"authorization": f"Bearer {key}"},
        timeout=10,
    )


def _check(url: str) -> None:
    guest, house, bare = (_moderation(url, key) for key in ("guest", "house", "bare"))
    assert set(guest.json()["results"][0]["categories"]) == {"private-list"}
    assert guest.json()["results"][0]["flagged"] is True
    assert set(house.json()["results"][0]["categories"]) == {"private-list", "house-list"}
    assert bare.status_code == 403
    assert bare.json()["error"]["code"] == "policy_forbidden"


def test_a_server_tells_a_key_of_its_own_screens(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    with live_server(config=load_config(tmp_path / "config.toml")) as live:
        _check(live.url)


def test_a_proxy_does_too(tmp_path: Path) -> None:
    with served(answering("ok")) as port, proxied(tmp_path, CONFIG, port) as proxy:
        _check(proxy.url)


def test_images_are_refused_where_nothing_reads_them(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.partition("[[keys]]")[0])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    with live_server(config=load_config(tmp_path / "config.toml")) as live:
        error = live.post("/v1/moderations", json={"input": [image]}).json()["error"]
    assert error["code"] == "unscreened_content" and "no screen of images" in error["message"]
