"""`/v1/images/generations` over HTTP: a real server, service and client, over a toy engine."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.guard.toy_images import CONCEPT, NAN, STEPS, TOKENS
from tests.server.endpoints.image_server import (
    IMAGES,
    KNIFE,
    SHOWN,
    STUCK,
    ImageServer,
    check_error,
    pixels_of,
)
from tests.server.toy_image_service import HEIGHT, TOO_MANY, WIDTH


def test_the_official_client_generates_an_image_in_three_lines(server: ImageServer) -> None:
    client = server.client()
    reply = client.images.generate(
        model="toy", prompt="a cat", extra_body={"guard": {"policy": "none"}}
    )
    image = pixels_of(reply.data[0].b64_json or "") if reply.data else None
    assert image is not None and image.shape == (HEIGHT, WIDTH, 3)
    assert (reply.output_format, reply.size) == ("png", f"{WIDTH}x{HEIGHT}")
    assert reply.created > 1_700_000_000


def test_the_verdict_is_the_same_in_body_headers_audit_log_and_metrics(server: ImageServer) -> None:
    before = server.metrics()
    response = server.post(KNIFE, "refine-knife")
    body = response.json()
    (data,) = body["data"]
    verdict = body["guard"]
    assert data["guard"] == verdict
    (guard,) = verdict["guards"]
    assert (verdict["outcome"], guard["action"], guard["steps"]) == ("refined", "refine", STEPS)
    assert response.headers["X-Guard-Policy"] == verdict["policy"] == "refine-knife"
    assert response.headers["X-Guard-Verdict"] == "refined"
    assert response.headers["X-Request-Id"] == verdict["request_id"]
    line = server.running.audit()[-1]
    assert {name: line[name] for name in verdict} == verdict
    after = server.metrics()

    def increase(name: str, *labels: str) -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert increase("inference_guard_verdicts_total", "toy", "refined", "refine-knife") == 1
    assert increase("inference_guard_fired_total", "refine", "knife") == 1
    assert increase("inference_guard_pictures_total", "toy") == 1
    for name, value in (
        ("score", guard["score"]),
        ("score_after", guard["after"]),
        ("refinement_steps", guard["steps"]),
    ):
        assert increase(f"inference_guard_{name}_count", "knife", "toy") == 1
        assert increase(f"inference_guard_{name}_sum", "knife", "toy") == pytest.approx(value)


def test_n_images_have_seeds_rows_and_verdicts_of_their_own(server: ImageServer) -> None:
    body = server.post(n=3, seed=2**63 - 2).json()
    assert [data["seed"] for data in body["data"]] == [2**63 - 2, 2**63 - 1, 0]
    ids = [data["guard"]["request_id"] for data in body["data"]]
    assert [name.rpartition("/")[2] for name in ids] == ["0", "1", "2"]
    images = [pixels_of(data["b64_json"]) for data in body["data"]]
    assert np.array_equal(images[2], server.pixels(seed=0))
    assert not np.array_equal(images[0], images[1])


def test_the_seed_in_the_reply_reproduces_an_image(server: ImageServer) -> None:
    first, second = (server.post().json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert np.array_equal(pixels_of(first["b64_json"]), server.pixels(seed=first["seed"]))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_have_the_requested_format(server: ImageServer, form: str) -> None:
    body = server.post(output_format=form).json()
    image = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    assert image.format == form.upper() and body["output_format"] == form


def test_extensions_reach_the_engine_and_defaults_are_the_models(server: ImageServer) -> None:
    usual = server.pixels()
    assert np.array_equal(usual, server.pixels(num_inference_steps=4, guidance_scale=3.0))
    assert np.array_equal(usual, server.pixels(size=f"{WIDTH}x{HEIGHT}", n=1, user="me"))
    for changed in ({"num_inference_steps": 5}, {"guidance_scale": 2}, {"negative_prompt": "x"}):
        assert not np.array_equal(usual, server.pixels(**changed))


def test_images_are_the_same_alone_and_among_rows_with_other_guards(server: ImageServer) -> None:
    policies = ["none", "refine-knife", "flag-knife", "replace-knife"]
    prompts = ["a cat", KNIFE, STUCK]
    requested = [(prompt, policy) for prompt in prompts for policy in policies if prompt != STUCK]
    requested.append((STUCK, "replace-knife"))
    alone = [server.pixels(*arguments) for arguments in requested]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda arguments: server.pixels(*arguments), requested * 3))
    for image, same in zip(alone * 3, together, strict=True):
        assert np.array_equal(image, same)


@pytest.mark.parametrize(
    ("prompt", "policy"),
    [
        (KNIFE, "block-knife"),
        (STUCK, "refine-knife"),
        (STUCK, "relapse-knife"),
        (SHOWN, "refine-output"),
        (SHOWN, "repaint-output"),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_blocked_request_is_openais_content_policy_violation(
    server: ImageServer, prompt: str, policy: str, n: int
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().images.generate(
            model="toy", prompt=prompt, n=n, extra_body={"guard": {"policy": policy}}
        )
    assert caught.value.code == "content_policy_violation"
    response = caught.value.response
    assert response.status_code == 400
    assert response.headers["X-Guard-Verdict"] == "blocked"
    verdict = response.json()["guard"]
    assert verdict["outcome"] == "blocked"
    # position 0 is the prompt, a later one the step of the image
    assert (verdict["guards"][0]["position"] > 0) == (prompt == SHOWN)
    assert ("in the image" in response.json()["error"]["message"]) == (prompt == SHOWN)
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("options", "status", "code", "param", "words"),
    [
        ({"prompt": ""}, 400, "invalid_parameter", "prompt", "empty"),
        ({"prompt": "x" * 10_000}, 400, "invalid_parameter", "prompt", "most is 4000"),
        ({"size": "1024x1024"}, 400, "invalid_parameter", "size", f"of {WIDTH}x{HEIGHT}, not"),
        ({"n": 0}, 400, "invalid_parameter", "n", "greater than or equal to 1"),
        ({"n": 1000}, 400, "invalid_parameter", "n", "at most 6"),
        ({"seed": 2**64}, 400, "invalid_parameter", "seed", "less than"),
        ({"seed": -1}, 400, "invalid_parameter", "seed", "greater than or equal to 0"),
        ({"num_inference_steps": 501}, 400, "invalid_parameter", "num_inference_steps", "500"),
        ({"response_format": "url"}, 400, "unsupported_parameter", "response_format", "b64_json"),
        ({"stream": True}, 400, "unsupported_parameter", "stream", "leave it out"),
        ({"model": "ghost"}, 404, "model_not_found", "model", "no model 'ghost'"),
        ({"model": "fake"}, 404, "model_not_supported", "model", "/v1/chat/completions"),
        ({"guard": {"policy": "ghost"}}, 400, "unknown_policy", "guard.policy", "no policy"),
        (
            {"guard": {"policy": "refine-words"}},
            *(400, "policy_not_for_model", "guard.policy", "default_policy"),
        ),
        (
            {"guard": {"policy": "refine-guide"}, "guidance_scale": 1},
            *(400, None, "guidance_scale", "more than 1"),
        ),
        (
            {"negative_prompt": KNIFE, "guidance_scale": 0.5},
            *(400, "invalid_parameter", "negative_prompt", "more than 1"),
        ),
        ({"num_inference_steps": TOO_MANY}, 400, None, None, "cannot do 499 steps"),
        ({"guard": {"policy": "refine-other"}}, 500, "guard_failed", None, "fails closed"),
        (
            {"prompt": f"a {NAN}", "guard": {"policy": "refine-knife"}},
            *(500, "guard_failed", None, "fails closed"),
        ),
    ],
)  # fmt: skip
def test_bad_input_gets_openais_error(
    server: ImageServer, options: dict[str, Any], status: int, code: str, param: str, words: str
) -> None:
    check_error(server.post(**{"prompt": "a cat"} | options), status, code, param, words)


def test_a_lone_surrogate_is_no_text(server: ImageServer) -> None:
    content = b'{"model": "toy", "prompt": "\\ud83d"}'
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}{IMAGES}", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("prompt", ["🔪🍌 " * 3, "قطة فوق كلب", "\u202eeknik", "é\0x", "x" * 4000])
def test_any_text_is_guarded_and_generates_an_image(server: ImageServer, prompt: str) -> None:
    response = server.post(prompt, "refine-knife")
    assert response.status_code == 200
    assert response.json()["guard"]["guards"][0]["score"] is not None


def test_a_concept_past_the_encoders_length_is_found(server: ImageServer) -> None:
    response = server.post("x" * (4000 - TOKENS) + CONCEPT, "block-knife")
    assert response.json()["error"]["code"] == "content_policy_violation"


def test_a_chat_with_an_image_model_is_refused(server: ImageServer) -> None:
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("completions", {"prompt": "hi"}),
    ):
        response = httpx.post(f"{server.url}/v1/{path}", json={"model": "toy"} | body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "model_not_supported")
        assert IMAGES in error["message"]


def test_an_image_model_is_listed_with_its_size(server: ImageServer) -> None:
    facts = httpx.get(f"{server.url}/v1/models/toy").json()["guard"]
    assert (facts["engine"], facts["size"]) == ("diffusers", f"{WIDTH}x{HEIGHT}")
    listed = httpx.get(f"{server.url}/guard/v1/policies").json()
    models = {policy["id"]: policy["models"] for policy in listed["data"]}
    assert models["refine-knife"] == ["toy"] and "toy" not in models["refine-words"]
    assert "ImageRequest" in httpx.get(f"{server.url}/openapi.json").text
