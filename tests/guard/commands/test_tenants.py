from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.tenants.secret import hash_key
from tests.guard.commands.running import InFolder

CONFIG = """
[server]
audit_log = "audit.jsonl"

[tenants]
database = "tenants.sqlite"

[[patterns]]
name = "secrets"
source = "secrets"

[policies.strict]
guards = ["secrets"]
action = "block"
"""


class Command(InFolder):
    """A command is one line."""

    def __call__(self, *lines: str, status: int = 0) -> Any:
        return super().__call__(*" ".join(lines).split(), status=status)


@pytest.fixture
def guard(tmp_path: Path) -> Command:
    return Command(tmp_path, CONFIG)


def test_a_key_from_its_making_to_its_end(guard: Command) -> None:
    guard("organisations new acme -s required=strict")
    guard("teams new acme/research -s tokens_per_month=500 -s policies=none,strict")
    key = guard("keys new acme/research --name laptop --expires 90d").stdout.strip()
    (listed,) = guard.json("keys list --team acme/research")
    assert key.startswith(f"sk-guard-{listed['id']}-") and listed["expires"] is not None
    assert hash_key(key) not in json.dumps(listed)
    rotated = guard.json(f"keys rotate {listed['id']} --overlap 24h")
    assert rotated["key"] != key and rotated["previous_until"] is not None
    (team,) = guard.json("teams set acme/research --unset tokens_per_month -s embeddings=false")
    assert (team["tokens_per_month"], team["embeddings"]) == (None, False)
    assert team["policies"] == ["none", "strict"]
    guard(f"keys revoke {listed['id']}")
    assert "revoked" in guard("keys list").stdout
    acts = [json.loads(line) for line in (guard.folder / "audit.jsonl").read_text().splitlines()]
    assert [act["act"] for act in acts] == ["new", "new", "new", "rotate", "set", "revoke"]
    assert {act["by"] for act in acts} == {"command"}


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("organisations new a/b", 1, "no name"),
        ("organisations new acme -s required=missing", 1, "no policy 'missing'"),
        ("organisations new acme -s colour=red", 2, "no setting"),
        ("organisations new acme -s tokens_per_month=0", 2, "tokens_per_month"),
        ("organisations new acme -s tokens_per_month=many", 2, "tokens_per_month"),
        ("organisations new acme -s verdict=half", 2, "verdict"),
        ("organisations set acme", 2, "nothing to change"),
        ("organisations revoke acme", 1, "no organisation 'acme'"),
        ("teams new acme", 2, "ORGANISATION/TEAM"),
        ("teams new acme/research", 1, "no organisation 'acme'"),
        ("keys new", 1, "has a team"),
        ("keys new acme/research --role admin", 1, "has a team"),
        ("keys new acme/research --expires soon", 2, "no duration"),
        ("keys rotate 0123456789abcdef --overlap 1w", 2, "no duration"),
        ("keys new --role admin --expires 999999999d", 1, "in 3660 days at the latest"),
        ("keys rotate 0123456789abcdef --overlap 999999999d", 1, "30 days at most"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    guard: Command, line: str, status: int, reason: str
) -> None:
    result = guard(line, status=status)
    assert reason in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


def test_a_configuration_without_a_database_says_what_to_add(guard: Command) -> None:
    guard.config.write_text("[server]\n")
    assert "[tenants]" in guard("keys list", status=1).output
    guard.config.write_text('[tenants]\ndatabase_env = "NO_SUCH_VARIABLE"\n')
    assert "NO_SUCH_VARIABLE" in guard("keys list", status=1).output
    guard.config.write_text('[tenants]\ndatabase = "postgresql://u:secret@h/d"\n')
    output = guard("keys list", status=1).output
    assert "password" in output and "secret" not in output
    guard.config.write_text('[tenants]\ndatabase = "mysql://h/d"\n')
    assert "postgresql://" in guard("keys list", status=1).output
