from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from guard.audit import AuditLog
from guard.audit.erase import erase
from guard.errors import DataError
from tests.guard.audit.logs import checked, entries, opened, verdict, write


def test_what_is_personal_goes_and_the_chain_holds(tmp_path: Path) -> None:
    write(tmp_path, 2, tenant="acme")
    path = write(tmp_path, 1, tenant="other")
    before = checked(path)
    assert erase(path, "acme") == 2
    assert b"acme" not in path.read_bytes()
    after = checked(path)
    assert (after.faults, after.head, after.erased) == ([], before.head, 2)
    gone, kept = entries(path)[1], entries(path)[5]
    assert (gone["tenant"], gone["request_id"], gone["outcome"]) == (None, None, "pass")
    assert "salts" not in gone and kept["tenant"] == "other"
    assert erase(path, "acme") == 0


def test_an_administrators_name_goes_without_that_of_the_key(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append_event("tenants", act="new", kind="key", id="k1", by="jo")
    assert erase(log.path, "jo") == 1
    (entry,) = [entry for entry in entries(log.path) if entry["event"] == "tenants"]
    assert (entry["by"], entry["id"], set(entry["salts"])) == (None, "k1", {"id"})
    assert checked(log.path).faults == []


def test_teams_are_their_organisations_and_a_key_is_named_in_what_it_did(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(verdict("a"), tenant="acme/research")
        log.append(verdict("b"), tenant="acme-two")
        log.append_event("tenants", act="new", kind="key", id="k1", by="key:k0")
    assert (erase(log.path, "acme"), erase(log.path, "k0")) == (1, 1)
    tenants = [entry["tenant"] for entry in entries(log.path) if "tenant" in entry]
    assert tenants == [None, "acme-two"]
    assert b"k0" not in log.path.read_bytes() and checked(log.path).faults == []


def test_a_server_goes_on_behind_an_erasure(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(verdict("a"), tenant="acme")
        log.append_event("a")
        assert erase(log.path, "acme") == 1
        log.append(verdict("b"), tenant="other")
    report = checked(log.path)
    assert (report.faults, report.notes) == ([], [])
    assert [entry.get("request_id") for entry in entries(log.path)][1:-1] == [None, None, "b"]


def test_an_erased_value_cannot_be_put_back_as_another(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    erase(path, "acme")
    path.write_bytes(path.read_bytes().replace(b'"tenant":null', b'"tenant":"evil"'))
    assert f"{path}:2: was altered: its tenant is not what it commits to" in checked(path).faults


def test_files_that_cannot_be_rewritten_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    packed = tmp_path / "audit.1.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert checked(packed).faults == []
    with pytest.raises(DataError, match="unpack it first"):
        erase(packed, "acme")
    with AuditLog(tmp_path / "plain") as log:
        log.append(verdict(), tenant="acme")
    with pytest.raises(DataError, match="without audit_key"):
        erase(log.path, "acme")
    assert {file.name for file in tmp_path.iterdir() if file.name.startswith(".")} == set()
