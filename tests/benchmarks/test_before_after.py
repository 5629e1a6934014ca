"""Two checkouts are compared by what their servers use; here both are one fake server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.before_after import compare, main, require_imports_from
from benchmarks.before_after_parts import PARTS

FAKE = '''
"""Takes the options of `guard serve`; works longer in the checkout named slow, and says so."""
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

assert os.environ["PYTHONPATH"] == os.getcwd() and os.environ["OMP_NUM_THREADS"] == "1"
assert sys.argv[1] == "serve" and os.getcwd() in open(sys.argv[3]).read()
seconds = 0.06 if os.path.basename(os.getcwd()) == "slow" else 0.01

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        until = time.process_time() + (0 if body["max_tokens"] < 10 else seconds)
        while time.process_time() < until:
            pass
        content = json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode()
        self.send_response(200 if os.path.basename(os.getcwd()) != "broken" else 500)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass

HTTPServer.request_queue_size = 16
HTTPServer(("127.0.0.1", int(sys.argv[5])), Handler).serve_forever()
'''


def compared(folder: Path, before: str, after: str) -> dict[str, Any]:
    """The comparison of two folders of these names, whose program is FAKE."""
    program = folder / "program.py"
    program.write_text(FAKE, "utf-8")
    for name in (before, after):
        (folder / name).mkdir()
    checkouts = {"before": folder / before, "after": folder / after}
    return compare(PARTS["transformers"], checkouts, 2, folder, (sys.executable, str(program)))


def test_ratios_are_after_over_before(tmp_path: Path) -> None:
    result = compared(tmp_path, "slow", "fast")
    assert result["unit"] == "tokens/s" and result["rounds"] == 2
    for clock in ("cpu", "wall"):
        figures = result[clock]
        assert figures["after"] > figures["before"] > 0
        assert len(figures["ratios"]) == 2 and min(figures["ratios"]) > 1.2
        assert figures["quartiles"][0] <= figures["ratio"] <= figures["quartiles"][1]


def test_a_request_that_fails_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="/v1/completions answered 500"):
        compared(tmp_path, "broken", "fast")


def test_a_server_that_does_not_start_shows_its_last_lines(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such model')")
    checkouts = {"before": tmp_path, "after": tmp_path}
    with pytest.raises(SystemExit, match="does not start\nno such model"):
        compare(PARTS["transformers"], checkouts, 2, tmp_path, command)


def test_a_folder_without_the_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no checkout that runs"):
        require_imports_from(tmp_path)
    require_imports_from(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--parts", "images,vllm"], "no part vllm: choose from"), (["--rounds", "1"], "2 at least")],
)
def test_options_that_cannot_be_used_are_refused(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["before_after", "--before", ".", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
