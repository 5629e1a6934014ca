from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.audit import AuditLog
from guard.verdict import GuardVerdict, Verdict
from tests.guard.commands.running import InFolder, run

CONFIG = """
[server]
audit_log = "audit.jsonl"

[live_policies]
database = "versions.sqlite"

[[patterns]]
name = "secrets"
source = "secrets"

[policies.strict]
guards = ["secrets"]
action = "block"
"""


class Command(InFolder):
    """`guard policy`."""

    def __call__(self, *arguments: str, status: int = 0) -> Any:
        return super().__call__("policy", *arguments, status=status)

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture
def guard(tmp_path: Path) -> Command:
    return Command(tmp_path, CONFIG)


def test_a_policy_from_the_file_to_its_end(guard: Command) -> None:
    (first,) = guard.json("list")
    assert (first["policy"], first["act"], first["version"]) == ("strict", "file", 1)
    flag = guard.file("flag.toml", '[policies.strict]\nguards = ["secrets"]\naction = "flag"\n')
    assert "version 2" in guard("put", "strict", flag, "--why", "too loud").stdout
    diff = guard.json("diff", "strict")
    assert diff["changes"] == [{"field": "action", "before": "block", "after": "flag"}]
    assert diff["weaker"]
    guard("rollback", "strict", "1", "--why", "no")
    found = guard.json("versions", "strict")
    assert [(each["act"], each["by"], each["why"]) for each in found] == [
        ("rollback", "command", "no"),
        ("put", "command", "too loud"),
        ("file", "file", ""),
    ]
    assert json.loads(guard("show", "strict", "--version", "2").stdout)["action"] == "flag"
    other = guard.file("other.json", '{"guards": ["secrets"]}')
    guard("put", "other", other)
    assert guard.json("delete", "other")["settings"] is None
    assert [each["policy"] for each in guard.json("list")] == ["strict"]
    lines = (guard.folder / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["act"] for line in lines] == [
        *("file", "put", "rollback", "put", "delete")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("put", "strict", "bad.toml"), "guards[0]: no guard"),
        (("put", "strict", "missing.toml"), "cannot be read"),
        (("put", "strict", "others.toml"), "has no [policies.strict]"),
        (("delete", "unknown"), "There is no policy"),
        (("rollback", "strict", "7"), "no version 7"),
        (("show", "unknown"), "There is no policy"),
    ],
)
def test_what_does_not_hold_changes_nothing(
    arguments: tuple[str, ...], message: str, guard: Command
) -> None:
    guard.file("bad.toml", 'guards = ["secrest"]\n')
    guard.file("others.toml", '[policies.other]\nguards = ["secrets"]\n')
    named = [str(guard.folder / each) if "." in each else each for each in arguments]
    result = guard(*named, status=1)
    assert message in result.output and "Traceback" not in result.output
    assert guard.json("list")[0]["version"] == 1


def test_without_a_database_the_command_says_what_to_add(guard: Command) -> None:
    guard.config.write_text(CONFIG.replace('[live_policies]\ndatabase = "versions.sqlite"', ""))
    assert "[live_policies]" in guard("list", status=1).output


def test_requests_are_replayed_from_the_audit_log(guard: Command) -> None:
    with AuditLog(guard.folder / "audit.jsonl") as log:
        for number, score in enumerate((1.0, 0.0, 1.0)):
            fired = score > 0
            found = GuardVerdict(
                "secrets", "patterns/secrets", "patterns", score, 1.0, fired,
                "block" if fired else "none", place="messages[0].content",
            )  # fmt: skip
            outcome = "blocked" if fired else "pass"
            log.append(Verdict(f"r{number}", "m", "strict", outcome, (found,), 1.0), tenant="")
    flag = guard.file("strict.toml", 'guards = ["secrets"]\naction = "flag"\n')
    found = guard.json("replay", flag)
    assert (found["read"], found["changed"]) == (3, 2)
    assert found["transitions"] == [{"from": "blocked", "to": "flagged", "count": 2}]
    text = guard("replay", flag, "--policy", "strict").stdout
    assert "3 requests: 2 would be decided otherwise, 1 as they were" in text
    assert "blocked -> flagged: 2" in text
    none = guard("replay", flag, "--policy", "stritc")
    assert "0 requests" in none.stdout and "no request under the policy 'stritc'" in none.stderr
    # a policy in force can be tried on the requests of another one
    guard("put", "loud", flag)
    assert guard.json("replay", "loud", "--policy", "strict")["changed"] == 2
    assert guard.json("list")[0]["version"] == 1


def test_a_change_that_tenants_could_not_follow_is_refused(guard: Command) -> None:
    text = CONFIG + '[policies.second]\nguards = ["secrets"]\naction = "flag"\n'
    guard.config.write_text(text + '[tenants]\ndatabase = "versions.sqlite"\n')
    made = run("organisations", "new", "acme", "-s", "required=second,strict", "-c", guard.config)
    assert made.exit_code == 0, made.output
    assert "acme" in guard("delete", "second", status=1).output
    # "strict" does what both do; where it fails open, none does
    path = guard.file("open.toml", 'guards = ["secrets"]\naction = "block"\non_error = "open"\n')
    assert "none of them does what all do" in guard("put", "strict", path, status=1).output
    # what changes nothing for anybody is not refused
    path = guard.file("wide.toml", 'guards = ["secrets"]\naction = "block"\nmessage = "No."\n')
    guard("put", "strict", path)


def test_looking_puts_nothing_in_force(guard: Command) -> None:
    """An old copy of the file, or one that is being edited, must not change a fleet."""
    assert guard.json("list")[0]["version"] == 1
    guard.config.write_text(CONFIG.replace("block", "flag"))
    for arguments in (("list",), ("versions", "strict"), ("diff", "strict")):
        guard(*arguments)
    assert "block" in guard("show", "strict").stdout
    assert [each["version"] for each in guard.json("versions", "strict")] == [1]
    assert len((guard.folder / "audit.jsonl").read_text().splitlines()) == 1
    # what is edited comes before what is changed afterwards
    guard("put", "other", guard.file("other.json", '{"guards": ["secrets"]}'))
    assert [each["act"] for each in guard.json("list")] == ["file", "put"]
    assert "flag" in guard("show", "strict").stdout


def test_an_edit_that_tenants_could_not_follow_is_refused(guard: Command) -> None:
    text = CONFIG + '[policies.second]\nguards = ["secrets"]\naction = "flag"\n'
    text += '[tenants]\ndatabase = "versions.sqlite"\n'
    guard.config.write_text(text)
    guard("list")
    made = run("organisations", "new", "acme", "-s", "required=second", "-c", guard.config)
    assert made.exit_code == 0, made.output
    second = '[policies.second]\nguards = ["secrets"]\naction = "flag"\n'
    guard.config.write_text(text.replace(second, ""))
    other = guard.file("other.json", '{"guards": ["secrets"]}')
    assert "acme" in guard("put", "other", other, status=1).output
    assert [each["policy"] for each in guard.json("list")] == ["strict", "second"]


def test_a_reason_that_a_terminal_would_obey_is_refused(guard: Command) -> None:
    other = guard.file("other.json", '{"guards": ["secrets"]}')
    assert "on one line" in guard("put", "other", other, "--why", "\x1b[2J", status=1).output
