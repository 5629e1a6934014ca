"""Keys and tokens with a form of their own."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    (
        "use dop_v1_a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4.",
        "dop_v1_a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4a1b2c3d4",
    ),
    ("(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)", "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"),
    (
        "KEY=lin_api_aB3daB3daB3daB3daB3daB3daB3daB3daB3daB3d\n",
        "lin_api_aB3daB3daB3daB3daB3daB3daB3daB3daB3daB3d",
    ),
]
NOT_FOUND = [
    "class sk_live_test, pat_of_butter",
    "the glossary, the general, the glue",
    "sk-learn-contrib-some-package-name",
    "dapiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "shpat_short",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "API_KEY", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "API_KEY", text) == []


def test_tokens_of_hugging_face_may_have_no_digit() -> None:
    token = "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"
    assert values("secrets", "LLM_API_KEY", f"{token} is mine") == [token]
    names = "hf_transformersModelForQuestionAnsweringX and hf_qwertyuiopasdfghjklzxcvbnmqwertyuiop"
    assert values("secrets", "LLM_API_KEY", names) == []
