"""Which requests ask for an answer of a given form."""

from __future__ import annotations

from typing import Any

import pytest

from server.screening.bodies.forms import asks_for_form

FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}},
    {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    {"output_format": {"type": "json_schema", "schema": {}}},
    {"structured_outputs": {"regex": "[a-z]"}},
    {"guided_choice": ["a", "b"]},
    {"guided_json": False},
]
NONE: list[dict[str, Any]] = [
    {},
    {"response_format": {"type": "text"}},
    {"response_format": None, "guided_json": None},
    {"response_format": "b64_json"},
    {"text": {"verbosity": "low"}},
    {"text": "a text", "output_config": {"effort": "low"}},
]


@pytest.mark.parametrize("body", FORMS)
def test_a_form_is_known_in_the_fields_of_each_api(body: dict[str, Any]) -> None:
    assert asks_for_form(body)


@pytest.mark.parametrize("body", NONE)
def test_a_plain_answer_has_none(body: dict[str, Any]) -> None:
    assert not asks_for_form(body)
