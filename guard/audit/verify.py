"""Whether the lines of an audit log are as they were written: all of them, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.audit.chain import (
    BROKEN,
    CHECKPOINT,
    EVERY,
    LOST,
    RECOVERED,
    START,
    Head,
    digest,
    encode,
    is_linked,
    parse,
    unfit,
)
from guard.audit.chain_file import checkpoint_path
from guard.audit.files import read_lines
from guard.audit.signing import is_signed

MOST_FAULTS = 100
"""After which the rest of a log is not looked at."""


@dataclass
class Report:
    """`faults` name a file and a line each, with what is wrong there; `notes` tell what an honest
    log may have too: crashes, lost lines, what is not signed yet."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: int = 0
    first: int = 0
    head: Head = START
    checkpoints: int = 0
    erased: int = 0

    def summary(self) -> str:
        """One line about what was read."""
        erased = f", personal fields erased in {self.erased}" if self.erased else ""
        return (
            f"{self.lines} chained lines, {self.first} to {self.head.seq}, "
            f"{self.checkpoints} checkpoints{erased}"
        )


def verify(paths: Sequence[Path], public: str, checkpoint: Path | None = None) -> Report:
    """Check the files of a log, the oldest first, against the public key.

    `checkpoint` is a copy of a checkpoint, None for the one beside the last file: the lines up to
    there must be in the log. Raises DataError where a file cannot be read, GuardError for the key.
    """
    check = _Check(public)
    for path in paths:
        check.file(path, read_lines(path))
    beside = checkpoint_path(paths[-1])
    known = checkpoint or (beside if beside.is_file() else None)
    check.end(known, next(iter(read_lines(known)), b"") if known is not None else b"")
    return check.report


class _Check:
    def __init__(self, public: str) -> None:
        self.report = Report()
        self._public = public
        self._before = 0
        self._where = self._torn_where = ""
        self._torn: int | None = None
        """The length of a line that is not whole, until the next one accounts for it."""
        self._signed: list[Head] = []
        """The last checkpoint, if there was one."""
        self._writers: dict[str, str] = {}
        self._signed_heads: dict[int, str] = {}

    def file(self, path: Path, lines: Iterable[bytes]) -> None:
        for number, line in enumerate(lines, 1):
            if len(self.report.faults) >= MOST_FAULTS:
                return
            self._line(f"{path}:{number}", line)

    def end(self, known: Path | None, copied: bytes) -> None:
        report = self.report
        if self._torn is not None:
            report.notes.append(f"{self._torn_where}: half a line: a crash, or it is being written")
        if not report.lines:
            report.faults.append("no line is chained: there is nothing to check")
        elif not self._signed:
            report.faults.append(
                f"no checkpoint: nothing shows who wrote lines to {report.head.seq}"
            )
        elif unsigned := report.head.seq - self._signed[0].seq:
            report.notes.append(f"no checkpoint yet after the last lines ({unsigned})")
        for writer, where in self._writers.items():
            report.notes.append(
                f"{where}: writer {writer} opened the log and has not closed it: it runs, was "
                "killed, or the end was cut off"
            )
        if self._before:
            report.notes.append(f"{self._before} lines before the chain are not protected")
        if known is not None:
            self._hold_against(known, copied)

    def _hold_against(self, known: Path, copied: bytes) -> None:
        entry = parse(copied)
        if entry is None or not is_linked(entry) or not is_signed(entry, self._public):
            self.report.faults.append(f"{known}: is no checkpoint that this key has signed")
        elif entry["seq"] > self.report.head.seq:
            self.report.faults.append(
                f"{self._where}: the end was cut off: {known} is the checkpoint of line "
                f"{entry['seq']}, the log ends with {self.report.head.seq}"
            )
        elif entry["seq"] >= self.report.first and (
            self._signed_heads.get(entry["seq"]) != digest(entry)
        ):
            self.report.faults.append(f"{known}: is not the checkpoint that the log has there")

    def _line(self, where: str, line: bytes) -> None:
        report = self.report
        entry = parse(line) if line.endswith(b"\n") else None
        if entry is None or not _is_spelled(entry, line):
            if self._torn is not None:
                self._altered(self._torn_where)
            self._torn, self._torn_where = len(line.rstrip(b"\n")), where
            return
        if not is_linked(entry):
            if report.lines:
                report.faults.append(f"{where}: has no place in the chain: it was put in")
            else:
                self._before += 1
            return
        self._account_for_torn(entry)
        if (name := unfit(entry)) is not None:
            report.faults.append(f"{where}: was altered: its {name} is not what it commits to")
        report.erased += any(entry.get(name) is None for name in entry.get("personal", ()))
        if self._follows(where, entry):
            report.head = Head(entry["seq"], digest(entry))
            self._where = where
            report.lines += 1
            self._tell(where, entry)

    def _account_for_torn(self, entry: Mapping[str, Any]) -> None:
        if self._torn is None:
            return
        if entry.get("event") == BROKEN and entry.get("torn") == self._torn:
            self.report.notes.append(f"{self._torn_where}: half a line, of a crash")
        else:
            self._altered(self._torn_where)
        self._torn = None

    def _altered(self, where: str) -> None:
        self.report.faults.append(f"{where}: was altered: it is not a line as the log writes it")

    def _follows(self, where: str, entry: Mapping[str, Any]) -> bool:
        """Whether the chain goes on with this line; faults are noted."""
        report, (seq, prev) = self.report, (entry["seq"], entry["prev"])
        if not report.lines:
            report.first = seq
            if seq == 1 and prev != START.digest:
                report.faults.append(f"{where}: was altered: a first line has nothing before it")
            return True
        head = report.head
        if seq == head.seq + 1:
            if prev != head.digest:
                report.faults.append(f"{self._where}: was altered, as the line after it shows")
            return True
        if seq > head.seq:
            missing = (
                f"line {head.seq + 1} is"
                if seq == head.seq + 2
                else (f"lines {head.seq + 1} to {seq - 1} are")
            )
            report.faults.append(f"{where}: {missing} missing before it")
            return True
        if self._signed and prev == self._signed[0].digest and entry.get("event") == BROKEN:
            # a crash, and the file was moved away before the next start
            report.notes.append(f"{where}: goes on from the checkpoint of line {seq - 1}")
            return True
        if (seq, digest(entry)) == head:
            report.faults.append(f"{where}: is the line before it once more")
        elif seq == 1 and prev == START.digest:
            report.faults.append(f"{where}: another chain begins, which knows no line before it")
            return True
        else:
            report.faults.append(
                f"{where}: line {seq} stands after line {head.seq}: it was moved or doubled"
            )
        return False

    def _tell(self, where: str, entry: Mapping[str, Any]) -> None:
        report, event, seq = self.report, entry.get("event"), entry["seq"]
        if event == CHECKPOINT:
            if not is_signed(entry, self._public):
                report.faults.append(f"{where}: the checkpoint is not signed with this key")
            report.checkpoints += 1
            self._signed = [report.head]
            self._signed_heads[seq] = report.head.digest
            writer = str(entry.get("writer"))[:16]
            if entry.get("reason") == "opened":
                self._writers[writer] = where
            elif entry.get("reason") == "closed":
                self._writers.pop(writer, None)
        elif seq % EVERY == 0:
            report.faults.append(f"{where}: should be a checkpoint, as each {EVERY}th line")
        elif event == BROKEN:
            report.notes.append(
                f"{where}: the chain was broken off: it is known to line {entry.get('known_to')}; "
                "of a crash of the machine, lines behind it may be lost"
            )
        elif event == RECOVERED:
            report.notes.append(
                f"{where}: the {entry.get('lines')} lines before it are of a process that was gone"
            )
        elif event == LOST:
            report.notes.append(f"{where}: {entry.get('lines')} lines had no room before it")


def _is_spelled(entry: Mapping[str, Any], line: bytes) -> bool:
    try:
        return encode(entry) == line or not is_linked(entry)
    except ValueError:
        return False
