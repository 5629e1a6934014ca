"""Weights are never touched, silence is identity, rows are independent, guards fail closed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from guard.config.schema import load_config
from guard.errors import ConfigError
from tests.server.invariants.text_server import CHAT, TextServer, failure, serve_text, text_of
from tests.server.tiny_text_service import NAN_LETTER, TinyTextModel, save_nan_artifact


def test_no_traffic_changes_a_weight(server: TextServer) -> None:
    before = server.running.engine.weights()
    policies = ["none", "steer-always", "steer-late", "block-always", "open-other", "observe-late"]

    def post(index: int) -> None:
        text = f"{NAN_LETTER}{index}" if index % 5 == 0 else f"{index}"
        with httpx.Client(timeout=20) as client:
            client.post(
                f"{server.url}{CHAT}",
                json=server.body(text, policies[index % len(policies)], temperature=index % 2),
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(post, range(24)))
    assert server.running.engine.weights() == before


def test_answers_are_the_same_alone_and_among_rows_with_other_guards(server: TextServer) -> None:
    policies = ["none", "steer-never", "steer-always", "flag-always"]
    alone = {policy: server.chat("a question", policy, logprobs=True) for policy in policies}
    with ThreadPoolExecutor(8) as pool:
        requested = policies * 4
        together = list(pool.map(lambda p: server.chat("a question", p, logprobs=True), requested))
    for policy, answer in zip(requested, together, strict=True):
        assert text_of(answer) == text_of(alone[policy])
        logprobs, expected = (
            [token.logprob for token in reply.choices[0].logprobs.content]
            for reply in (answer, alone[policy])
        )
        # batches of another size round otherwise; test_batching has one batch, and equal bits
        assert logprobs == pytest.approx(expected, abs=1e-4)
    assert text_of(alone["none"]) == text_of(alone["steer-never"]) == text_of(alone["flag-always"])
    assert text_of(alone["steer-always"]) != text_of(alone["none"])


def test_a_guard_of_another_model_fails_closed_or_open_as_its_policy_says(
    server: TextServer,
) -> None:
    error = failure(lambda: server.chat(policy="steer-other"))
    assert (error.status_code, error.code) == (500, "guard_failed")
    assert "fitted on" in error.response.json()["guard"]["guards"][0]["error"]
    assert error.response.headers["X-Guard-Verdict"] == "error"
    answer = server.chat(policy="open-other")
    assert text_of(answer) == text_of(server.chat())
    assert answer.guard["outcome"] == "error"


def test_nan_in_the_activations_fails_closed_or_open_as_the_policy_says(server: TextServer) -> None:
    for stream in (False, True):
        error = failure(
            lambda stream=stream: server.chat(f"x{NAN_LETTER}", "steer-never", stream=stream)
        )
        assert (error.status_code, error.code) == (500, "guard_failed")
        assert error.response.json()["guard"]["outcome"] == "error"
    answer = server.chat(f"x{NAN_LETTER}", "open-never", logprobs=True, top_logprobs=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.guard["guards"][0]["score"] is None


def damage(path: Path, how: str, fingerprint: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-7])
    elif how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "nan":
        save_nan_artifact(path, fingerprint)
    elif how == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n.")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "altered", "nan", "pickle", "gone"])
def test_a_damaged_artifact_is_refused_at_once_and_never_served(
    tiny_model: TinyTextModel, tmp_path: Path, how: str
) -> None:
    path = tiny_model.write_config(tiny_model.copy(tmp_path), max_batch=2)
    config = load_config(path)
    damage(tmp_path / "always.safetensors", how, tiny_model.fingerprint)
    with pytest.raises(ConfigError, match="always.safetensors"):
        load_config(path)
    # damaged between the check and the load
    with tiny_model.serve(tmp_path, config) as running, serve_text(running) as server:
        for policy in ("steer-always", "observe-always"):
            error = failure(lambda policy=policy: server.chat(policy=policy))
            assert (error.status_code, error.code) == (500, "guard_failed")
        assert text_of(server.chat(policy="open-always")) == text_of(server.chat())
        assert server.chat(policy="steer-never").guard["outcome"] == "pass"
        listed = httpx.get(f"{server.url}/guard/v1/policies").json()["data"]
        models = {policy["id"]: policy["models"] for policy in listed}
        assert models["steer-always"] == [] and models["open-always"] == ["tiny"]


def test_a_blocked_prompt_is_a_bad_request_and_a_blocked_answer_is_cut(
    server: TextServer, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    for stream in (False, True):
        error = failure(lambda stream=stream: server.chat(policy="block-always", stream=stream))
        assert (error.status_code, error.code) == (400, "content_filter")
        assert error.response.headers["X-Guard-Verdict"] == "blocked"
    whole = server.chat(late.prompt, logprobs=True)
    tokens = [token.token for token in whole.choices[0].logprobs.content]
    cut = server.chat(late.prompt, "block-late")
    assert cut.choices[0].finish_reason == "content_filter"
    assert text_of(cut) == "".join(tokens[: late.position - 1])
    assert cut.usage.completion_tokens == late.position - 1
    chunks = list(server.chat(late.prompt, "block-late", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(cut)
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].guard["guards"][0]["position"] == late.position
