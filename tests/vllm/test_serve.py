"""vLLM's server with the plugin, asked by OpenAI's client.

`vllm serve` itself looks for a distribution of that name, which the CPU build is not: this is the
module that it runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import BadRequestError, OpenAI  # noqa: E402

from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import save, save_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("serve")
    save(folder)
    save_tokenizer(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ) | {
        "GUARD_CONFIG": str(folder / "config.toml"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "--model": str(folder / "model"),
        "--served-model-name": "tiny",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "160",
        "--max-num-seqs": "8",
    }
    command += ["--enforce-eager", *(part for pair in options.items() for part in pair)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", folder / "log")
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text("utf-8")[-5000:]
        try:
            urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(1)
    raise AssertionError("vLLM has not come up")


def asked(policy: str) -> dict[str, object]:
    return {"vllm_xargs": {"guard_policy": policy}, "ignore_eos": True}


def words(number: int) -> str:
    return " ".join(f"w{token}" for token in prompt(5 + 3 * number, seed=number))


def test_answers_come_with_their_verdict(client: OpenAI) -> None:
    ends = set()
    for number in range(20):
        reply = client.completions.create(
            model="tiny",
            prompt=words(number),
            max_tokens=4,
            temperature=0,
            extra_body=asked("stop"),
        )
        told = reply.model_extra["kv_transfer_params"]["guard"]  # type: ignore[index]
        (choice,) = reply.choices
        assert told["policy"] == "stop" and told["model"] == "tiny"
        blocked = told["outcome"] == "blocked"
        assert choice.finish_reason == ("content_filter" if blocked else "length")
        assert bool(choice.text) != blocked
        ends.add(choice.finish_reason)
    assert ends == {"content_filter", "length"}


def test_chat_streams_what_it_says_at_once(client: OpenAI) -> None:
    outcomes = set()

    def chat(policy: str, number: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": words(number)}]
        about = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0}
        whole = client.chat.completions.create(**about, extra_body=asked(policy))
        parts = client.chat.completions.create(**about, stream=True, extra_body=asked(policy))
        streamed = [part.choices[0] for part in parts if part.choices]
        text = "".join(part.delta.content or "" for part in streamed)
        told = (whole.model_extra["kv_transfer_params"] or {}).get("guard", {})  # type: ignore[index]
        assert told.get("policy", "none") == policy
        outcomes.add(told.get("outcome"))
        (choice,) = whole.choices
        assert text == (choice.message.content or "")
        assert streamed[-1].finish_reason == choice.finish_reason
        return text, choice.finish_reason

    bare, steered = (
        [chat(policy, number) for number in range(8, 18)] for policy in ("none", "firm")
    )
    assert outcomes == {None, "pass", "steered"}
    assert bare != steered
    assert any(one == other for one, other in zip(bare, steered, strict=True))


def test_an_unknown_policy_is_a_400(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="there is no policy 'ghost'") as refused:
        client.completions.create(
            model="tiny", prompt="w5", max_tokens=1, extra_body=asked("ghost")
        )
    assert refused.value.status_code == 400
