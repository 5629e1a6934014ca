from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.audit import AuditLog, chain_file, writer
from guard.audit.chain import EVERY, START, Head, digest, encode, head_of
from guard.audit.chain_file import checkpoint_path
from guard.audit.signing import Signer, new_key
from guard.audit.verify import verify
from guard.errors import GuardError
from tests.guard.audit.logs import checked, entries, key_in, opened, verdict, write

Lines = list[bytes]


def test_readers_find_what_they_found_before(tmp_path: Path) -> None:
    path, plain = write(tmp_path, 2), tmp_path / "plain.jsonl"
    with AuditLog(plain) as log:
        log.append(verdict("acme-0"), tenant="acme")
    of_requests = [entry for entry in entries(path) if "event" not in entry]
    assert [entry["request_id"] for entry in of_requests] == ["acme-0", "acme-1"]
    (before,) = entries(plain)
    added = {"seq", "prev", "personal", "salts"}
    assert set(of_requests[0]) == set(before) | added
    assert before | {"time": ""} == {name: of_requests[0][name] for name in before} | {"time": ""}


def test_runs_and_an_event_go_on_in_one_chain(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with opened(tmp_path) as log:
        log.append_event("erasure", erasure="er-1", state="in force")
        assert entries(log.path)[-1]["erasure"] == "er-1"  # readable at once
    report = checked(log.path)
    assert (report.faults, report.notes) == ([], [])
    assert (report.lines, report.first, report.head.seq, report.checkpoints) == (8, 1, 8, 4)
    assert [entry["seq"] for entry in entries(log.path)] == list(range(1, 9))


def _altered(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"pass"', b'"block"'), *lines[3:]]


def _with_another_tenant(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"tenant":"acme"', b'"tenant":"evil"'), *lines[3:]]


def _respelled(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"seq":3', b'"seq": 3'), *lines[3:]]


def _put_in(lines: Lines) -> Lines:
    return [*lines[:2], b'{"time":"2026-01-01T00:00:00Z","outcome":"pass"}\n', *lines[2:]]


def _torn(lines: Lines) -> Lines:
    return [*lines[:2], lines[2][:40] + b"\n", *lines[3:]]


@pytest.mark.parametrize(
    ("tampered", "where", "says"),
    [
        (_altered, 3, "was altered"),
        (_with_another_tenant, 3, "its tenant is not what it commits to"),
        (_respelled, 3, "was altered"),
        (_put_in, 3, "it was put in"),
        (_torn, 3, "was altered"),
        (lambda lines: [*lines[:2], *lines[3:]], 3, "line 3 is missing"),
        (lambda lines: [*lines[:2], *lines[4:]], 3, "lines 3 to 4 are missing"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4, "once more"),
        (lambda lines: [*lines[:4], lines[1], *lines[4:]], 5, "moved or doubled"),
        (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 3, "line 3 is missing"),
        (lambda lines: lines[:-3], 4, "the end was cut off"),
    ],
)
def test_each_kind_of_tampering_is_found(
    tmp_path: Path, tampered: Callable[[Lines], Lines], where: int, says: str
) -> None:
    path = write(tmp_path, 5)
    path.write_bytes(b"".join(tampered(path.read_bytes().splitlines(keepends=True))))
    faults = checked(path).faults
    assert any(says in fault and fault.startswith(f"{path}:{where}:") for fault in faults), faults


def test_a_last_line_that_is_altered_is_found_by_its_signature(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'"reason":"closed"', b'"reason":"open"'))
    assert f"{path}:3: the checkpoint is not signed with this key" in checked(path).faults


def test_a_chain_that_was_computed_anew_lacks_signatures(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    lines, head = [], START
    for entry in entries(path):
        entry = json.loads(json.dumps(entry).replace('"pass"', '"block"')) | {"prev": head.digest}
        lines.append(encode(entry))
        head = Head(entry["seq"], digest(entry))
    path.write_bytes(b"".join(lines))
    checkpoint_path(path).unlink()
    assert any("not signed" in fault for fault in checked(path).faults)
    # nor can the signed lines be left out
    kept = [entry for entry in entries(path) if "event" not in entry]
    lines, head = [], START
    for number, entry in enumerate(kept, 1):
        lines.append(encode(entry | {"seq": number, "prev": head.digest}))
        head = head_of(lines[-1]) or START
    path.write_bytes(b"".join(lines))
    assert checked(path).faults == ["no checkpoint: nothing shows who wrote lines to 2"]


def test_the_key_of_another_log_does_not_do(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    new_key(tmp_path / "other.pem")
    report = verify([path], Signer(tmp_path / "other.pem").public)
    assert any(fault.endswith("not signed with this key") for fault in report.faults)
    with pytest.raises(GuardError, match="64 hex digits"):
        verify([path], "ed25519:12")


def test_a_run_that_was_cut_off_shows_by_a_kept_checkpoint(tmp_path: Path) -> None:
    """Even where the server has gone on, and whoever cut it took the file beside the log back."""
    path = write(tmp_path, 2)
    before, beside = path.read_bytes(), checkpoint_path(path).read_bytes()
    write(tmp_path, 2)
    kept = tmp_path / "kept"
    kept.write_bytes(checkpoint_path(path).read_bytes())
    path.write_bytes(before)
    checkpoint_path(path).write_bytes(beside)
    assert checked(path).faults == []
    public = Signer(key_in(tmp_path)).public
    assert "the end was cut off" in verify([path], public, kept).faults[0]
    write(tmp_path, 5)
    assert "is not the checkpoint" in verify([path], public, kept).faults[0]


def test_a_run_that_was_cut_off_leaves_a_gap_before_the_next(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    before = path.read_bytes()
    write(tmp_path, 2)
    path.write_bytes(before)
    write(tmp_path, 1)
    assert any("lines 5 to 8 are missing" in fault for fault in checked(path).faults)


def test_each_thousandth_line_is_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path, 2 * EVERY)
    report = checked(path)
    assert report.faults == []
    signed = [entry["seq"] for entry in entries(path) if entry.get("reason") == "count"]
    assert signed == [EVERY, 2 * EVERY]


def test_lines_that_come_slowly_are_signed_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_file, "_SIGN_EVERY_S", 0.0)
    with opened(tmp_path) as log:
        log.append_event("a")
        assert entries(log.path)[-1]["reason"] == "time"
    assert entries(log.path)[-1]["reason"] == "closed"
    assert checked(log.path).faults == []


def test_lines_from_before_the_chain_are_told(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as log:
        log.append(verdict(), tenant="acme")
    report = checked(write(tmp_path, 1))
    assert report.faults == []
    assert report.notes == ["1 lines before the chain are not protected"]


def test_a_full_queue_says_so_and_its_losses_stand_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.QueuedWriter.__init__, "__kwdefaults__", {"most": 3})
    with opened(tmp_path) as log:
        refused = 0
        for number in range(10):
            try:
                log.append(verdict(str(number)), tenant="t")
            except OSError as error:
                assert "3 lines wait" in str(error)
                refused += 1
    report = checked(log.path)
    assert refused > 0 and report.faults == []
    lost = [entry["lines"] for entry in entries(log.path) if "lines" in entry]
    assert sum(lost) == refused


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    key_in(tmp_path).chmod(mode)
    with pytest.raises(GuardError, match="chmod 600"):
        opened(tmp_path)


def test_a_missing_or_foreign_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="guard audit key --new"):
        AuditLog(tmp_path / "audit.jsonl", key=tmp_path / "none.pem")
    key_in(tmp_path).write_text("no key")
    with pytest.raises(GuardError, match="no private key in PEM"):
        opened(tmp_path)
