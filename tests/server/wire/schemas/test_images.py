from __future__ import annotations

from typing import Any

import pytest
from openai.types import image_edit_params, image_generate_params

from guard.errors import RequestError
from server.wire.schemas.base import parse_request
from server.wire.schemas.images import STRENGTH, EditRequest, ImageRequest

BODY: dict[str, Any] = {"model": "m", "prompt": "a cat"}
EXTENSIONS = {
    "guard",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "embeddings",
}


def parsed(**options: Any) -> ImageRequest:
    return parse_request(ImageRequest, BODY | options)


def refusal(**options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(**options)
    return caught.value


def test_every_parameter_of_the_official_client_is_honoured_or_named() -> None:
    names = set(image_generate_params.ImageGenerateParamsBase.__annotations__)
    names |= set(image_generate_params.ImageGenerateParamsStreaming.__annotations__)
    known = ImageRequest.model_fields.keys() | ImageRequest.no_ops.keys()
    assert names <= known
    assert known - names == EXTENSIONS
    assert not ImageRequest.model_fields.keys() & ImageRequest.no_ops.keys()


def test_defaults_of_unsupported_parameters_pass_and_all_else_is_refused() -> None:
    for name, defaults in ImageRequest.no_ops.items():
        for default in (*defaults, None):
            parsed(**{name: default})
        error = refusal(**{name: {"anything": "else"}})
        assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("stream", True, "unsupported_parameter"),
        ("partial_images", 2, "unsupported_parameter"),
        ("quality", "hd", "unsupported_parameter"),
        ("style", "vivid", "unsupported_parameter"),
        ("background", "transparent", "unsupported_parameter"),
        ("moderation", "low", "unsupported_parameter"),
        ("response_format", "url", "unsupported_parameter"),
        ("output_format", "gif", "unsupported_parameter"),
        ("response_format", "pdf", "invalid_parameter"),
        ("output_format", 5, "invalid_parameter"),
        ("prompt", "", "invalid_parameter"),
        ("prompt", " \n\t", "invalid_parameter"),
        ("prompt", "x" * 4001, "invalid_parameter"),
        ("prompt", ["a", "b"], "invalid_parameter"),
        ("negative_prompt", "x" * 4001, "invalid_parameter"),
        ("n", 0, "invalid_parameter"),
        ("n", -1, "invalid_parameter"),
        ("n", 1.5, "invalid_parameter"),
        ("n", "2", "invalid_parameter"),
        ("size", "64", "invalid_parameter"),
        ("size", "0x64", "invalid_parameter"),
        ("size", "64x64x64", "invalid_parameter"),
        ("size", "64×64", "invalid_parameter"),
        ("size", "٦٤x٦٤", "invalid_parameter"),
        ("size", [64, 64], "invalid_parameter"),
        ("seed", -1, "invalid_parameter"),
        ("seed", 2**63, "invalid_parameter"),
        ("seed", 1.5, "invalid_parameter"),
        ("seed", "1", "invalid_parameter"),
        ("num_inference_steps", 0, "invalid_parameter"),
        ("num_inference_steps", True, "invalid_parameter"),
        ("guidance_scale", -1, "invalid_parameter"),
        ("guidance_scale", 101, "invalid_parameter"),
        ("guidance_scale", float("inf"), "invalid_parameter"),
        ("output_compression", 50, "invalid_parameter"),
        ("output_compression", 101, "invalid_parameter"),
        ("guard", "strict", "invalid_parameter"),
        ("strength", 0.5, "unknown_parameter"),
        ("image", "x", "unknown_parameter"),
    ],
)
def test_unsupported_parameters_are_refused_by_name(name: str, value: Any, code: str) -> None:
    error = refusal(**{name: value})
    assert (error.param, error.code, error.status) == (name, code, 400)


def test_urls_are_refused_with_the_alternative() -> None:
    assert "b64_json" in refusal(response_format="url").message


def test_the_error_of_a_long_prompt_has_its_length_and_the_limit() -> None:
    message = refusal(prompt="ä" * 10_000).message
    assert "10000" in message and "4000" in message
    assert parsed(prompt="x" * 4000).prompt == "x" * 4000


def test_missing_parameters_are_named() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(ImageRequest, {"model": "m"})
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_required_parameter")


def test_valid_values_are_accepted() -> None:
    body = parsed(
        n=3, size="64x64", output_format="webp", output_compression=0, seed=2**63 - 1, user="u",
        num_inference_steps=1, guidance_scale=0, negative_prompt="a dog", quality="auto",
        background="opaque", response_format="b64_json", safety_identifier="s", style=None,
    )  # fmt: skip
    assert (body.n, body.size, body.seed, body.guidance_scale) == (3, "64x64", 2**63 - 1, 0)
    assert body.file_format.name == "WEBP"


# -- edits --------------------------------------------------------------------------------------

PNG = "data:image/png;base64,AAAA"


def edit(**options: Any) -> EditRequest:
    return parse_request(EditRequest, BODY | {"image": PNG} | options)


def test_every_parameter_of_edits_is_honoured_or_named_too() -> None:
    names = set(image_edit_params.ImageEditParamsBase.__annotations__)
    names |= set(image_edit_params.ImageEditParamsStreaming.__annotations__)
    known = EditRequest.model_fields.keys() | EditRequest.no_ops.keys()
    assert names <= known
    of_edits = {"strength", "inversion", "images", "style", "moderation"}
    assert known - names == EXTENSIONS | of_edits
    for name, defaults in EditRequest.no_ops.items():
        for default in (*defaults, None):
            edit(**{name: default})


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("image", "https://example.org/cat.png", "invalid_parameter"),
        ("image", "data:image/gif;base64,AAAA", "invalid_parameter"),
        ("image", "data:image/png;base64,A*A", "invalid_parameter"),
        ("image", ["a", "b"], "invalid_parameter"),
        ("image", 5, "invalid_parameter"),
        ("images", [{"image_url": PNG}], "unsupported_parameter"),
        ("mask", PNG, "unsupported_parameter"),
        ("input_fidelity", "high", "unsupported_parameter"),
        ("strength", 0, "invalid_parameter"),
        ("strength", 0.0, "invalid_parameter"),
        ("strength", -0.5, "invalid_parameter"),
        ("strength", 1.01, "invalid_parameter"),
        ("strength", float("nan"), "invalid_parameter"),
        ("strength", "0.5", "invalid_parameter"),
        ("inversion", 1, "invalid_parameter"),
        ("prompt", "", "invalid_parameter"),
        ("prompt", "x" * 4001, "invalid_parameter"),
    ],
)
def test_wrong_values_of_edits_are_refused_by_name(name: str, value: Any, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        edit(**{name: value})
    assert (caught.value.param, caught.value.code, caught.value.status) == (name, code, 400)


def test_an_edit_without_an_image_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(EditRequest, BODY)
    assert (caught.value.param, caught.value.code) == ("image", "missing_required_parameter")


def test_strength_and_inversion_exclude_each_other() -> None:
    assert edit().share == STRENGTH and edit(strength=1).share == 1
    assert edit(inversion=True).share is None and edit(inversion=False, strength=0.3).share == 0.3
    with pytest.raises(RequestError) as caught:
        edit(inversion=True, strength=0.5)
    assert caught.value.param == "strength"


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "webp", "PNG"])
def test_a_data_url_is_an_image(kind: str) -> None:
    assert edit(image=f"data:image/{kind};base64,AAEC").image == b"\0\1\2"
