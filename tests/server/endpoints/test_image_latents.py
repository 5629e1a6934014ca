"""Guards that write to the latents, over HTTP: real server, engine and guards, tiny pipeline."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image

from guard.config.schema import load_config
from server.app import create_app
from server.wire.image_files import encode_mask
from tests.server.endpoints.erasing_server import PROMPT, SEED, STEPS, Site, erasing
from tests.server.tiny_pipeline import SIDE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with erasing(tmp_path_factory.mktemp("erasing")) as site:
        yield site


def pixels(file: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


def png(response: httpx.Response) -> NDArray[np.uint8]:
    assert response.status_code == 200, response.text
    return pixels(response.json()["data"][0]["b64_json"])


def test_what_was_found_is_broken_and_told_of_alike_everywhere(site: Site) -> None:
    response = site.post("perturb")
    verdict = response.json()["guard"]
    assert response.headers["X-Guard-Verdict"] == verdict["outcome"] == "perturbed"
    (told,) = verdict["guards"]
    assert (told["method"], told["action"], told["position"]) == ("irece", "perturb", STEPS)
    assert told["steps"] == 1 and told["after"] <= told["threshold"] < told["score"]
    assert 0 < told["area"] < 1 and told["peak"] > 0
    line = next(each for each in site.audit() if each["request_id"] == verdict["request_id"])
    assert line["guards"] == verdict["guards"]
    text = httpx.get(f"{site.url}/metrics").text
    assert 'inference_guard_refinement_steps_count{guard="break",model="tiny"}' in text
    assert 'outcome="perturbed"' in text
    assert not np.array_equal(png(response), png(site.post()))


@pytest.mark.parametrize(
    ("policy", "outcome", "action"), [("observe", "pass", "observe"), ("flag", "flagged", "flag")]
)
def test_policies_that_only_tell_change_no_bit(
    site: Site, policy: str, outcome: str, action: str
) -> None:
    response = site.post(policy)
    (told,) = response.json()["guard"]["guards"]
    assert response.headers["X-Guard-Verdict"] == outcome
    assert (told["fired"], told["action"], told["area"]) == (True, action, None)
    assert np.array_equal(png(response), png(site.post()))


@pytest.mark.parametrize("policy", ["block", "stubborn"])
def test_what_cannot_be_broken_is_blocked(site: Site, policy: str) -> None:
    response = site.post(policy)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "content_policy_violation")
    assert "in the image" in error["message"]
    (told,) = response.json()["guard"]["guards"]
    assert told["fired"] and told["action"] == "block"
    # under "block" nothing is written
    assert (told["after"] is not None, told["steps"]) == (
        (True, 1) if policy == "stubborn" else (False, 0)
    )


def test_or_replaced_and_what_does_not_pass_either_is_blocked(site: Site) -> None:
    response = site.post("replace")
    assert response.json()["error"]["code"] == "content_policy_violation"
    assert response.json()["guard"]["guards"][0]["action"] == "block"


def test_a_guard_of_another_pipeline_fails_closed(site: Site) -> None:
    response = site.post("broken")
    assert response.status_code == 500 and response.json()["error"]["code"] == "guard_failed"
    assert "broken" not in site.service.info.policies


def test_silent_rows_keep_their_bits_beside_broken_ones(site: Site) -> None:
    policies = ["none", "silent", "perturb", "observe", "perturb", "all", "silent", "none"]
    alone = [png(site.post(policy)) for policy in policies]
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda policy: png(site.post(policy)), policies))
    assert all(map(np.array_equal, alone, crowd))
    assert np.array_equal(alone[0], alone[1]) and not np.array_equal(alone[0], alone[2])


def test_guards_of_all_three_places_stand_in_one_policy(site: Site) -> None:
    verdict = site.post("all").json()["guard"]
    told = {each["guard"]: each for each in verdict["guards"]}
    assert list(told) == ["knife", "break", "look"] and verdict["outcome"] == "perturbed"
    assert told["break"]["action"] == "perturb" and told["look"]["action"] == "none"
    # the screen sees what is left, as the eraser's own last look does
    assert told["look"]["score"] == pytest.approx(told["break"]["after"], abs=1e-3)
    assert all(each["score"] is not None for each in told.values())


# -- where it was written -------------------------------------------------------------------------


def test_masks_are_sent_where_asked_for_and_allowed(site: Site) -> None:
    plain, response = site.post("shown"), site.post("shown", debug=True, n=2)
    assert np.array_equal(png(plain), png(response))
    assert "masks" not in plain.json()["data"][0]
    for entry in response.json()["data"]:
        told = {each["guard"]: each for each in entry["guard"]["guards"]}
        wrote = {name for name, each in told.items() if each["steps"]}
        # only for those that wrote
        assert set(entry["masks"]) == wrote <= {"break"}
        for name, file in entry["masks"].items():
            mask = pixels(file)
            assert mask.shape == (SIDE, SIDE) and set(np.unique(mask)) == {0, 255}
            assert mask.mean() / 255 == pytest.approx(told[name]["area"], abs=1e-6)
    (first, _) = response.json()["data"]
    assert set(first["masks"]) == {"break"}
    assert site.post("observe", debug=True).json()["data"][0]["masks"] == {}
    assert "masks" not in site.post("shown", debug=False).json()["data"][0]


def test_the_official_client_gets_them_of_edits_too(site: Site) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="any", max_retries=0, timeout=30)
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 180, 20)).save(file, "PNG")
    reply = client.images.edit(
        model="tiny",
        image=("x.png", file.getvalue(), "image/png"),
        prompt=PROMPT,
        extra_body={"guard": {"policy": "shown", "debug": True}, "strength": 1.0},
    )
    assert reply.data is not None
    told = reply.data[0].model_dump()
    wrote = {each["guard"] for each in told["guard"]["guards"] if each["steps"]}
    assert set(told["masks"]) == wrote


@pytest.mark.parametrize("policy", ["perturb", "none"])
def test_a_policy_that_does_not_allow_it_says_what_to_change(site: Site, policy: str) -> None:
    before = len(site.audit())
    response = site.post(policy, debug=True)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "guard.debug")
    assert "leave 'guard.debug' out" in error["message"]
    assert ("'debug = true' in [policies.perturb]" in error["message"]) is (policy == "perturb")
    assert len(site.audit()) == before  # nothing was drawn


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_debug_is_true_or_false(site: Site, value: Any) -> None:
    response = site.post("shown", debug=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "guard.debug"


def test_what_is_blocked_shows_no_masks(site: Site) -> None:
    response = site.post("stubborn", debug=True)
    assert response.status_code == 400 and "masks" not in response.text


def test_masks_are_in_no_log_and_no_audit_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        (entry,) = site.post("shown", debug=True).json()["data"]
    kept = (site.folder / "audit.jsonl").read_text() + caplog.text
    assert "masks" not in kept and entry["masks"]["break"] not in kept


def test_a_mask_is_as_large_as_its_image_and_keeps_its_places() -> None:
    mask = np.array([[0, 128, 255], [255, 0, 0]], np.uint8)
    made = np.asarray(Image.open(io.BytesIO(encode_mask(mask, width=9, height=4))))
    assert made.tolist() == np.repeat(np.repeat(mask, 2, 0), 3, 1).tolist()
    # sizes that do not divide, and a mask that is finer than its image
    for height, width in ((5, 7), (1, 1)):
        made = np.asarray(Image.open(io.BytesIO(encode_mask(mask, width=width, height=height))))
        assert made.shape == (height, width) and made[0, 0] == 0


def test_clients_that_are_told_the_outcome_alone_get_no_masks(site: Site) -> None:
    config = load_config(site.folder / "config.toml")
    server = config.server.model_copy(update={"verdict": "outcome"})
    app = create_app(config.model_copy(update={"server": server}), {"tiny": site.service})

    async def post(**guard: Any) -> Any:
        transport = httpx.ASGITransport(app)
        body = {"model": "tiny", "prompt": PROMPT, "seed": SEED, "guard": guard}
        async with httpx.AsyncClient(transport=transport, base_url="http://guard") as client:
            return (await client.post("/v1/images/generations", json=body)).json()

    refused = asyncio.run(post(policy="shown", debug=True))
    assert refused["error"]["param"] == "guard.debug"
    drawn = asyncio.run(post(policy="perturb"))
    for guard in (drawn["guard"], drawn["data"][0]["guard"]):
        assert set(guard) == {"request_id", "policy", "outcome"}
        assert guard["outcome"] == "perturbed"
