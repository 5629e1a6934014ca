"""The folder of all erasures: one folder for each, which is there as a whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from guard.certificate import Certificate, Document
from guard.errors import GuardError
from server.erasures.record import Record

logger = logging.getLogger(__name__)

RECORD, CERTIFICATE, DOCUMENTS, FITTED = "erasure.json", "certificate.json", "documents", "fitted"
LIST, RESULT = "list.safetensors", "entry.json"
"""In the folder FITTED: a list with one more entry, until it is in the place of the one before, and
what the record says of the entry."""
_NEW = ".new-"
_MAX_BYTES = 2**24


class Store:
    """The erasures in `folder`, which one server at a time may use. Raises GuardError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise GuardError(f"erasures in {folder}: cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise GuardError(
                f"erasures in {folder}: another server uses this folder: give each one of its own"
            ) from None
        for unfinished in folder.glob(f"{_NEW}*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def close(self) -> None:
        """Let another server use the folder."""
        os.close(self._lock)

    def load(self) -> list[Record]:
        """All records, the oldest first. Raises GuardError for one that cannot be read: its guards
        would be missing."""
        found = []
        for path in self.folder.glob(f"er-*/{RECORD}"):
            try:
                if path.stat().st_size > _MAX_BYTES:
                    raise ValueError("is too large")
                record = Record.model_validate_json(path.read_bytes())
                if record.id != path.parent.name:
                    raise ValueError(f"is of {record.id}")
            except (OSError, ValidationError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise GuardError(
                    f"{path}: is no record of an erasure ({reason}): put it back from a copy, or "
                    "move its folder elsewhere"
                ) from error
            found.append(record)
        return sorted(found, key=lambda record: (record.created, record.id))

    def create(self, record: Record, documents: Sequence[str]) -> None:
        """Keep a new erasure."""
        folder = self.folder / f"{_NEW}{record.id}"
        (folder / DOCUMENTS).mkdir(parents=True)
        for number, text in enumerate(documents):
            _write(folder / DOCUMENTS / f"{number:03}.txt", text)
        _write(folder / RECORD, record.model_dump_json(indent=1))
        folder.rename(self.of(record.id))

    def save(self, record: Record) -> None:
        """Keep a record in place of the earlier one."""
        _write(self.of(record.id) / RECORD, record.model_dump_json(indent=1))

    def remove_fit(self, record: Record) -> None:
        """Remove what a fit has left in the folder of an erasure that has ended, but the guards
        that its certificate has."""
        folder = self.of(record.id)
        for name in (f".{FITTED}",) if record.gates else (f".{FITTED}", FITTED):
            shutil.rmtree(folder / name, ignore_errors=True)

    def save_certificate(self, certificate: Certificate) -> None:
        """Keep a certificate in place of the earlier one."""
        path = self.of(certificate.erasure) / CERTIFICATE
        _write(path, certificate.model_dump_json(indent=1))

    def certificate(self, erasure: str) -> Certificate | None:
        """The last certificate that was issued, None where there is none that can be read, or whose
        digest does not hold."""
        path = self.of(erasure) / CERTIFICATE
        try:
            found = Certificate.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None
        return found if found == found.signed() else None

    def of(self, erasure: str) -> Path:
        """The folder of an erasure that exists."""
        return self.folder / erasure

    def artifact(self, erasure: str, file: str) -> Path:
        return self.of(erasure) / FITTED / file


def new_id() -> str:
    """An id, which is the name of a folder and a part of the names of guards."""
    return f"er-{secrets.token_hex(6)}"


def document_of(text: str) -> Document:
    """What a record says of a document."""
    return Document(sha256=hashlib.sha256(text.encode()).hexdigest(), characters=len(text))


def _write(path: Path, text: str) -> None:
    """Write a file, all of it or nothing, also where the machine crashes."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
