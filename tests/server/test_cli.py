from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from guard.audit.signing import Signer, new_key
from guard.audit.verify import verify
from server.cli import app

CONFIG = """
[server]
audit_log = "{folder}/audit.jsonl"
{signing}

[[models]]
name = "fake"
source = "fake"
"""

FAKE_BUILD = """
import sys
import types
from tests.server.fake_service import FakeService
build = types.ModuleType("server.services.build")
build.build_services = lambda config, record: {"fake": FakeService(record=record)}
sys.modules["server.services.build"] = build
from server.cli import app
app()
"""


@contextmanager
def served(
    folder: Path, signing: str = ""
) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """`guard serve` on a free port over a fake service, and the line that it says when ready."""
    path = folder / "config.toml"
    path.write_text(CONFIG.format(folder=folder, signing=signing))
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE_BUILD, "--config", str(path), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_and_a_stop_keeps_the_audit_line(
    tmp_path: Path, stop: signal.Signals
) -> None:
    with served(tmp_path) as (process, ready):
        assert ready["event"] == "ready" and ready["models"] == ["fake"]
        assert ready["pid"] == process.pid
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(f"{ready['url']}/v1/chat/completions", json=body, timeout=10)
        assert answer.status_code == 200
        os.kill(process.pid, stop)
        assert process.wait(10) in (0, -stop)
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(line)["request_id"] == answer.headers["X-Request-Id"]


def test_a_hangup_signal_lets_the_audit_log_be_rotated(tmp_path: Path) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    log, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    with served(tmp_path) as (process, ready):
        chat = f"{ready['url']}/v1/chat/completions"
        httpx.post(chat, json=body, timeout=10)
        log.rename(old)
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 5
        while not log.exists():
            assert time.monotonic() < end, "the log was not reopened"
            time.sleep(0.01)
        second = httpx.post(chat, json=body, timeout=10)
    assert len(old.read_text().splitlines()) == 1
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["request_id"] == second.headers["X-Request-Id"]


def test_a_signed_log_is_whole_after_a_rotation_and_a_stop(tmp_path: Path) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    log, old, key = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1", tmp_path / "audit.pem"
    new_key(key)
    with served(tmp_path, 'audit_key = "audit.pem"') as (process, ready):
        chat = f"{ready['url']}/v1/chat/completions"
        httpx.post(chat, json=body, timeout=10)
        end = time.monotonic() + 5
        while not log.stat().st_size:
            assert time.monotonic() < end, "the line was not written"
            time.sleep(0.01)
        log.rename(old)
        process.send_signal(signal.SIGHUP)
        while not log.exists():
            assert time.monotonic() < end, "the log was not reopened"
            time.sleep(0.01)
        second = httpx.post(chat, json=body, timeout=10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
    report = verify([old, log], Signer(key).public)
    assert (report.faults, report.notes) == ([], [])
    request, end_of_run = map(json.loads, log.read_text().splitlines())
    assert request["request_id"] == second.headers["X-Request-Id"]
    assert end_of_run["reason"] == "closed"


def test_a_port_in_use_is_reported_before_any_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(folder=tmp_path, signing=""))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["--config", str(path), "--port", port])
    assert result.exit_code == 1
    assert "cannot listen" in result.stderr and "Traceback" not in result.output


def test_a_file_without_models_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[server]\nport = 0\n")
    command = [sys.executable, "-m", "guard", "serve", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: there is no model to serve: add [[models]]\n"


def test_help_ends_with_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Example: guard serve" in result.stdout


def test_wrong_usage_exits_with_two() -> None:
    assert CliRunner().invoke(app, ["--port", "70000"]).exit_code == 2
