"""The plugin's own time: a clock that runs in its functions and stands still in others."""

from __future__ import annotations

import threading
from types import FunctionType

import pytest

from benchmarks.vllm_plugin_time import OwnTime


class Hours:
    """A clock that is set forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hours:
    return Hours()


@pytest.fixture
def time(clock: Hours) -> OwnTime:
    return OwnTime(clock)


def test_what_an_own_function_calls_of_others_is_not_counted(clock: Hours, time: OwnTime) -> None:
    def vllm() -> None:
        clock.now += 100.0
        inner()

    @time.own
    def inner() -> None:
        clock.now += 3.0

    original = time.others(vllm)

    @time.own
    def outer() -> None:
        clock.now += 1.0
        original()
        clock.now += 2.0

    outer()
    outer()
    assert time.seconds == 2 * (1.0 + 3.0 + 2.0)
    assert time.calls == {"outer": 2, "inner": 2}
    time.reset()
    assert time.seconds == 0.0 and not time.calls


def test_own_functions_that_call_each_other_count_once(clock: Hours, time: OwnTime) -> None:
    @time.own
    def inner() -> None:
        clock.now += 1.0

    @time.own
    def outer() -> None:
        inner()
        clock.now += 1.0

    outer()
    assert time.seconds == 2.0


def test_others_count_nothing_by_themselves_nor_behind_an_error(
    clock: Hours, time: OwnTime
) -> None:
    @time.others
    def vllm() -> None:
        clock.now += 5.0

    @time.own
    def fails() -> None:
        clock.now += 1.0
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    clock.now += 7.0
    vllm()
    assert time.seconds == 1.0


def test_a_thread_does_not_count_in_another(clock: Hours, time: OwnTime) -> None:
    @time.own
    def waits() -> None:
        clock.now += 1.0
        # what another thread does of vLLM in the meantime is not the plugin's
        other = threading.Thread(target=time.others(lambda: None))
        other.start()
        other.join()
        clock.now += 1.0

    waits()
    assert time.seconds == 2.0


def test_the_time_of_a_wrapper_keeps_its_name(time: OwnTime) -> None:
    def execute_model() -> int:
        return 3

    wrapped = time.own(execute_model)
    assert isinstance(wrapped, FunctionType) and wrapped.__name__ == "execute_model"
    assert wrapped() == 3
