from __future__ import annotations

from server.screening import kept
from server.screening.kept import KeptBody, KeptTexts


def body(size: int = 10) -> KeptBody:
    return KeptBody("strict", b"x" * size, "user")


def test_the_oldest_are_forgotten() -> None:
    texts = KeptTexts(2)
    for number in range(3):
        texts.put("acme", f"r{number}", body())
    assert texts.get("acme", "r0", "strict") is None
    assert texts.get("acme", "r2", "strict") == body()
    assert texts.get("other", "r2", "strict") is None


def test_bytes_are_bounded() -> None:
    texts = KeptTexts(10_000)
    texts.put("", "too long", body(kept.MAX_BODY_BYTES + 1))
    assert texts.get("", "too long", "strict") is None
    count = kept.MAX_BYTES // kept.MAX_BODY_BYTES + 5
    for number in range(count):
        texts.put("", f"r{number}", body(kept.MAX_BODY_BYTES))
    assert [texts.get("", f"r{number}", "strict") is None for number in (4, 5)] == [True, False]


def test_an_id_that_came_twice_stands_for_neither_request() -> None:
    texts = KeptTexts(10)
    texts.put("acme", "same", body(1))
    texts.put("acme", "same", body(2))
    assert texts.get("acme", "same", "strict") is None
    texts.put("other", "same", body(3))
    assert texts.get("other", "same", "strict") == body(3)


def test_none_are_kept_where_none_may_be() -> None:
    texts = KeptTexts(0)
    texts.put("acme", "r", body())
    assert texts.get("acme", "r", "strict") is None


def test_a_body_is_that_of_a_request_under_its_policy_alone() -> None:
    texts = KeptTexts(10)
    texts.put("acme", "r", body())
    assert texts.get("acme", "r", "strict") == body()
    assert texts.get("acme", "r", "none") is None
