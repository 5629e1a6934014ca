"""The bank of software traffic."""

from __future__ import annotations

import re

from guard.data.traffic.traffic import families, whole_prompts


def test_families_are_apart_and_of_some_size() -> None:
    names = [family.name for family in families()]
    assert len(names) == len(set(names)) >= 30
    texts = [text for family in families() for text in family.texts]
    assert len(texts) == len(set(texts)) > 1_000
    assert all(len(family.texts) >= 10 for family in families())


def test_every_name_in_braces_is_filled_in() -> None:
    for family in families():
        for text in family.texts:
            assert text.strip() and not re.search(r"(?<![{$]){[a-z]+}(?!})", text), text


def test_a_tool_is_shown_as_a_request_has_it_and_as_code() -> None:
    (people,) = [family for family in families() if family.name == "tools: people"]
    assert "find_customer(phone, name, order_id): Find a customer by phone number" in "\n".join(
        people.texts
    )
    assert any(text.startswith("def find_customer(phone: string") for text in people.texts)
    assert any(text.startswith('{"name": "find_customer"') for text in people.texts)


def test_whole_prompts_are_long_and_of_the_families_of_agents() -> None:
    by_name = {family.name: family for family in families()}
    for name, prompts in whole_prompts().items():
        assert by_name[name].area in {"agents", "planning"}
        assert len(prompts) == len(by_name[name].texts)
        assert all("\n\n" in prompt for prompt in prompts)
    assert whole_prompts() == whole_prompts.__wrapped__()
