"""The cache of verdicts: bounded, by tenant."""

from __future__ import annotations

from server.screening.texts.verdict_cache import VerdictCache, exact_key, read_key


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache: VerdictCache[int] = VerdictCache(2)
    for number in range(3):
        cache.put("t", exact_key(str(number)), number)
        cache.get("t", exact_key("0"))
    assert len(cache) == 2
    assert cache.get("t", exact_key("0")) == 0
    assert cache.get("t", exact_key("1")) is None


def test_keys_tell_texts_apart_that_are_read_differently() -> None:
    assert read_key(["a b", "c"]) != read_key(["a", "b c"])
    assert read_key(["A  b"]) == read_key(["a b"])
    assert exact_key("a") != exact_key("A")


def test_a_tenant_sees_its_own_values_alone() -> None:
    cache: VerdictCache[int] = VerdictCache(4)
    cache.put("a", exact_key("text"), 1)
    assert cache.get("b", exact_key("text")) is None
    assert cache.get("a", exact_key("text")) == 1


def test_a_tenant_that_puts_much_drops_its_own_values() -> None:
    cache: VerdictCache[int] = VerdictCache(10)
    for number in range(3):
        cache.put("small", exact_key(str(number)), number)
    for number in range(100):
        cache.put("large", exact_key(str(number)), number)
    assert len(cache) == 10
    assert [cache.get("small", exact_key(str(number))) for number in range(3)] == [0, 1, 2]
    for number in range(3, 6):
        cache.put("small", exact_key(str(number)), number)
    assert len(cache) == 10
    assert all(cache.get("small", exact_key(str(number))) == number for number in range(1, 6))
