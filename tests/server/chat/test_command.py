"""The command in a pseudo-terminal and with lines that are piped in, as a process."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from guard.errors import GuardError
from guard.models.sources import added_model
from server.chat.client import End
from server.chat.local import config_for, local_server
from tests.server.live_server import LiveServer, live_server
from tests.server.tiny_text_service import TinyTextModel
from tests.steering.adapters import save_adapter

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "from server.chat.cli import app; app(prog_name='guard chat')"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"}
_REAL = """
[server]
default_policy = "harry-potter"
max_tokens_limit = 24
[[models]]
name = "smollm2"
source = "smollm2"
[[guards]]
name = "harry-potter"
artifact = "{artifact}"
[policies.harry-potter]
guards = ["harry-potter"]
"""
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A process with a terminal of its own: what is typed goes in, what is shown comes out."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int) -> None:
        self.process, self._controller = process, controller
        self.shown = ""

    def wait_for(self, pattern: str, seconds: float = 180.0) -> str:
        """What is shown up to the pattern, behind what was waited for before."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < end, f"no {pattern!r} in {self.shown!r}"
            if select.select([self._controller], [], [], 0.1)[0]:
                try:
                    new = os.read(self._controller, 65536)
                except OSError:  # the process is over
                    new = b""
                assert new, f"it ended without {pattern!r}: {self.shown!r}"
                self.shown += _COLOURS.sub("", new.decode())
        before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C until it has an effect: Python's readline only notices one that comes just
        before it waits for a key with the next key."""
        for _ in range(20):
            self.type("\x03")
            with suppress(AssertionError):
                self.wait_for(pattern, 2.0)
                return
        self.wait_for(pattern, 0.0)


@contextmanager
def terminal(*arguments: str, folder: Path | None = None) -> Iterator[Terminal]:
    controller, inner = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=folder,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(inner)
    try:
        yield Terminal(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def _take_terminal() -> None:
    """Make stdin the controlling terminal: Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def piped(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT | environment,
    )


def test_lines_that_are_piped_in_are_answered(live: LiveServer) -> None:
    done = piped("hello\n\n/policy strict\nagain\n", "fake", "--url", live.url)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr.splitlines()[0].startswith("[none: ")
    assert done.stderr.splitlines()[-1].startswith("[strict: ")
    failed = piped("/policy nope\nhello\n", "fake", "--url", live.url)
    assert failed.returncode == 1 and "[none: " in failed.stderr


def test_a_chat_in_a_terminal(live: LiveServer) -> None:
    with terminal("fake", "--url", live.url) as chat:
        chat.wait_for("> $")
        chat.type("hello\r")
        assert "none: " in chat.wait_for(r"\[none: .*\]")
        chat.wait_for("> $")
        # once the letters are shown the line is being read, and Ctrl-C takes it back
        chat.type("abc")
        chat.wait_for("abc")
        chat.interrupt("\n> $")
        chat.type("/help\r")
        chat.wait_for("Ctrl-D leaves")
        chat.wait_for("> $")
        chat.type("\x04")
        assert chat.process.wait(20) == 0


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on() -> None:
    with live_server() as live, terminal("fake", "--url", live.url) as chat:
        chat.wait_for("> $")
        chat.type("slow\r")
        chat.wait_for("aaa")
        chat.type("\x03")
        chat.wait_for(r"\[stopped\]")
        live.wait_until(lambda: bool(live.service.cancelled))
        chat.wait_for("> $")
        chat.type("hello\r")
        chat.wait_for(r"\[none: ")


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["fake", "--url", "nowhere"], 1, "is no URL"),
        (["fake", "--url", "http://127.0.0.1:9"], 1, "cannot be reached"),
        (["no-such-model"], 1, "is no added model"),
        (["x", "--config", "/no/such/file.toml"], 1, "/no/such/file.toml"),
        (["x", "--url", "http://127.0.0.1:9", "--config", "c.toml"], 2, "--config"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], status: int, why: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guard", "chat", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert (done.returncode, why in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


def test_a_model_of_the_configuration_is_served_to_the_chat_alone(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    path = tiny_model.write_config(tiny_model.copy(tmp_path), max_tokens_limit=8)
    config, name = config_for("tiny", path)
    with local_server(config) as client:
        assert "steer-always" in client.policies()
        ask = [{"role": "user", "content": "hello"}]
        end = list(client.answer(name, ask, "steer-always", temperature=0))[-1]
    assert isinstance(end, End) and end.verdict is not None
    assert end.verdict["outcome"] == "steered"
    assert not (tmp_path / "audit.jsonl").exists()
    with pytest.raises(GuardError, match="there is no model 'other': there is tiny"):
        config_for("other", path)


def test_an_adapter_of_the_configuration_answers_as_itself(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    path = tiny_model.write_config(tiny_model.copy(tmp_path), max_tokens_limit=8)
    model = AutoModelForCausalLM.from_pretrained(tiny_model.folder / "model")
    save_adapter(tmp_path / "changed", model)
    adapter = '[[models.adapters]]\nname = "changed"\nsource = "changed"\n'
    path.write_text(path.read_text().replace("[[guards]]", f"{adapter}[[guards]]", 1))
    texts = {}
    with local_server(config_for("changed", path)[0]) as client:
        for name in ("tiny", "changed"):
            ask = [{"role": "user", "content": "hello"}]
            *pieces, end = client.answer(name, ask, "none", temperature=0)
            texts[name] = "".join(map(str, pieces))
            assert isinstance(end, End) and end.verdict is not None
            assert end.verdict["outcome"] == "pass"
    assert texts["tiny"] != texts["changed"]
    done = piped("hello\n/policy steer-always\nhello\n", "changed", "--config", str(path))
    assert done.stdout.splitlines()[0].startswith(texts["changed"].splitlines()[0])
    assert done.returncode == 1 and "guard rebind" in done.stderr


def test_what_a_chat_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    models = '[[models]]\nname = "m"\nsource = "smollm2"\n'
    models += '[[models]]\nname = "d"\nsource = "emoji"\nengine = "diffusers"\n'
    digest = "0" * 64
    path.write_text(models)
    with pytest.raises(GuardError, match="generates images"):
        config_for("d", path)
    server = f'[server]\nadmin_hash = "sha256:{digest}"\n[erasures]\nfolder = "e"\n'
    path.write_text(server + models)
    with pytest.raises(GuardError, match="--url"):
        config_for("m", path)


@pytest.mark.slow
def test_a_real_model_in_a_terminal(tmp_path: Path) -> None:
    if added_model("smollm2") is None:
        pytest.skip("guard models add smollm2")
    artifact = ROOT / "examples" / "harry-potter" / "steer.safetensors"
    config = tmp_path / "config.toml"
    config.write_text(_REAL.format(artifact=artifact))
    with terminal("smollm2", "--config", str(config)) as chat:
        chat.wait_for("> $", 300)
        chat.type("Who is Ron Weasley?\r")
        chat.wait_for(r"\[harry-potter: steered", 300)
        chat.wait_for("> $")
        chat.type("/bare\r")
        assert "Weasley" in chat.wait_for(r"\[none: pass", 300)
        chat.wait_for("> $")
        chat.type("Count to one thousand.\r")
        chat.wait_for("\n.+", 300)
        chat.type("\x03")
        chat.wait_for(r"\[stopped\]", 60)
        chat.wait_for("> $")
        chat.type("\x04")
        assert chat.process.wait(60) == 0
