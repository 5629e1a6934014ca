"""`/v1/images/generations`: disconnects, timeouts, a full queue, default policies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from guard.config.schema import load_config
from tests.server.endpoints.image_server import IMAGES, serve_toy
from tests.server.live_server import disconnecting_client, key
from tests.server.toy_image_service import serve_images, write_config


def test_a_disconnect_in_a_running_batch_ends_its_own_rows_alone(tmp_path: Path) -> None:
    with serve_images(tmp_path, max_batch=4) as running, serve_toy(running) as server:
        running.engine.pace_s = 0.01
        body = {"model": "toy", "prompt": "gone", "n": 2, "num_inference_steps": 400}
        leaving = disconnecting_client(f"{server.url}{IMAGES}", body)
        server.wait_until(lambda: running.engine.rows == 2)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(server.post, num_inference_steps=100)
            server.wait_until(lambda: running.engine.rows == 3)
            leaving.join()
            server.wait_until(lambda: running.engine.rows == 1)
            assert not other.done()
            assert other.result().status_code == 200
        assert running.engine.steps < 400
        assert len(running.verdicts) == len(running.audit()) == 3


def test_a_request_that_takes_too_long_is_a_timeout_and_its_row_leaves(tmp_path: Path) -> None:
    with (
        serve_images(tmp_path, request_timeout_s=0.3) as running,
        serve_toy(running) as server,
    ):
        running.engine.pace_s = 0.01
        response = server.post(num_inference_steps=400)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
        server.wait_until(lambda: running.engine.rows == 0)
        assert running.engine.steps < 400 and len(running.verdicts) == 1


def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    with (
        serve_images(tmp_path, max_batch=1, queue_limit=2) as running,
        serve_toy(running) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        running.engine.go.clear()
        replies = [pool.submit(server.post, n=n) for n in (1, 2)]
        server.wait_until(lambda: len(running.service._open) == 3)
        response = server.post()
        assert (response.status_code, response.headers["Retry-After"]) == (429, "3")
        assert server.post(n=3).json()["error"]["param"] == "n"
        running.engine.go.set()
        assert [reply.result().status_code for reply in replies] == [200, 200]


def test_a_models_default_policy_precedes_the_servers_and_follows_the_keys(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, default_policy="refine-words")
    text = path.read_text().replace(
        'source = "toy"', 'source = "toy"\ndefault_policy = "flag-knife"'
    )
    entries = [key("plain"), key("other", default_policy="block-knife")]
    for entry in entries:
        text += "[[keys]]\n" + "".join(
            f"{name} = {value!r}\n" for name, value in entry.items() if value
        )
    path.write_text(text)
    with serve_images(tmp_path, load_config(path)) as running, serve_toy(running) as server:

        def generate(secret: str, model: str = "toy", **options: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"}
            body = {"model": model, "prompt": "a cat"} | options
            return httpx.post(f"{server.url}{IMAGES}", json=body, headers=headers)

        assert generate("plain").headers["X-Guard-Policy"] == "flag-knife"
        assert generate("other").headers["X-Guard-Policy"] == "block-knife"
        allowed = generate("plain", guard={"policy": "flag-knife"})
        assert allowed.status_code == 200, "the default may also be named"
        assert generate("plain", guard={"policy": "none"}).status_code == 403
        assert generate("other", guard={"policy": "flag-knife"}).status_code == 403
        listed = httpx.get(
            f"{server.url}/guard/v1/policies", headers={"Authorization": "Bearer plain"}
        ).json()
        assert listed["default"] == "refine-words"
        assert listed["defaults"] == {"toy": "flag-knife", "fake": "refine-words"}
        assert {policy["id"] for policy in listed["data"]} == {"flag-knife", "refine-words"}
