"""Certificates of erasures: in the audit log, with their artifacts; altered ones are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.audit import AuditLog
from guard.certificate import (
    EVENT,
    Certificate,
    Fired,
    Step,
    digest_of,
    policies_of,
    read_certificate,
)
from guard.errors import DataError
from tests.guard.commands.running import run
from tests.guard.conftest import MakeArtifact

ID = "er-0123456789ab"
STEPS = [("collecting", "T1"), ("shadow", "T2"), ("in force", "T3")]


def certificate(artifact: str, **facts: Any) -> Certificate:
    body = {
        "erasure": ID,
        "issued": "2026-01-31T12:00:00.000Z",
        "program": "0.1.0",
        "asked": {
            "name": "Märchen",
            "aliases": [],
            "documents": [],
            "model": "tiny",
            "policies": ["books"],
            "start": "shadow",
        },
        "model": None,
        "state": "in force",
        "reason": "",
        "history": [{"state": state, "time": time} for state, time in STEPS],
        "policies": [{"policy": "books", "since": "T2", "until": None}],
        "guards": [{"guard": f"{ID}/tale", "concept": "concept/tale", "artifact": artifact}],
        "judgement": "usable",
        "figures": {"fired_by_name": "100.0% (8/8; 67.6% to 100.0%)"},
        "fired": {"shadow": {"requests": 2, "guards": {f"{ID}/tale": 2}}},
    }
    return Certificate.model_validate(body | facts).signed()


class Files:
    """A certificate as it was issued, the audit log, and the artifacts."""

    def __init__(self, folder: Path, make_artifact: MakeArtifact) -> None:
        artifact = make_artifact()
        self.issued = certificate(artifact.digest)
        self.path, self.log = folder / "certificate.json", folder / "audit.jsonl"
        self.artifacts = folder / "fitted"
        artifact.save(self.artifacts / "tale.safetensors")
        self.write(self.issued.model_dump(mode="json"))
        self.log.write_text('{"time": "T0", "outcome": "pass"}\nhalf a li\n[1]\n')
        with AuditLog(self.log) as log:
            log.append_event(EVENT, erasure=ID, state="in force", certificate=self.issued.digest)

    def write(self, facts: Any) -> None:
        self.path.write_text(json.dumps(facts))

    def verify(self) -> Any:
        checked = ("--audit", self.log, "--artifacts", self.artifacts)
        return run("certificate", "verify", self.path, *checked)


@pytest.fixture
def files(tmp_path: Path, make_artifact: MakeArtifact) -> Files:
    return Files(tmp_path, make_artifact)


def test_a_certificate_as_it_was_issued_holds(files: Files) -> None:
    result = files.verify()
    assert result.exit_code == 0, result.output
    assert f"certificate: whole, {files.issued.digest}" in result.stdout
    assert "audit log: has it, line 4" in result.stdout
    assert "artifacts: all 1 as certified" in result.stdout
    assert read_certificate(files.path) == files.issued


def _altered(facts: dict[str, Any], path: str) -> dict[str, Any]:
    *way, last = path.split(".")
    place: Any = facts
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    value = place[last]
    place[last] = value + 1 if isinstance(value, int) else f"{value}x"
    return facts


@pytest.mark.parametrize(
    "path",
    ["asked.name", "judgement", "history.1.time", "fired.shadow.requests", "guards.0.concept"],
)
@pytest.mark.parametrize("signed_again", [False, True])
def test_whatever_is_altered_shows(files: Files, path: str, signed_again: bool) -> None:
    facts = _altered(files.issued.model_dump(mode="json"), path)
    if signed_again:
        facts["digest"] = digest_of(facts)
    files.write(facts)
    result = files.verify()
    assert result.exit_code == 1
    fault = "has no line with this certificate" if signed_again else "was altered: its digest is"
    assert fault in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_line_of_the_log_that_was_altered_shows(files: Files) -> None:
    files.log.write_text(files.log.read_text().replace("in force", "withdrawn"))
    assert "with the state 'withdrawn', not 'in force'" in files.verify().stderr
    files.log.write_text(files.log.read_text().replace(files.issued.digest, "sha256:" + "0" * 64))
    result = files.verify()
    assert result.exit_code == 1 and "has no line with this certificate" in result.stderr
    assert "artifacts: all 1 as certified" in result.stdout


@pytest.mark.parametrize("fault", ["altered", "gone", "another"])
def test_artifacts_that_are_not_the_certified_ones_show(
    files: Files, make_artifact: MakeArtifact, fault: str
) -> None:
    path = files.artifacts / "tale.safetensors"
    if fault == "altered":
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif fault == "gone":
        path.unlink()
    else:
        make_artifact(concept="concept/other").save(path)
    result = files.verify()
    assert result.exit_code == 1
    assert f"1 of 1 artifacts are missing or altered, as that of {ID}/tale" in result.stderr
    assert ("were altered" in result.stderr) == (fault == "altered")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no certificate"),
        ("[]", "is no certificate"),
        ('{"certificate": 1, "certificate": 1}', "an object has a member twice"),
        ("[" * 100_000, "is no certificate"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_certificate_is_one_line(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    result = run("certificate", "verify", path)
    assert result.exit_code == 1 and reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_members_of_another_kind_are_no_certificate(files: Files) -> None:
    facts = files.issued.model_dump(mode="json") | {"more": 1}
    files.write(facts | {"digest": digest_of(facts)})
    with pytest.raises(DataError, match="more: Extra inputs"):
        read_certificate(files.path)


def test_policies_have_the_guards_from_the_first_state_in_which_requests_carry_them() -> None:
    steps = [Step.model_validate({"state": state, "time": time}) for state, time in STEPS]
    (one,) = policies_of(["p"], steps)
    assert (one.since, one.until) == ("T2", None)
    assert policies_of(["p"], steps[:1]) == ()
    ended = [*steps, Step(state="withdrawn", time="T4")]
    assert policies_of(["p"], ended)[0].until == "T4"


def test_two_certificates_that_differ_in_their_time_alone_say_the_same() -> None:
    first, later = certificate("0" * 64), certificate("0" * 64, issued="later")
    assert first.digest != later.digest and first.says_the_same(later)
    counted = certificate("0" * 64, fired={"shadow": Fired(requests=3)})
    assert not first.says_the_same(counted)


def test_a_certificate_of_before_the_lists_is_given_out_as_it_was_issued(files: Files) -> None:
    facts = files.issued.model_dump(mode="json")
    assert "listed" not in facts and facts["asked"].keys().isdisjoint({"list", "entry"})
    assert facts["model"] is None
    files.write(json.loads(read_certificate(files.path).model_dump_json()))
    assert read_certificate(files.path) == files.issued
    listed = facts["asked"] | {"list": "people", "entry": "anna"}
    assert certificate("0" * 64, asked=listed).model_dump()["asked"] == listed | {
        name: () for name in ("aliases", "documents")
    } | {"policies": ("books",)}
