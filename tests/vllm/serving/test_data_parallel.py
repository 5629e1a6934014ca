"""Two engines behind one front end, each with guards of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from openai import BadRequestError  # noqa: E402

from tests.vllm.checkpoint import CONFIG  # noqa: E402
from tests.vllm.standing import Stand, asked, serving, words  # noqa: E402


def _answers(stand: Stand) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    client = stand.client

    def one(request: tuple[str, int]) -> tuple[str, str, list[tuple[str, Any]]]:
        policy, number = request
        reply = client.completions.create(
            model="tiny",
            prompt=words(number),
            max_tokens=6,
            temperature=0,
            extra_body=asked(policy),
        )
        told = reply.model_extra["guard"]  # type: ignore[index]
        seen = [(guard["guard"], guard["position"]) for guard in told["guards"]]
        return reply.choices[0].text, str(reply.choices[0].finish_reason), seen

    requests = [(policy, n) for n in range(12) for policy in ("none", "firm", "stop")]
    with ThreadPoolExecutor(8) as many:
        return list(many.map(one, requests))


def _served(stand: Stand) -> dict[str, float]:
    """How many requests each engine has ended."""
    with urlopen(f"{stand.url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    counts: dict[str, float] = {}
    for line in lines:
        if line.startswith("vllm:request_success_total{"):
            engine = line.partition('engine="')[2].partition('"')[0]
            counts[engine] = counts.get(engine, 0.0) + float(line.rpartition(" ")[2])
    return counts


def test_engines_that_share_a_front_end_guard_alike(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    with serving(alone) as stand:
        expected = _answers(stand)
    with serving(both, "--data-parallel-size", "2") as stand:
        assert _answers(stand) == expected
        served = _served(stand)
        assert len(served) == 2 and all(served.values()), served
        # the new configuration reaches both
        stand.configure(CONFIG.replace("policies.firm", "policies.fresh"))
        status, told = stand.reload()
        assert status == 200 and "fresh" in told["policies"]
        with pytest.raises(BadRequestError, match="there is no policy 'firm'"):
            stand.client.completions.create(
                model="tiny", prompt="w5", max_tokens=1, extra_body=asked("firm")
            )
        with ThreadPoolExecutor(8) as many:
            fresh = many.map(
                lambda n: stand.client.completions.create(
                    model="tiny", prompt=words(n), max_tokens=2, extra_body=asked("fresh")
                ),
                range(12),
            )
            policies = [each.model_extra["guard"]["policy"] for each in fresh]  # type: ignore[index]
        assert policies == ["fresh"] * 12
        assert len(stand.audited()) == len(expected) + 12
