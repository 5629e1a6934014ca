"""The figures of streams: gaps between arrivals, and the delay of each character."""

from __future__ import annotations

import asyncio
import socket

import pytest

from benchmarks import stream_gaps
from benchmarks.processes import free_port


def test_delays_count_from_the_token_in_which_a_character_left() -> None:
    stream = stream_gaps._Stream("abcdef", began=1.0, received="abcdef")
    stream.left = [(1.1, 2), (1.2, 4), (1.3, 6)]
    stream.arrived = [(1.3, 3), (1.4, 6)]
    figures = stream_gaps._figures([stream, stream])
    assert figures["first"] == pytest.approx(300)
    assert figures["gap p50"] == pytest.approx(100)
    assert figures["delay p50"] == pytest.approx((100 + 200) / 2)  # 200 200 100 200 100 100
    assert figures["behind p50"] == pytest.approx((6 + 3) / 2)


def test_the_upstream_read_by_itself_is_not_late() -> None:
    port = free_port()
    result = asyncio.run(stream_gaps._measure({"upstream": port, "proxy": port}, 1, 0.001))
    for content, sides in result.items():
        assert set(sides) == set(stream_gaps.SIDES), content
        for figures in sides.values():
            assert set(figures) == set(stream_gaps.FIGURES)
            assert figures["delay p50"] < 20
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
