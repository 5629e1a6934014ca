"""Every way into vLLM beside its HTTP server: guarded, or refused by a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.tenants.secret import hash_key  # noqa: E402
from tests.vllm.checkpoint import CONFIG, save_tokenizer  # noqa: E402
from tests.vllm.driver import environment  # noqa: E402
from tests.vllm.play import MARK  # noqa: E402

SCREENED = f"""
[server]
default_policy = "read"
audit_log = "audit.jsonl"
admin_hash = "{hash_key("admin")}"
[[patterns]]
name = "topic"
source = "topic.toml"
[policies.read]
guards = ["topic"]
"""
TOPIC = '[[words]]\nlabel = "TOPIC"\nwords = ["forbidden"]\n'


@pytest.fixture(scope="module")
def screened(folder: Path) -> Path:
    """The folder, with a tokenizer, and screens of text in the default policy."""
    save_tokenizer(folder / "model")
    (folder / "topic.toml").write_text(TOPIC, "utf-8")
    (folder / "screened.toml").write_text(SCREENED + CONFIG, "utf-8")
    return folder


def ended(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A process under the configuration with screens that has ended."""
    return subprocess.run(
        [sys.executable, *command],
        env=environment(folder / "screened.toml") | more,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_python_and_other_front_ends(screened: Path, tmp_path: Path) -> None:
    # as installed: the entry points of the distribution
    about = tmp_path / "guard_endpoints-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: guard-endpoints\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[vllm.endpoint_plugins]\ninference-guard = server.vllm:endpoints\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = ended(screened, "-m", "tests.vllm.serving.ways_in", str(screened), PYTHONPATH=paths)
    assert MARK in done.stdout, done.stdout[-5000:] + done.stderr[-5000:]
    told: dict[str, Any] = json.loads(done.stdout.split(MARK)[1].splitlines()[0])
    for way in ("generate", "chat"):
        assert "'read' has screens" in told[f"{way} None"]
        assert told[f"{way} firm"] == "firm"
    assert told["foreign"] == [["foreign", "error", []]]
    assert "from a front end without guards" in done.stdout + done.stderr
    assert told["afterwards"] == "firm"
    assert told["plugins"] == {"None": [1, 1, 1], "inference-guard": [1, 1, 1]}


def test_a_batch_from_a_file_names_its_policy_in_vllms_arguments(screened: Path) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w5 w6"}], "max_tokens": 2}
    bodies = {
        "named": body | {"vllm_xargs": {"guard_policy": "firm"}},
        "default": body,
        "guard": body | {"guard": {"policy": "firm"}},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": own}
        for name, own in bodies.items()
    ]
    (screened / "in.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    done = ended(
        screened,
        *("-m", "vllm.entrypoints.openai.run_batch"),
        *("-i", str(screened / "in.jsonl"), "-o", str(screened / "out.jsonl")),
        *("--model", str(screened / "model"), "--served-model-name", "tiny", "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "160", "--max-num-seqs", "4"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    replies = [json.loads(line) for line in (screened / "out.jsonl").open(encoding="utf-8")]
    said = {reply["custom_id"]: json.dumps(reply) for reply in replies}
    assert '"finish_reason": "length"' in said["named"]
    assert "has screens" in said["default"] and "choices" not in said["default"]
    assert "name the policy in vllm_xargs.guard_policy" in said["guard"]
    with (screened / "audit.jsonl").open(encoding="utf-8") as audit:
        assert json.loads([*audit][-1])["policy"] == "firm"


def test_the_rust_front_end_is_refused(screened: Path) -> None:
    code = "from server.vllm import register; register()"
    done = ended(screened, "-c", code, VLLM_USE_RUST_FRONTEND="1")
    assert "vLLM's Rust front end knows no policies: unset VLLM_USE_RUST_FRONTEND" in done.stderr
