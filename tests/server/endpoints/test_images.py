"""`/v1/images/generations` over HTTP: a real server, service and client, over a toy engine."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from guard.config.keys import KeyRing
from guard.config.schema import load_config
from server.app import create_app
from tests.guard.toy_images import CONCEPT, NAN, PAINTED, STEPS, STUBBORN, TOKENS
from tests.server.conftest import key, listening
from tests.server.fake_service import FakeService
from tests.server.image_stand import (
    HEIGHT,
    TOO_MANY,
    WIDTH,
    ImageStand,
    image_stand,
    write_config,
)

IMAGES = "/v1/images/generations"
KNIFE, STUCK, SHOWN = f"a {CONCEPT}", f"a {STUBBORN}", f"a {PAINTED}"


@dataclass
class Site:
    """A server over HTTP with an image model `toy` and a language model `fake`."""

    url: str
    stand: ImageStand

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=20)

    def post(self, prompt: Any = "a cat", policy: str = "none", **more: Any) -> httpx.Response:
        body = {"model": "toy", "prompt": prompt, "guard": {"policy": policy}} | more
        return httpx.post(f"{self.url}{IMAGES}", json=body, timeout=20)

    def pixels(self, prompt: str = "a cat", policy: str = "none", **more: Any) -> Any:
        (data,) = self.post(prompt, policy, **{"seed": 1} | more).json()["data"]
        return pixels_of(data["b64_json"])

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        text = httpx.get(f"{self.url}/metrics").text
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.01)


def pixels_of(b64: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


@contextmanager
def serving(stand: ImageStand) -> Iterator[Site]:
    services: dict[str, Any] = {"toy": stand.service, "fake": FakeService()}
    keys = KeyRing(stand.config.keys) if stand.config.keys else None
    app = create_app(stand.config, services, keys=keys, metrics=stand.metrics)
    with listening(app, services) as (url, _):
        try:
            yield Site(url, stand)
        finally:
            stand.engine.go.set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("pictures")
    with (
        image_stand(folder, max_batch=4, queue_limit=16, max_images=6) as stand,
        serving(stand) as site,
    ):
        yield site


@pytest.fixture(autouse=True)
def _it_serves_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        site = request.getfixturevalue("site")
        assert site.post().status_code == 200
        assert site.stand.service.queued() == 0
        site.wait_until(lambda: site.stand.engine.rows == 0)


# -- the schema ---------------------------------------------------------------------------------


def test_the_official_client_draws_a_image_in_three_lines(site: Site) -> None:
    client = site.client()
    reply = client.images.generate(
        model="toy", prompt="a cat", extra_body={"guard": {"policy": "none"}}
    )
    image = pixels_of(reply.data[0].b64_json or "") if reply.data else None
    assert image is not None and image.shape == (HEIGHT, WIDTH, 3)
    assert (reply.output_format, reply.size) == ("png", f"{WIDTH}x{HEIGHT}")
    assert reply.created > 1_700_000_000


def test_the_verdict_is_the_same_in_body_headers_audit_log_and_metrics(site: Site) -> None:
    before = site.metrics()
    response = site.post(KNIFE, "refine-knife")
    body = response.json()
    (data,) = body["data"]
    verdict = body["guard"]
    assert data["guard"] == verdict
    (guard,) = verdict["guards"]
    assert (verdict["outcome"], guard["action"], guard["steps"]) == ("refined", "refine", STEPS)
    assert response.headers["X-Guard-Policy"] == verdict["policy"] == "refine-knife"
    assert response.headers["X-Guard-Verdict"] == "refined"
    assert response.headers["X-Request-Id"] == verdict["request_id"]
    line = site.stand.audit()[-1]
    assert {name: line[name] for name in verdict} == verdict
    after = site.metrics()

    def more(name: str, *labels: str) -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert more("inference_guard_verdicts_total", "toy", "refined", "refine-knife") == 1
    assert more("inference_guard_fired_total", "refine", "knife") == 1
    assert more("inference_guard_pictures_total", "toy") == 1
    for name, value in (
        ("score", guard["score"]),
        ("score_after", guard["after"]),
        ("refinement_steps", guard["steps"]),
    ):
        assert more(f"inference_guard_{name}_count", "knife", "toy") == 1
        assert more(f"inference_guard_{name}_sum", "knife", "toy") == pytest.approx(value)


def test_n_images_have_seeds_rows_and_verdicts_of_their_own(site: Site) -> None:
    body = site.post(n=3, seed=2**63 - 2).json()
    assert [data["seed"] for data in body["data"]] == [2**63 - 2, 2**63 - 1, 0]
    ids = [data["guard"]["request_id"] for data in body["data"]]
    assert [each.rpartition("/")[2] for each in ids] == ["0", "1", "2"]
    images = [pixels_of(data["b64_json"]) for data in body["data"]]
    assert np.array_equal(images[2], site.pixels(seed=0))
    assert not np.array_equal(images[0], images[1])


def test_a_image_without_a_seed_can_be_drawn_again_with_the_one_told(site: Site) -> None:
    first, second = (site.post().json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert np.array_equal(pixels_of(first["b64_json"]), site.pixels(seed=first["seed"]))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_come_in_the_format_asked_for(site: Site, form: str) -> None:
    body = site.post(output_format=form).json()
    image = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    assert image.format == form.upper() and body["output_format"] == form


def test_extensions_reach_the_engine_and_defaults_are_the_models(site: Site) -> None:
    usual = site.pixels()
    assert np.array_equal(usual, site.pixels(num_inference_steps=4, guidance_scale=3.0))
    assert np.array_equal(usual, site.pixels(size=f"{WIDTH}x{HEIGHT}", n=1, user="me"))
    for changed in ({"num_inference_steps": 5}, {"guidance_scale": 2}, {"negative_prompt": "x"}):
        assert not np.array_equal(usual, site.pixels(**changed))


def test_images_are_the_same_alone_and_among_rows_with_other_guards(site: Site) -> None:
    policies = ["none", "refine-knife", "flag-knife", "replace-knife"]
    prompts = ["a cat", KNIFE, STUCK]
    asked = [(prompt, policy) for prompt in prompts for policy in policies if prompt != STUCK]
    asked.append((STUCK, "replace-knife"))
    alone = [site.pixels(*each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda each: site.pixels(*each), asked * 3))
    for one, other in zip(alone * 3, crowd, strict=True):
        assert np.array_equal(one, other)


# -- blocked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "policy"),
    [
        (KNIFE, "block-knife"),
        (STUCK, "refine-knife"),
        (STUCK, "relapse-knife"),
        (SHOWN, "refine-look"),
        (SHOWN, "repaint-look"),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_blocked_request_is_openais_content_policy_violation(
    site: Site, prompt: str, policy: str, n: int
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        site.client().images.generate(
            model="toy", prompt=prompt, n=n, extra_body={"guard": {"policy": policy}}
        )
    assert caught.value.code == "content_policy_violation"
    response = caught.value.response
    assert response.status_code == 400
    assert response.headers["X-Guard-Verdict"] == "blocked"
    told = response.json()["guard"]
    assert told["outcome"] == "blocked"
    # where it was found: the prompt, or the image that its steps have drawn
    assert (told["guards"][0]["position"] > 0) == (prompt == SHOWN)
    assert ("in the image" in response.json()["error"]["message"]) == (prompt == SHOWN)
    assert response.json()["error"]["type"] == "invalid_request_error"


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "status", "code", "param", "words"),
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
    site: Site, more: dict[str, Any], status: int, code: str, param: str, words: str
) -> None:
    response = site.post(**{"prompt": "a cat"} | more)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]


def test_a_lone_surrogate_is_no_text(site: Site) -> None:
    content = b'{"model": "toy", "prompt": "\\ud83d"}'
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{site.url}{IMAGES}", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("prompt", ["🔪🍌 " * 3, "قطة فوق كلب", "\u202eeknik", "é\0x", "x" * 4000])
def test_any_text_is_screened_and_drawn(site: Site, prompt: str) -> None:
    response = site.post(prompt, "refine-knife")
    assert response.status_code == 200
    assert response.json()["guard"]["guards"][0]["score"] is not None


def test_a_concept_past_the_encoders_length_is_found(site: Site) -> None:
    response = site.post("x" * (4000 - TOKENS) + CONCEPT, "block-knife")
    assert response.json()["error"]["code"] == "content_policy_violation"


def test_a_chat_with_a_image_model_is_refused(site: Site) -> None:
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("completions", {"prompt": "hi"}),
    ):
        response = httpx.post(f"{site.url}/v1/{path}", json={"model": "toy"} | body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "model_not_supported")
        assert IMAGES in error["message"]


def test_a_image_model_is_listed_with_what_it_draws(site: Site) -> None:
    facts = httpx.get(f"{site.url}/v1/models/toy").json()["guard"]
    assert (facts["engine"], facts["size"]) == ("diffusers", f"{WIDTH}x{HEIGHT}")
    listed = httpx.get(f"{site.url}/guard/v1/policies").json()
    models = {policy["id"]: policy["models"] for policy in listed["data"]}
    assert models["refine-knife"] == ["toy"] and "toy" not in models["refine-words"]
    assert "ImageRequest" in httpx.get(f"{site.url}/openapi.json").text


# -- nothing lost -------------------------------------------------------------------------------


def test_a_client_that_goes_in_the_middle_of_a_batch_loses_its_rows_only(tmp_path: Path) -> None:
    with image_stand(tmp_path, max_batch=4) as stand, serving(stand) as site:
        stand.engine.pace_s = 0.01
        body = {"model": "toy", "prompt": "gone", "n": 2, "num_inference_steps": 400}

        def leave() -> None:
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{site.url}{IMAGES}", json=body, timeout=httpx.Timeout(20, read=0.4))

        leaver = threading.Thread(target=leave)
        leaver.start()
        site.wait_until(lambda: stand.engine.rows == 2)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(site.post, num_inference_steps=100)
            site.wait_until(lambda: stand.engine.rows == 3)
            leaver.join()
            site.wait_until(lambda: stand.engine.rows == 1)
            assert not other.done()
            assert other.result().status_code == 200
        assert stand.engine.steps < 400
        assert len(stand.verdicts) == len(stand.audit()) == 3


def test_a_request_that_takes_too_long_is_a_timeout_and_its_row_leaves(tmp_path: Path) -> None:
    with (
        image_stand(tmp_path, request_timeout_s=0.3) as stand,
        serving(stand) as site,
    ):
        stand.engine.pace_s = 0.01
        response = site.post(num_inference_steps=400)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
        site.wait_until(lambda: stand.engine.rows == 0)
        assert stand.engine.steps < 400 and len(stand.verdicts) == 1


def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    with (
        image_stand(tmp_path, max_batch=1, queue_limit=2) as stand,
        serving(stand) as site,
        ThreadPoolExecutor(2) as pool,
    ):
        stand.engine.go.clear()
        taken = [pool.submit(site.post, n=n) for n in (1, 2)]
        site.wait_until(lambda: len(stand.service._open) == 3)
        response = site.post()
        assert (response.status_code, response.headers["Retry-After"]) == (429, "3")
        assert site.post(n=3).json()["error"]["param"] == "n"
        stand.engine.go.set()
        assert [each.result().status_code for each in taken] == [200, 200]


# -- policies -----------------------------------------------------------------------------------


def test_the_models_own_default_policy_goes_before_the_servers_and_behind_the_keys(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, default_policy="refine-words")
    text = path.read_text().replace(
        'source = "toy"', 'source = "toy"\ndefault_policy = "flag-knife"'
    )
    entries = [key("plain"), key("own", default_policy="block-knife")]
    for entry in entries:
        text += "[[keys]]\n" + "".join(
            f"{name} = {value!r}\n" for name, value in entry.items() if value
        )
    path.write_text(text)
    with image_stand(tmp_path, load_config(path)) as stand, serving(stand) as site:

        def drawn(secret: str, model: str = "toy", **more: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"}
            body = {"model": model, "prompt": "a cat"} | more
            return httpx.post(f"{site.url}{IMAGES}", json=body, headers=headers)

        assert drawn("plain").headers["X-Guard-Policy"] == "flag-knife"
        assert drawn("own").headers["X-Guard-Policy"] == "block-knife"
        asked = drawn("plain", guard={"policy": "flag-knife"})
        assert asked.status_code == 200, "what it gets unasked it may also ask for"
        assert drawn("plain", guard={"policy": "none"}).status_code == 403
        assert drawn("own", guard={"policy": "flag-knife"}).status_code == 403
        listed = httpx.get(
            f"{site.url}/guard/v1/policies", headers={"Authorization": "Bearer plain"}
        ).json()
        assert listed["default"] == "refine-words"
        assert listed["defaults"] == {"toy": "flag-knife", "fake": "refine-words"}
        assert {policy["id"] for policy in listed["data"]} == {"flag-knife", "refine-words"}
