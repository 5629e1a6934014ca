from __future__ import annotations

import hmac
import threading

import pytest

from guard.config.schema import KeyConfig
from guard.errors import TooManyRequests
from guard.tenants.keys import KeyRing, Principal
from guard.tenants.meters import Ledger
from guard.tenants.secret import hash_key


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(secret: str, rate: int | None = None) -> KeyConfig:
    return KeyConfig(hash=hash_key(secret), tenant=f"of-{secret}", requests_per_minute=rate)


def test_a_key_is_identified_by_its_hash() -> None:
    ring = KeyRing([key("a"), key("b")])
    settings_of_key = ring.find("b")
    assert settings_of_key is not None and settings_of_key.tenant == "of-b"
    for wrong in ("", "c", "B", hash_key("b"), "ü\ud800\0", "b" * 100_000):
        assert ring.find(wrong) is None


def test_every_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = KeyRing([key("a"), key("b"), key("c")])
    for secret in ("a", "c", "unknown"):
        compared.clear()
        ring.find(secret)
        assert compared == [hash_key(known).encode() for known in "abc"]


def limited(clock: Clock, *rates: int | None) -> tuple[KeyRing, list[Principal]]:
    """A ring of keys with these rates, and whose they are."""
    secrets = [f"key-{index}" for index in range(len(rates))]
    keys = [key(secret, rate) for secret, rate in zip(secrets, rates, strict=True)]
    ring = KeyRing(keys, ledger=Ledger(clock))
    found = [ring.find(secret) for secret in secrets]
    return ring, [each for each in found if each is not None]


def test_a_rate_is_kept_and_the_wait_it_tells_suffices() -> None:
    clock = Clock()
    ring, (principal,) = limited(clock, 3)
    for _ in range(3):
        ring.take(principal)
    for _ in range(20):
        with pytest.raises(TooManyRequests) as error:
            ring.take(principal)
        assert 0 < error.value.retry_after <= 20
        clock.now += error.value.retry_after
        ring.take(principal)


def test_a_long_silence_saves_up_one_minute_only() -> None:
    clock = Clock()
    ring, (principal,) = limited(clock, 2)
    clock.now += 3600
    ring.take(principal)
    ring.take(principal)
    with pytest.raises(TooManyRequests):
        ring.take(principal)


def test_keys_do_not_use_up_each_others_rate() -> None:
    ring, (first, second, free) = limited(Clock(), 1, 1, None)
    ring.take(first)
    ring.take(second)
    for _ in range(100):
        ring.take(free)


def test_threads_together_get_no_more_than_the_rate() -> None:
    ring, (principal,) = limited(Clock(), 50)
    admitted: list[int] = []

    def ask() -> None:
        for _ in range(25):
            try:
                ring.take(principal)
                admitted.append(1)
            except TooManyRequests:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 50
