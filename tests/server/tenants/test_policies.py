"""Which policies the keys of tenants may have, through real requests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.server.proxy.screened import answering
from tests.server.proxy.stand import Proxy, proxied, served
from tests.server.tenants.stand import Tenants, bearer, seeded, store_at

POLICIES = """
[tenants]
database = "tenants.sqlite"
refresh_s = 0.1

[[patterns]]
name = "words"
source = "words.toml"

[[patterns]]
name = "secrets"
source = "secrets"

[policies.words]
guards = ["words"]
action = "block"

[policies.watch]
guards = ["words"]
action = "observe"

[policies.both]
guards = ["words", "secrets"]
action = "block"
"""


@contextmanager
def guarded(folder: Path, **levels: Any) -> Iterator[tuple[Proxy, Tenants]]:
    (folder / "words.toml").write_text('[[words]]\nlabel = "BAD"\nwords = ["forbidden"]\n')
    tenants = seeded(folder / "tenants.sqlite", **levels)
    with served(answering("ok")) as port, proxied(folder, POLICIES, port) as proxy:
        yield proxy, tenants


def asked(proxy: Proxy, key: str, text: str, policy: str | None = None) -> httpx.Response:
    headers = bearer(key) | ({"X-Guard-Policy": policy} if policy else {})
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)


def test_what_an_organisation_requires_acts_on_every_request(tmp_path: Path) -> None:
    levels = {
        "organisation": {"required": ["words"]},
        "key": {"policies": ["none", "watch", "both"]},
    }
    with guarded(tmp_path, **levels) as (proxy, tenants):
        blocked = asked(proxy, tenants.tenant, "the forbidden thing")
        assert blocked.status_code == 400 and blocked.headers["x-guard-policy"] == "words"
        for weaker in ("none", "watch"):
            refused = asked(proxy, tenants.tenant, "hi", weaker)
            assert refused.json()["error"]["code"] == "policy_forbidden"
        assert asked(proxy, tenants.tenant, "the forbidden thing", "both").status_code == 400
        assert asked(proxy, tenants.tenant, "hi", "both").status_code == 200
        listed = httpx.get(f"{proxy.url}/guard/v1/policies", headers=bearer(tenants.tenant)).json()
        assert listed["default"] == "words"
        assert [policy["id"] for policy in listed["data"]] == ["words", "both"]


def test_a_requirement_is_in_force_within_a_second(tmp_path: Path) -> None:
    with guarded(tmp_path) as (proxy, tenants):
        assert asked(proxy, tenants.tenant, "the forbidden thing").status_code == 200
        with store_at(tenants.path) as store:
            store.change("team", "acme/research", {"required": ["words"]})
        statuses = []
        end = time.monotonic() + 1
        while time.monotonic() < end:
            statuses.append(asked(proxy, tenants.tenant, "the forbidden thing").status_code)
        assert statuses[-1] == 400


def test_a_requirement_that_nothing_meets_lets_nothing_pass(tmp_path: Path) -> None:
    levels = {"organisation": {"required": ["words", "gone"]}}
    with guarded(tmp_path, **levels) as (proxy, tenants):
        failed = asked(proxy, tenants.tenant, "hi")
        assert failed.status_code == 500 and failed.json()["error"]["code"] == "guard_failed"


def test_keys_of_the_file_and_of_the_database_stand_side_by_side(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"old").hexdigest()
    entry = f'\n[[keys]]\nhash = "sha256:{digest}"\ntenant = "shop"\n'
    (tmp_path / "words.toml").write_text('[[words]]\nlabel = "BAD"\nwords = ["forbidden"]\n')
    tenants = seeded(tmp_path / "tenants.sqlite")
    with served(answering("ok")) as port, proxied(tmp_path, POLICIES + entry, port) as proxy:
        for key in ("old", tenants.tenant):
            assert asked(proxy, key, "hi").status_code == 200
        assert asked(proxy, "other", "hi").status_code == 401
        assert {line["tenant"] for line in proxy.audit_lines(2)} == {"shop", "acme/research"}
