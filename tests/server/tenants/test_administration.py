"""Organisations, teams and keys over HTTP, on the server and in the proxy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.tenants.secret import hash_key
from tests.server.proxy.screened import answering
from tests.server.proxy.stand import proxied, served
from tests.server.tenants.stand import Tenants, bearer, seeded, tenanted

HOSTILE = ("..", "a b", "'; drop table keys; --", "ä", "a\0b", "x" * 64, "a/b", "")


@contextmanager
def in_server(folder: Path) -> Iterator[tuple[str, Tenants]]:
    with tenanted(folder, {"admin_hash": hash_key("root")}) as (live, tenants):
        yield live.url, tenants


@contextmanager
def in_proxy(folder: Path) -> Iterator[tuple[str, Tenants]]:
    tenants = seeded(folder / "tenants.sqlite")
    text = f'[server]\nadmin_hash = "{hash_key("root")}"\n[tenants]\ndatabase = "tenants.sqlite"\n'
    text += '[policies.strict]\nguards = ["keys"]\naction = "block"\n'
    text += '[[patterns]]\nname = "keys"\nsource = "secrets"\n'
    with served(answering("ok")) as port, proxied(folder, text, port) as proxy:
        yield proxy.url, tenants


class Admin:
    """A client with a key, of the routes under /guard/v1."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        found = httpx.request(
            method, f"{self.url}/guard/v1{path}", json=body, headers=bearer(self.key), timeout=20
        )
        assert found.status_code == status, found.text
        return found.json()


@pytest.fixture(params=[in_server, in_proxy], ids=["server", "proxy"])
def admin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Admin, Tenants]]:
    with request.param(tmp_path) as (url, tenants):
        yield Admin(url, tenants.admin), tenants


def test_a_key_from_its_making_to_its_end(admin: tuple[Admin, Tenants]) -> None:
    ask, _ = admin
    ask("POST", "/organisations", {"name": "globex", "tokens_per_month": 1000}, 201)
    team = ask("POST", "/teams", {"organisation": "globex", "name": "sales"}, 201)
    assert team["id"] == "globex/sales" and team["object"] == "team"
    body = {"team": "globex/sales", "name": "ci", "requests_per_minute": 5, "expires_in": 3600}
    made = ask("POST", "/keys", body, 201)
    assert made["key"].startswith(f"sk-guard-{made['id']}-") and made["expires"] is not None
    models = Admin(ask.url.replace("/guard/v1", ""), made["key"])

    def status(key: str) -> int:
        return httpx.get(f"{models.url}/guard/v1/policies", headers=bearer(key)).status_code

    assert status(made["key"]) == 200  # in force when the answer has left
    listed = ask("GET", "/keys?team=globex/sales")["data"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert "key" not in listed[0] and "hash" not in str(listed)
    changed = ask("PATCH", f"/keys/{made['id']}", {"requests_per_minute": None})
    assert changed["requests_per_minute"] is None
    rotated = ask("POST", f"/keys/{made['id']}/rotate", {"overlap": 3600})
    assert status(made["key"]) == status(rotated["key"]) == 200
    ask("DELETE", f"/keys/{made['id']}")
    assert status(made["key"]) == status(rotated["key"]) == 401
    ask("DELETE", "/organisations/globex")
    ask("PATCH", "/teams/globex/sales", {"verdict": "none"}, 404)


def test_every_act_is_in_the_audit_log(tmp_path: Path) -> None:
    with in_proxy(tmp_path) as (url, tenants):
        ask = Admin(url, tenants.admin)
        ask("POST", "/organisations", {"name": "globex"}, 201)
        ask("PATCH", "/organisations/globex", {"embeddings": False})
        made = ask("POST", "/keys", {"team": "acme/research", "name": "ci"}, 201)
        rotated = ask("POST", f"/keys/{made['id']}/rotate", {})
        Admin(url, "root")("DELETE", f"/keys/{made['id']}")
        ask("POST", "/organisations", {"name": "globex"}, 409)
        ask("GET", "/keys")
    text = (tmp_path / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["act"], line["kind"], line["id"]) for line in lines] == [
        ("new", "organisation", "globex"),
        ("set", "organisation", "globex"),
        ("new", "key", made["id"]),
        ("rotate", "key", made["id"]),
        ("revoke", "key", made["id"]),
    ]
    admin = f"key:{tenants.admin[9:25]}"
    assert [line["by"] for line in lines] == [*[admin] * 4, "admin"]
    for secret in (tenants.admin, made["key"], rotated["key"]):
        assert secret[-43:] not in text and hash_key(secret) not in text


def test_pages_of_a_list(admin: tuple[Admin, Tenants]) -> None:
    ask, _ = admin
    for number in range(3):
        ask("POST", "/organisations", {"name": f"o{number}"}, 201)
    first = ask("GET", "/organisations?limit=2")
    assert first["has_more"] and first["last_id"] == first["data"][-1]["id"]
    second = ask("GET", f"/organisations?limit=2&after={first['last_id']}")
    assert [o["id"] for o in first["data"] + second["data"]] == ["acme", "o0", "o1", "o2"]
    assert not second["has_more"]
    ask("GET", "/organisations?limit=0", status=400)


def test_roles(admin: tuple[Admin, Tenants]) -> None:
    ask, tenants = admin
    auditor, tenant = Admin(ask.url, tenants.auditor), Admin(ask.url, tenants.tenant)
    assert auditor("GET", "/keys")["data"]
    for each, method, path in (
        (auditor, "POST", "/organisations"),
        (auditor, "DELETE", "/organisations/acme"),
        (tenant, "GET", "/keys"),
        (tenant, "POST", "/keys"),
    ):
        refused = each(method, path, {"name": "x"}, 403)
        assert refused["error"]["code"] == "role_forbidden"
    Admin(ask.url, "root")("GET", "/teams")  # the key of admin_hash
    Admin(ask.url, "somebody")("GET", "/teams", status=401)
    body = {"model": "m", "messages": []}
    for key in (tenants.admin, tenants.auditor):
        asked = httpx.post(f"{ask.url}/v1/chat/completions", json=body, headers=bearer(key))
        assert asked.status_code == 403 and asked.json()["error"]["code"] == "role_forbidden"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(admin: tuple[Admin, Tenants], name: str) -> None:
    ask, _ = admin
    ask("POST", "/organisations", {"name": name}, 400)
    ask("POST", "/teams", {"organisation": name, "name": "x"}, 404)
    ask("POST", "/keys", {"team": name, "name": "x"}, 404)
    ask("GET", "/keys?team=%00", status=400)


def test_bodies_that_are_refused(admin: tuple[Admin, Tenants]) -> None:
    ask, _ = admin
    for body, code in (
        ({}, "missing_required_parameter"),
        ({"name": "x", "colour": 1}, "unknown_parameter"),
        ({"name": "x", "tokens_per_month": 0}, "invalid_parameter"),
        ({"name": "x", "tokens_per_month": 10**20}, "invalid_parameter"),
        ({"name": "x", "required": ["missing"]}, "invalid_tenant"),
    ):
        assert ask("POST", "/organisations", body, 400)["error"]["code"] == code
    assert ask("POST", "/organisations", {"name": "acme"}, 409)["error"]["code"] == "already_exists"
    assert ask("DELETE", "/keys/none", status=404)["error"]["code"] == "tenant_not_found"
    ask("PUT", "/keys", {}, 405)
