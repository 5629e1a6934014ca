"""`/v1/images/edits` over HTTP: a real server, service and client, over a toy engine."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.server.endpoints.image_server import (
    KNIFE,
    ImageServer,
    check_error,
    pixels_of,
    serve_toy,
)
from tests.server.live_server import disconnecting_client
from tests.server.toy_image_service import HEIGHT, WIDTH, serve_images

EDITS = "/v1/images/edits"


def png(colour: tuple[int, int, int] = (20, 200, 90), size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


PLAIN, RED = png(), png((255, 0, 0))
"""The guard `output` fires on red images."""


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def post(
    server: ImageServer,
    image: bytes | None = PLAIN,
    prompt: str = "a cat",
    policy: str = "none",
    **options: Any,
) -> httpx.Response:
    """Post an edit as a form; fields that are no strings are sent as JSON."""
    fields = {"model": "toy", "prompt": prompt, "guard": {"policy": policy}} | options
    data = {name: v if isinstance(v, str) else json.dumps(v) for name, v in fields.items()}
    files = {} if image is None else {"image": ("x.png", image, "image/png")}
    return httpx.post(
        f"{server.url}{EDITS}", files=files | {n: (None, v) for n, v in data.items()}, timeout=20
    )  # fmt: skip


def pixels(server: ImageServer, image: bytes = PLAIN, **options: Any) -> Any:
    (data,) = post(server, image, **{"seed": 1} | options).json()["data"]
    return pixels_of(data["b64_json"])


@pytest.mark.parametrize("several", [False, True])
def test_the_official_client_edits_an_image(server: ImageServer, several: bool) -> None:
    image = ("x.png", PLAIN)
    reply = server.client().images.edit(
        model="toy",
        image=[image] if several else image,
        prompt="a cat",
        n=2,
        extra_body={"seed": 7, "strength": 0.5, "guard": {"policy": "observe-knife"}},
    )
    assert reply.data is not None and len(reply.data) == 2
    assert pixels_of(reply.data[0].b64_json or "").shape == (HEIGHT, WIDTH, 3)
    assert reply.size == f"{WIDTH}x{HEIGHT}"
    extra: Any = reply.model_extra
    assert extra["guard"]["policy"] == "observe-knife"
    same = pixels(server, strength=0.5, seed=7)
    assert np.array_equal(pixels_of(reply.data[0].b64_json or ""), same)


def test_json_with_a_data_url_is_the_same_edit(server: ImageServer) -> None:
    body = {"model": "toy", "prompt": "a cat", "seed": 1, "guard": {"policy": "none"}}
    response = httpx.post(f"{server.url}{EDITS}", json=body | {"image": data_url(PLAIN)})
    (data,) = response.json()["data"]
    assert np.array_equal(pixels_of(data["b64_json"]), pixels(server))


def test_image_strength_and_inversion_reach_the_engine(server: ImageServer) -> None:
    usual = pixels(server)
    assert np.array_equal(usual, pixels(server, strength=0.8)), "the default"
    assert np.array_equal(usual, pixels(server, png(size=(30, 30)))), "resized"
    others: list[dict[str, Any]] = [
        {"image": RED},
        {"strength": 1},
        {"inversion": True},
        {"prompt": "a dog"},
        {"num_inference_steps": 5},
    ]
    changed = [pixels(server, **{"image": PLAIN} | other) for other in others]
    assert not any(np.array_equal(usual, other) for other in changed)
    assert not np.array_equal(usual, server.pixels()), "a generation has no image to start from"


def test_the_policy_may_come_in_a_header(server: ImageServer) -> None:
    files: Any = {"image": ("x", PLAIN), "model": (None, "toy"), "prompt": (None, KNIFE)}
    headers = {"X-Guard-Policy": "block-knife"}
    response = httpx.post(f"{server.url}{EDITS}", files=files, headers=headers)
    assert response.json()["error"]["code"] == "content_policy_violation"


def test_both_media_are_described(server: ImageServer) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    content = document["paths"][EDITS]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert "EditRequest" in document["components"]["schemas"]


def test_the_prompt_of_an_edit_is_refined_or_blocked(server: ImageServer) -> None:
    response = post(server, prompt=KNIFE, policy="refine-knife")
    assert response.headers["X-Guard-Verdict"] == "refined"
    assert response.json()["guard"]["guards"][0]["action"] == "refine"
    assert server.running.audit()[-1]["outcome"] == "refined"
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.edit(
            model="toy", image=PLAIN, prompt=KNIFE, extra_body={"guard": {"policy": "block-knife"}}
        )
    assert caught.value.code == "content_policy_violation"
    assert caught.value.response.headers["X-Guard-Verdict"] == "blocked"


@pytest.mark.parametrize("how", [{}, {"inversion": True}])
def test_the_image_of_an_edit_is_inspected(server: ImageServer, how: dict[str, Any]) -> None:
    assert post(server, PLAIN, policy="refine-output", **how).status_code == 200
    response = post(server, RED, policy="refine-output", **how)
    assert response.json()["error"]["code"] == "content_policy_violation"
    assert "in the image" in response.json()["error"]["message"]
    assert response.json()["guard"]["guards"][0]["position"] > 0


def test_a_replacement_shows_nothing_of_the_image(server: ImageServer) -> None:
    response = post(server, RED, policy="replace-output", seed=3)
    assert response.status_code == 200 and response.headers["X-Guard-Verdict"] != "pass"
    replaced = pixels_of(response.json()["data"][0]["b64_json"])
    assert np.array_equal(replaced, server.pixels("a banana", seed=3))


def test_silent_guards_change_no_bit_in_any_batch(server: ImageServer) -> None:
    requested = [
        {"policy": policy} | how
        for policy in ("none", "refine-knife", "refine-output")
        for how in ({}, {"inversion": True})
    ]
    alone = [pixels(server, **options) for options in requested]
    assert all(np.array_equal(alone[i], alone[i % 2]) for i in range(len(alone)))
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda options: pixels(server, **options), requested * 2))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 2, together, strict=True))


@pytest.mark.parametrize(
    ("options", "status", "code", "param", "words"),
    [
        ({"image": None}, 400, "missing_required_parameter", "image", "Missing"),
        ({"image": b""}, 400, "invalid_parameter", "image", "no bytes"),
        ({"image": b"GIF89a"}, 400, "invalid_parameter", "image", "no PNG, JPEG or WebP"),
        ({"image": PLAIN[:60]}, 400, "invalid_parameter", "image", "damaged"),
        ({"image": png(size=(5000, 5000))}, 400, "invalid_parameter", "image", "5000 x 5000"),
        ({"prompt": ""}, 400, "invalid_parameter", "prompt", "empty"),
        ({"prompt": "x" * 10_000}, 400, "invalid_parameter", "prompt", "most is 4000"),
        ({"prompt": "x" * 70_000}, 400, "invalid_parameter", "prompt", "65536 bytes"),
        ({"strength": 0}, 400, "invalid_parameter", "strength", "greater than 0"),
        ({"strength": 1.5}, 400, "invalid_parameter", "strength", "less than or equal to 1"),
        ({"strength": "NaN"}, 400, "invalid_parameter", "strength", "number"),
        ({"strength": "Infinity"}, 400, "invalid_parameter", "strength", "number"),
        ({"strength": 0.5, "inversion": True}, 400, "invalid_parameter", "strength", "one of"),
        ({"mask": "x"}, 400, "unsupported_parameter", "mask", "leave it out"),
        ({"input_fidelity": "high"}, 400, "unsupported_parameter", "input_fidelity", "leave it"),
        ({"stream": True}, 400, "unsupported_parameter", "stream", "leave it out"),
        ({"n": 1000}, 400, "invalid_parameter", "n", "at most 6"),
        ({"size": "1024x1024"}, 400, "invalid_parameter", "size", f"of {WIDTH}x{HEIGHT}, not"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour", "Unknown"),
        ({"model": "ghost"}, 404, "model_not_found", "model", "no model 'ghost'"),
        ({"model": "fake"}, 404, "model_not_supported", "model", "/v1/chat/completions"),
        ({"guard": {"policy": "ghost"}}, 400, "unknown_policy", "guard.policy", "no policy"),
        ({"guard": "{"}, 400, "invalid_parameter", "guard", "guard"),
    ],
)
def test_bad_input_gets_openais_error(
    server: ImageServer, options: dict[str, Any], status: int, code: str, param: str, words: str
) -> None:
    response = post(server, **options)
    check_error(response, status, code, param, words)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_two_images_are_refused(server: ImageServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.edit(
            model="toy", image=[("a.png", PLAIN), ("b.png", PLAIN)], prompt="a cat"
        )
    assert caught.value.param == "image" and "more than once" in str(caught.value)


def test_a_mask_of_the_official_client_is_refused_by_name(server: ImageServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.edit(
            model="toy", image=("a.png", PLAIN), mask=("m.png", PLAIN), prompt="a cat"
        )
    assert (caught.value.param, caught.value.code) == ("mask", "unsupported_parameter")


def test_no_url_is_ever_fetched(server: ImageServer) -> None:
    body = {"model": "toy", "prompt": "a cat", "image": f"{server.url}/health"}
    error = httpx.post(f"{server.url}{EDITS}", json=body).json()["error"]
    assert error["param"] == "image" and "fetches no URLs" in error["message"]
    body = {"model": "toy", "prompt": "a cat", "images": [{"image_url": data_url(PLAIN)}]}
    assert httpx.post(f"{server.url}{EDITS}", json=body).json()["error"]["param"] == "images"


def test_other_media_and_pages_of_other_origins_are_refused(server: ImageServer) -> None:
    url, files = f"{server.url}{EDITS}", {"image": ("x", PLAIN)}
    assert httpx.post(url, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    response = httpx.post(url, files=files, headers={"Origin": "http://elsewhere.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (
        *(415, "unsupported_media_type"),
    )
    same_origin = httpx.post(url, files=files, headers={"Origin": server.url})
    assert same_origin.json()["error"]["code"] == "missing_required_parameter"


def test_a_body_over_the_limit_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    with serve_images(tmp_path, max_body_bytes=20_000) as running, serve_toy(running) as server:
        assert post(server).status_code == 200
        response = post(server, PLAIN + b"\0" * 30_000)
        assert (response.status_code, response.json()["error"]["code"]) == (
            *(413, "request_too_large"),
        )


def test_a_disconnect_ends_its_own_rows_alone(tmp_path: Path) -> None:
    with serve_images(tmp_path, max_batch=4) as running, serve_toy(running) as server:
        running.engine.pace_s = 0.01
        body = {"model": "toy", "prompt": "gone", "n": 2, "num_inference_steps": 400}
        body |= {"image": data_url(PLAIN)}
        leaving = disconnecting_client(f"{server.url}{EDITS}", body)
        server.wait_until(lambda: running.engine.rows == 2)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(post, server, num_inference_steps=100)
            leaving.join()
            server.wait_until(lambda: running.engine.rows == 1)
            assert other.result().status_code == 200
        assert len(running.verdicts) == len(running.audit()) == 3
