"""Ways around the screens that were open once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.screened import answering, ask, read_stream, screened, streaming
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_response,
    served,
)


def sent(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def test_a_race_that_is_lost_before_the_answer_begins_is_a_refusal(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(3)
        await send_response(send, chat_completion("ok"))

    with screened(tmp_path, Upstream(slow), "block", "race = true") as proxy:
        response = ask(proxy, "the forbidden thing")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "content_filter"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [2, 3, 4]}),
        ("/v1/completions", {"prompt": [[2, 3], [4]]}),
        ("/v1/embeddings", {"input": [2, 3, 4]}),
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
    ],
)
def test_prompts_as_token_ids_need_leave(tmp_path: Path, path: str, body: Any) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        response = httpx.post(proxy.url + path, json={"model": "m", **body})
        assert response.json()["error"]["code"] == "unscreened_content"
        assert not upstream.requests


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_file", "file_id": "file-1"},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file-1"}},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "video_url", "video_url": {"url": "https://x/y"}},
        {"type": "container_upload", "file_id": "file-1"},
    ],
)
def test_content_by_reference_needs_leave(tmp_path: Path, part: Any) -> None:
    upstream = answering("ok")
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    with screened(tmp_path, upstream) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json=body)
        assert response.json()["error"]["code"] == "unscreened_content"
        assert not upstream.requests


def test_speech_needs_leave_and_must_be_sound(tmp_path: Path) -> None:
    media = "audio/mpeg"

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, b"forbidden thing", media=media)

    body = {"model": "m", "input": "hello"}
    with screened(tmp_path, Upstream(respond)) as proxy:
        refused = httpx.post(f"{proxy.url}/v1/audio/speech", json=body)
        assert refused.json()["error"]["code"] == "unscreened_content"
    with screened(tmp_path, Upstream(respond), screen='unscreened = ["audio"]') as proxy:
        assert httpx.post(f"{proxy.url}/v1/audio/speech", json=body).status_code == 200
        media = "text/plain"
        assert httpx.post(f"{proxy.url}/v1/audio/speech", json=body).status_code == 502


def test_choices_that_share_an_event_are_cut_one_by_one(tmp_path: Path) -> None:
    def both(first: str, second: str) -> bytes:
        texts = (first, second)
        choices = [{"index": i, "delta": {"content": text}} for i, text in enumerate(texts)]
        return sent({"choices": choices})

    upstream = streaming(
        chat_chunk({"content": "the forbidden thing is " + "z" * 300}),
        both("SECRET UNREAD", "good "),
        both("SECRET UNREAD", "day"),
        chat_chunk({}, index=1, end="stop"),
    )
    with screened(tmp_path, upstream) as proxy:
        response = ask(proxy, "hi", stream=True, n=2)
        text, _, ended = read_stream(response)
        assert "SECRET" not in response.text
        assert text.endswith("good day")
        assert ended


@pytest.mark.parametrize(
    "delta",
    [
        lambda text: {"tool_calls": [{"index": 0, "custom": {"input": text}}]},
        lambda text: {"reasoning_details": [{"type": "reasoning.text", "text": text}]},
        lambda text: {"audio": {"transcript": text}},
        lambda text: {"something_new": text},
    ],
)
def test_new_fields_of_a_delta_are_read_across_events(tmp_path: Path, delta: Any) -> None:
    parts = [chat_chunk(delta(text)) for text in ("the forb", "idden th", "ing is")]
    with screened(tmp_path, streaming(*parts, chat_chunk({}, end="stop"))) as proxy:
        response = ask(proxy, "hi", stream=True)
        assert "content_filter" in response.text
        assert "idden" not in response.text


def test_the_text_that_a_block_begins_with_is_read_with_the_rest(tmp_path: Path) -> None:
    start = {"type": "content_block_start", "index": 0}
    delta = {"type": "content_block_delta", "index": 0}
    events = [
        {**start, "content_block": {"type": "text", "text": "the forbidden"}},
        {**delta, "delta": {"type": "text_delta", "text": " thing"}},
        {"type": "message_stop"},
    ]
    with screened(tmp_path, streaming(*map(sent, events), done=False)) as proxy:
        body = {"model": "m", "stream": True, "messages": []}
        response = httpx.post(f"{proxy.url}/v1/messages", json=body)
        assert "refusal" in response.text and "forbidden" not in response.text


def test_log_probabilities_do_not_spell_what_was_cut_out(tmp_path: Path) -> None:
    spelled = [{"token": "evil@corp.com"}]
    part = {"type": "output_text", "text": "to evil@corp.com", "logprobs": spelled}
    body = {"id": "r", "output": [{"type": "message", "content": [part]}]}

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body)

    with screened(tmp_path, Upstream(respond), "redact") as proxy:
        response = httpx.post(f"{proxy.url}/v1/responses", json={"model": "m", "input": "hi"})
        assert "[EMAIL_1]" in response.text and "evil" not in response.text
    choice = {"index": 0, "delta": {}, "logprobs": {"content": [{"token": "forbidden thing"}]}}
    with screened(tmp_path, streaming(sent({"choices": [choice]}))) as proxy:
        assert "forbidden" not in ask(proxy, "hi", stream=True).text


def test_comments_keep_a_connection_open_and_say_nothing(tmp_path: Path) -> None:
    upstream = streaming(
        b"\xef\xbb\xbf" + chat_chunk({"content": "the forb"}),
        b": forbidden thing\n\n",
        b"id: forbidden thing\ndata: {}\n\n",
        chat_chunk({"content": "idden thing"}),
    )
    with screened(tmp_path, upstream) as proxy:
        response = ask(proxy, "hi", stream=True)
        assert response.text.startswith(":\n\n"), "it does not wait behind text that is held"
        assert "forb" not in response.text


def test_an_empty_finish_reason_ends_nothing(tmp_path: Path) -> None:
    events = [chat_chunk({"content": text}, end="") for text in ("mail evil@co", "rp.com ok")]
    with screened(tmp_path, streaming(*events, chat_chunk({}, end="stop")), "redact") as proxy:
        text, _, _ = read_stream(ask(proxy, "hi", stream=True))
        assert text == "mail [EMAIL_1] ok"


def test_what_stands_in_two_strings_is_refused_where_it_cannot_be_cut_out(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "the forbidden"}, {"type": "text", "text": "thing"}]
    upstream = answering("ok")
    with screened(tmp_path, upstream, "redact") as proxy:
        for body in (
            {"messages": [{"role": "user", "content": parts}]},
            {"system": parts, "messages": []},
        ):
            path = "/v1/messages" if "system" in body else "/v1/chat/completions"
            response = httpx.post(proxy.url + path, json={"model": "m", **body})
            assert response.status_code == 400
        assert not upstream.requests


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "name": "f", "input": {"user": "joe@home.com"}}]}]},
        {"messages": [], "metadata": {"id": "joe@home.com"}},
        {"messages": [], "tools": [{"function": {"parameters": {"joe@home.com": {}}}}]},
    ],
)  # fmt: skip
def test_words_of_the_protocol_are_the_clients_own_where_it_names_things(
    tmp_path: Path, body: Any
) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json={"model": "m", **body})
        assert response.status_code == 400
        assert not upstream.requests


def test_a_role_that_is_no_messages_chooses_no_place(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, screen='look = ["user"]') as proxy:
        body = {"model": "m", "role": "system", "prompt": "the forbidden thing"}
        assert httpx.post(f"{proxy.url}/v1/completions", json=body).status_code == 400


def test_lists_of_paths_cannot_be_climbed_out_of(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, screen='unscreened = ["/v1/files*"]') as proxy:
        for path in ("%2e%2e%2fchat/completions", "..%5cchat", "%252e%252e%252fchat"):
            response = httpx.post(f"{proxy.url}/v1/files/{path}", json={})
            assert response.json()["error"]["code"] == "invalid_path"
        assert not upstream.requests


def test_reads_of_answers_are_audited_too(tmp_path: Path) -> None:
    with screened(tmp_path, answering("the forbidden thing")) as proxy:
        assert httpx.get(f"{proxy.url}/v1/responses/r1").status_code == 400
        assert proxy.audit_lines()[0]["outcome"] == "blocked"


def test_an_error_page_keeps_its_status_and_when_to_come_back(tmp_path: Path) -> None:
    async def busy(request: UpstreamRequest, send: Send) -> None:
        headers = {"retry-after": "7"}
        await send_response(send, b"busy", status=429, media="text/plain", headers=headers)

    with screened(tmp_path, Upstream(busy)) as proxy:
        response = ask(proxy, "hi")
        assert response.status_code == 429
        assert response.headers["retry-after"] == "7"
        assert "busy" not in response.text


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"no json", {}),
        (b"[" * 80 + b"]" * 80, {}),
        (b"\x1f\x8b", {"content-encoding": "gzip"}),
    ],
)
def test_an_error_that_cannot_be_read_keeps_its_status(
    tmp_path: Path, body: bytes, headers: dict[str, str]
) -> None:
    async def broken(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body, status=429, headers={"retry-after": "7", **headers})

    with screened(tmp_path, Upstream(broken)) as proxy:
        response = ask(proxy, "hi")
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        assert "guard" in response.json()


def test_an_error_that_must_not_leave_keeps_its_status(tmp_path: Path) -> None:
    async def lost(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, {"error": {"message": "no forbidden thing here"}}, status=404)

    with screened(tmp_path, Upstream(lost)) as proxy:
        response = ask(proxy, "hi")
        assert response.status_code == 404
        assert "forbidden" not in response.text
        assert response.json()["guard"]["outcome"] == "blocked"


def test_a_client_that_hangs_up_while_it_waits_gives_its_place_back(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(1.5)
        await send_response(send, chat_completion("ok"))

    limits = "[proxy]\nmax_requests = 1\nqueue_limit = 1\n"
    body = {"model": "m", "messages": []}
    with served(Upstream(slow)) as port, proxied(tmp_path, limits, port) as proxy:

        async def three() -> int:
            url = f"{proxy.url}/v1/chat/completions"
            async with httpx.AsyncClient(timeout=20) as client:
                first = asyncio.create_task(client.post(url, json=body))
                await asyncio.sleep(0.3)
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(url, json=body, timeout=0.3)
                await asyncio.sleep(0.3)
                third = await client.post(url, json=body)
                await first
                return third.status_code

        assert asyncio.run(three()) == 200


def test_a_health_check_follows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "TOPSECRET")
    other = answering("ok")
    with served(other) as elsewhere:

        async def moved(request: UpstreamRequest, send: Send) -> None:
            where = {"location": f"http://127.0.0.1:{elsewhere}/health"}
            await send_response(send, b"", status=302, headers=where)

        with served(Upstream(moved)) as port:
            text = (
                f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\nhealth = "/health"\n'
                'health_every_s = 0.05\nkey_env = "UPSTREAM_KEY"\nkey_header = "x-api-key"\n'
            )
            with proxied(tmp_path, text) as proxy:
                for _ in range(100):
                    if httpx.get(f"{proxy.url}/ready").status_code == 503:
                        break
                assert httpx.get(f"{proxy.url}/ready").status_code == 503
    assert not other.requests


def test_an_upstreams_policy_goes_where_it_is_read_and_no_clients_with_it(tmp_path: Path) -> None:
    upstream = answering("ok")
    with served(upstream) as port:
        text = (
            f'[server]\ndefault_policy = "p"\n[[upstreams]]\nname = "u"\n'
            f'url = "http://127.0.0.1:{port}"\nplugin = true\n'
            '[[patterns]]\nname = "secrets"\nsource = "secrets"\n'
            '[policies.p]\nguards = ["secrets"]\naction = "block"\n'
            '[policies.p.screen]\nupstream_policy = "strict"\n'
        )
        with proxied(tmp_path, text) as proxy:
            asked = {"model": "m", "messages": [], "vllm_xargs": {"guard_policy": "none"}}
            httpx.post(f"{proxy.url}/v1/chat/completions", json=asked)
            httpx.get(f"{proxy.url}/v1/responses/r1")
            httpx.post(f"{proxy.url}/v1/embeddings", json={"model": "m", "input": "hello"})
    chat, stored, embedded = upstream.requests
    assert chat.json["vllm_xargs"] == {"guard_policy": "strict"}
    assert stored.body == b""
    assert "vllm_xargs" not in embedded.json
