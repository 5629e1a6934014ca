"""Images over HTTP in vLLM's own server: guards and screens of images decide by them, screens
of text read the texts alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.classifiers.images import tiny_encoder  # noqa: E402
from tests.classifiers.images.tiny_encoder import file_of  # noqa: E402
from tests.vllm.checkpoint import CONFIG, WIDTH, save_guard  # noqa: E402
from tests.vllm.emulation.settings import Settings  # noqa: E402
from tests.vllm.serving.test_screens import post  # noqa: E402
from tests.vllm.standing import Stand, serving  # noqa: E402
from tests.vllm.vision.models import save_model  # noqa: E402
from tests.vllm.vision.pictures import picture  # noqa: E402
from tests.vllm.vision.reference import scores_of  # noqa: E402

SCREENED = """
[[patterns]]
name = "topic"
source = "topic.toml"
[policies.shut]
guards = ["topic"]
action = "block"
message = "That is not for here."
screen = { unscreened = ["images"] }
[policies.noted]
guards = ["firm", "topic"]
action = "steer"
screen = { actions = { topic = "flag" }, unscreened = ["images"] }
[[guards]]
name = "red"
artifact = "red.safetensors"
[policies.colours]
guards = ["red"]
action = "block"
[policies.colours-noted]
guards = ["firm", "red", "topic"]
action = "steer"
screen = { actions = { red = "flag", topic = "flag" } }
"""
PNG = "iVBORw0KGgo"
"""How a PNG begins in base64."""
TOPIC = f'[[words]]\nlabel = "TOPIC"\nwords = ["forbidden", "{PNG}", "base64"]\n'
WORDS = "w5 w6 w7 w8 w9"


def encoded(seed: int) -> str:
    """A picture as PNG in base64."""
    raw = io.BytesIO()
    picture(seed).save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()


def _coded(image: int | str) -> str:
    """A picture of random pixels, or of one colour, as PNG in base64."""
    if isinstance(image, int):
        return encoded(image)
    return base64.b64encode(file_of(Image.new("RGB", (28, 28), image))).decode()


def _chat(seed: int | str, text: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_coded(seed)}"}}
    content = [image, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4}


def _responses(seed: int | str, text: str) -> dict[str, Any]:
    image = {
        "type": "input_image",
        "image_url": f"data:image/png;base64,{_coded(seed)}",
        "detail": "auto",
    }
    content = [image, {"type": "input_text", "text": text}]
    turn = {"type": "message", "role": "user", "content": content}
    return {"input": [turn], "max_output_tokens": 16}


def _messages(seed: int | str, text: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": _coded(seed)}
    content = [{"type": "image", "source": source}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4}


APIS: Mapping[str, Callable[[int | str, str], dict[str, Any]]] = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}


def ask(
    stand: Stand, path: str, seed: int | str, policy: str, text: str = WORDS
) -> tuple[int, dict[str, Any]]:
    """Status and body of the reply to a question beside an image."""
    body = {"model": "tiny", "temperature": 0, **APIS[path](seed, text)}
    status, _, raw = post(stand, path, body | {"guard": {"policy": policy}})
    return status, json.loads(raw)


def _save(folder: Path) -> None:
    """A LLaVA, and guards that fire on the first picture and not on the second, or the reverse."""
    save_model(folder / "model", "llava")
    rng = np.random.default_rng(1)
    gates = rng.normal(size=(2, WIDTH)).astype("f4")
    first, second = scores_of(folder, gates, [(seed, WORDS) for seed in (0, 1)])
    assert abs(first - second) > 1
    for name, act in (("firm", 2), ("late", 1)):
        directions = (100 * rng.normal(size=(act, WIDTH))).astype("f4")
        save_guard(folder, name, gates, directions, (first + second) / 2)
    (folder / "expected.json").write_text(json.dumps([first, second]), "utf-8")
    card = tiny_encoder.write(folder / "cache" / "models" / "colours")
    tiny_encoder.red_screen(card, folder / "red.safetensors")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "topic.toml").write_text(TOPIC, "utf-8")
    emulated = Settings(hook="tests.vllm.vision.absent:stand_in")
    policies = CONFIG + SCREENED
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARD_CACHE", str(folder / "cache"))
        with serving(folder, policies=policies, emulated=emulated, saves=_save) as made:
            yield made


@pytest.mark.parametrize("path", APIS)
def test_guards_decide_by_the_image(stand: Stand, path: str) -> None:
    expected = json.loads((stand.folder / "expected.json").read_text("utf-8"))
    outcomes = set()
    for seed, score in enumerate(expected):
        status, reply = ask(stand, path, seed, "firm")
        assert status == 200, reply
        (guard,) = reply["guard"]["guards"]
        assert guard["score"] == pytest.approx(score, rel=1e-5)
        assert guard["fired"] == (score == max(expected))
        outcomes.add(reply["guard"]["outcome"])
        assert reply["guard"]["policy"] == "firm"
    assert outcomes == {"pass", "steered"}


@pytest.mark.parametrize("path", APIS)
def test_screens_read_the_text_beside_an_image_and_not_its_bytes(stand: Stand, path: str) -> None:
    assert encoded(0).startswith(PNG)
    status, reply = ask(stand, path, 0, "noted")
    assert status == 200, reply
    told = {guard["guard"]: guard["fired"] for guard in reply["guard"]["guards"]}
    assert told["topic"] is False and "firm" in told
    status, reply = ask(stand, path, 0, "shut", "w5 forbidden")
    assert status == 400 and reply["error"]["message"] == "That is not for here."
    assert ask(stand, path, 0, "shut")[0] == 200


@pytest.mark.parametrize("path", APIS)
def test_an_unknown_policy_is_refused_whatever_the_body_holds(stand: Stand, path: str) -> None:
    status, reply = ask(stand, path, 0, "unknown")
    assert status == 400 and "there is no policy 'unknown'" in json.dumps(reply)


@pytest.mark.parametrize("path", APIS)
def test_a_screen_of_images_blocks_what_it_sees(stand: Stand, path: str) -> None:
    status, reply = ask(stand, path, "red", "colours")
    assert status == 400 and "choices" not in reply, reply
    audited = stand.audited()[-1]
    (guard,) = audited["guards"]
    assert audited["outcome"] == "blocked" and guard["guard"] == "red" and guard["fired"]
    status, reply = ask(stand, path, "blue", "colours")
    assert status == 200, reply
    (guard,) = reply["guard"]["guards"]
    assert reply["guard"]["outcome"] == "pass" and not guard["fired"] and guard["score"] < 0.5


@pytest.mark.parametrize("path", APIS)
def test_guards_and_screens_of_images_make_one_verdict(stand: Stand, path: str) -> None:
    for image, fires in (("red", True), ("blue", False)):
        status, reply = ask(stand, path, image, "colours-noted", "w5 forbidden")
        assert status == 200, reply
        told = {guard["guard"]: guard["fired"] for guard in reply["guard"]["guards"]}
        assert told["red"] is fires and told["topic"] is True and "firm" in told


def test_an_image_that_is_not_brought_is_not_let_through_unread(stand: Stand) -> None:
    body = {"model": "tiny", **_chat("blue", WORDS), "guard": {"policy": "colours"}}
    body["messages"][0]["content"][0]["image_url"]["url"] = "https://example.com/a.png"
    status, _, raw = post(stand, "/v1/chat/completions", body)
    assert status == 400 and json.loads(raw)["error"]["code"] == "unreadable_image"


def test_an_image_that_is_none_is_refused_and_nothing_is_generated(stand: Stand) -> None:
    body = {"model": "tiny", **_chat(0, WORDS), "guard": {"policy": "firm"}}
    url = body["messages"][0]["content"][0]["image_url"]
    url["url"] = url["url"][:60]
    status, _, raw = post(stand, "/v1/chat/completions", body)
    assert status == 400 and b"choices" not in raw
