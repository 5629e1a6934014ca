"""The processes of a drill, proxies and upstreams, and the small disk of the audit logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import free_port

READY_S = 120.0


@dataclass
class Process:
    """A server that can be killed and started again with the same command."""

    command: list[str]
    log: Path
    port: int
    started: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the caller waits until it answers."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DRILL_UPSTREAM_KEY": "none"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        self.started += 1

    def end(self, number: int) -> int | None:
        """Send a signal and wait; the exit status."""
        if self._process is None:
            return None
        self._process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(40)
        self._process.kill()
        self._process.wait()
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def usage(self) -> dict[str, int]:
        """Resident memory in kB, open files and threads of the process."""
        assert self._process is not None
        folder = Path(f"/proc/{self._process.pid}")
        lines = (folder / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        return {
            "memory, kB": int(status["VmRSS"].split()[0]),
            "files": len(os.listdir(folder / "fd")),
            "threads": int(status["Threads"]),
        }


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of so many megabytes at `folder`, and whether it is one: that takes root."""
    folder.mkdir()
    options = f"size={megabytes}m"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    is_small = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def proxies(config: Path, logs: Path, count: int) -> list[Process]:
    """Replicas of one configuration, which differ in port and audit log."""
    text = config.read_text()
    replicas = []
    for number in range(count):
        own = config.with_name(f"proxy-{number}.toml")
        own.write_text(text.replace("AUDIT", json.dumps(str(logs / f"audit-{number}.jsonl"))))
        port = free_port()
        command = [sys.executable, "-m", "guard", "proxy", "--config", str(own)]
        log = config.with_name(f"proxy-{number}.log")
        replicas.append(Process([*command, "--port", str(port)], log, port))
    return replicas


def upstreams(folder: Path, count: int) -> list[Process]:
    """Upstreams, each of which notes what arrives unguarded in a file of `folder`."""
    found = []
    for number in range(count):
        port, notes = free_port(), folder / f"unguarded-{number}.txt"
        command = [sys.executable, "-m", "tests.drill.upstream", str(port), str(notes)]
        found.append(Process(command, folder / f"upstream-{number}.log", port))
    return found


KILL, STOP = signal.SIGKILL, signal.SIGTERM
