"""Server processes of a benchmark: start one, wait until it listens, read what it has used."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 120.0


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    *,
    core: int | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[int]:
    """Run a server on one thread until the block ends; yields its process id.

    The block starts once the server listens on `port`. The process is pinned to `core`, works in
    `folder` and writes to `log`, each where it is given. Raises SystemExit where the process ends
    or does not listen within START_TIMEOUT_S.
    """

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    with (log or Path(os.devnull)).open("ab") as output:
        process = subprocess.Popen(
            command,
            preexec_fn=pin,  # noqa: PLW1509  # no threads here
            stdout=output,
            stderr=output,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
        )
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                reason = log.read_text("utf-8", "replace")[-1000:] if log else ""
                raise SystemExit(f"{' '.join(command[:4])} does not start\n{reason}".rstrip())
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(process: int) -> float:
    """User and system time of a process and its children, in steps of a clock tick (10 ms)."""
    return sum(map(_cpu_seconds, [process, *_children(process)]))


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(process: int) -> int:
    """The resident set of a process. Raises SystemExit where the process has ended."""
    return _status_kib(process, "VmRSS")


def peak_kib(process: int) -> int:
    """The largest resident set of a process since `reset_peak`. Raises as `resident_kib`."""
    return _status_kib(process, "VmHWM")


def reset_peak(process: int) -> None:
    """Let `peak_kib` begin anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def _status_kib(process: int, field: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise SystemExit(f"process {process} has ended")
