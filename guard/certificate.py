"""The certificate of an erasure: what was asked, what was made of it, and since when it holds.

A certificate holds its own digest, and each one that is issued has a line with it in the audit log:
whoever alters a certificate cannot alter that line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from guard.artifact import Artifact, FittedModel, Name, Sha256
from guard.errors import ArtifactError, DataError

MAX_BYTES = 2**22
MAX_LINE_BYTES = 2**20
EVENT = "erasure"
"""The `event` of the lines about erasures in the audit log."""

ID = r"^er-[0-9a-f]{12}$"

State = Literal["collecting", "fitting", "shadow", "in force", "withdrawn", "failed"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Members that earlier certificates have not: while None they are left out, so that the digests
    of those hold."""

    @model_serializer(mode="wrap")
    def _as_issued(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        facts: dict[str, Any] = dump(self)
        return {
            name: value
            for name, value in facts.items()
            if value is not None or name not in self.LATER
        }


class Document(_Strict):
    """A document about the concept: its SHA-256 and its length; the text itself is nowhere else."""

    sha256: Sha256
    characters: int


class Asked(_Strict):
    """What an administrator has asked for."""

    LATER = frozenset({"list", "entry"})

    name: str
    aliases: tuple[str, ...]
    documents: tuple[Document, ...]
    model: Name
    policies: tuple[Name, ...]
    start: Literal["shadow", "in force"]
    list: Name | None = None
    """The suppression list that the name is to be put on; `policies` are those that have it."""
    entry: str | None = None
    """What verdicts call the name by."""


class Step(_Strict):
    """A state, and since when; times are of UTC, in ISO 8601."""

    state: State
    time: str


class Gate(_Strict):
    """One guard of an erasure, and the digest of its artifact."""

    guard: str
    concept: str
    artifact: Sha256


class Change(_Strict):
    """The digests of a list's artifact before and after a change of it."""

    before: Sha256
    after: Sha256


class Listed(_Strict):
    """The entry of an erasure on a suppression list; `concept` is the verdicts' for it."""

    list: Name
    entry: str
    concept: str
    added: Change
    removed: Change | None = None


class Fired(_Strict):
    """The requests on which a guard of the erasure has fired, and how often each guard has."""

    requests: int = 0
    guards: dict[str, int] = {}


class InPolicy(_Strict):
    """A policy that had the guards of the erasure; `until` None: it still has."""

    policy: str
    since: str
    until: str | None


class Certificate(_Strict):
    """`digest` is the SHA-256 over everything else, in the spelling of `digest_of`."""

    LATER = frozenset({"listed"})

    certificate: Literal[1] = 1
    erasure: Annotated[str, Field(pattern=ID)]
    issued: str
    program: str
    asked: Asked
    model: FittedModel | None
    state: State
    reason: str
    history: tuple[Step, ...]
    policies: tuple[InPolicy, ...]
    guards: tuple[Gate, ...]
    listed: Listed | None = None
    judgement: str
    figures: dict[str, str]
    fired: dict[Literal["shadow", "in force"], Fired]
    digest: str = ""

    def signed(self) -> Self:
        """The same with its digest."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json"))})

    def says_the_same(self, other: Certificate) -> bool:
        """Whether two certificates differ in nothing but the time at which they were issued."""
        own = {"issued": "", "digest": ""}
        return self.model_copy(update=own) == other.model_copy(update=own)


def digest_of(certificate: Mapping[str, Any]) -> str:
    """`sha256:` and 64 hex digits over the JSON of all members but `digest`.

    Its keys are sorted, it has no spaces, and characters are as they are.
    """
    facts = {name: value for name, value in certificate.items() if name != "digest"}
    text = json.dumps(
        facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_certificate(path: Path) -> Certificate:
    """The certificate in a file, whose own digest holds. Raises DataError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB: no certificate")
        found = json.loads(content, object_pairs_hook=_once)
        certificate = Certificate.model_validate_json(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        reason = _reason(error)
        raise DataError(f"{path}: is no certificate of an erasure: {reason}") from error
    computed = digest_of(found)
    if certificate.digest != computed:
        raise DataError(
            f"{path}: was altered: its digest is {computed}, not {certificate.digest[:80]!r}"
        )
    return certificate


def find_in_audit(certificate: Certificate, log: Path) -> tuple[int, str]:
    """The line of the audit log that has this certificate, and its time.

    Raises DataError where there is none.
    """
    for number, entry in _entries(log):
        if (
            entry.get("event") == EVENT
            and entry.get("erasure") == certificate.erasure
            and entry.get("certificate") == certificate.digest
        ):
            if entry.get("state") != certificate.state:
                raise DataError(
                    f"{log}: line {number} has the certificate with the state "
                    f"{str(entry.get('state'))[:80]!r}, not {certificate.state!r}"
                )
            return number, str(entry.get("time", ""))[:80]
    raise DataError(
        f"{log}: has no line with this certificate: the server of this log has not issued it, or "
        "the line is in a file that was rotated away"
    )


def check_artifacts(certificate: Certificate, folder: Path) -> int:
    """The number of the certificate's artifacts, all of which are in `folder`, unaltered; or 1
    where the list of its entry is there, which has it while that is in force, and not after.

    Raises DataError for the first that is missing or altered.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder: give the one with the artifacts")
    found: dict[str, Artifact] = {}
    damaged: dict[str, str] = {}
    for path in paths:
        try:
            artifact = Artifact.load(path)
            found[artifact.digest] = artifact
        except ArtifactError as error:
            damaged[path.name] = error.message
    if certificate.listed is not None:
        _check_list(certificate.state, certificate.listed, [*found.values()], folder)
        return 1
    missing = [gate for gate in certificate.guards if gate.artifact not in found]
    if missing:
        first = missing[0]
        known = "".join(f"; {message}" for message in list(damaged.values())[:1])
        raise DataError(
            f"{folder}: {len(missing)} of {len(certificate.guards)} artifacts are missing or "
            f"altered, as that of {first.guard} (sha256:{first.artifact}){known}"
        )
    return len(certificate.guards)


def _check_list(state: State, listed: Listed, artifacts: Sequence[Artifact], folder: Path) -> None:
    concept = listed.concept.removesuffix(f"/{listed.entry}")
    lists = [
        each.meta.settings.get("entries") for each in artifacts if each.meta.concept == concept
    ]
    entries = [each for each in lists if isinstance(each, list)]
    if not entries:
        raise DataError(f"{folder}: has no list {concept!r}, or an altered one")
    has = any(listed.entry in each for each in entries)
    if has != (state == "in force"):
        what = "a list here has" if has else "no list here has"
        raise DataError(f"{folder}: {what} the entry {listed.entry!r}, which is {state}")


def policies_of(policies: Sequence[str], history: Sequence[Step]) -> tuple[InPolicy, ...]:
    """Since when, and until when, policies have had guards with this history of states."""
    live = [step.time for step in history if step.state in {"shadow", "in force"}]
    if not live:
        return ()
    ended = next((step.time for step in history if step.state == "withdrawn"), None)
    return tuple(InPolicy(policy=policy, since=live[0], until=ended) for policy in policies)


def _entries(log: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a log with the numbers of their lines; what is none is passed over."""
    try:
        with log.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    yield number, entry
    except OSError as error:
        raise DataError(f"{log}: cannot be read: {error.strerror}") from error


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that has a member twice says different things to different readers."""
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("an object has a member twice")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
