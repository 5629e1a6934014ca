"""What a URL says is read too; what is announced as events and is none is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.screened import BODY, answering, post, read_stream, screened, streaming
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config, write_list

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("action", ["block", "redact"])
def test_a_query_and_an_id_in_a_path_are_read(tmp_path: Path, action: str) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, action) as proxy:
        for query in ("q=forbidden+thing", "a=1&q=%66orbidden%20thing"):
            refused = httpx.post(f"{proxy.url}{CHAT}?{query}", json=BODY, timeout=20)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "content_filter"
        refused = httpx.get(f"{proxy.url}/v1/models/forbidden%20thing", timeout=20)
        assert refused.status_code == 400
        assert not upstream.requests
        assert httpx.post(f"{proxy.url}{CHAT}?beta=true", json=BODY, timeout=20).is_success
        assert httpx.get(f"{proxy.url}/v1/models/m", timeout=20).is_success


def test_an_answer_that_is_announced_as_events_and_is_none(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("hello"), media="text/event-stream")

    with screened(tmp_path, Upstream(respond)) as proxy:
        assert '"unreadable_answer"' in post(proxy, stream=True).text


def test_who_is_told_nothing_is_not_told_the_name_of_a_policy(tmp_path: Path) -> None:
    upstream = answering("ok")
    config = screen_config(source=write_list(tmp_path), server='verdict = "none"')
    content = [{"type": "image_url", "image_url": {"url": "https://x/y"}}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    with served(upstream) as port, proxied(tmp_path, config, port) as proxy:
        for path in (CHAT, "/v1/rerank", "/v1/audio/speech"):
            refused = httpx.post(proxy.url + path, json=body, timeout=20)
            assert refused.status_code in {400, 403}
            assert "policy" in refused.text
            assert "policy '" not in refused.text


def test_the_end_of_a_stream_may_have_spaces_around_it(tmp_path: Path) -> None:
    upstream = streaming(chat_chunk({"content": "hi"}), b"data:  [DONE] \n\n", done=False)
    with screened(tmp_path, upstream) as proxy:
        response = post(proxy, stream=True)
        assert response.text.strip().endswith("[DONE]")
        assert "unreadable" not in response.text


def test_a_custom_tools_input_is_read_by_its_index(tmp_path: Path) -> None:
    def call(index: int, text: str) -> bytes:
        return chat_chunk({"tool_calls": [{"index": index, "custom": {"input": text}}]})

    upstream = streaming(
        call(0, "the forbid"), call(1, "x "), call(0, "den thing"), chat_chunk({}, end="stop")
    )
    with screened(tmp_path, upstream, "redact") as proxy:
        _, events, whole = read_stream(post(proxy, stream=True))
        told: dict[Any, str] = {}
        for event in events:
            for choice in event["choices"]:
                for each in choice["delta"].get("tool_calls", ()):
                    told[each["index"]] = told.get(each["index"], "") + each["custom"]["input"]
        assert whole
        assert "den thing" not in told[0]
        assert told[1] == "x "
