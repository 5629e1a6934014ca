"""Speculative decoding by n-grams: tokens and verdicts beside eager V1 without drafts."""

from __future__ import annotations

from typing import Any

from tests.gpu.parts.comparison import reason
from tests.gpu.parts.same_requests import play, report, together
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings, require_packages
from tests.vllm.checkpoint import save
from tests.vllm.driver import drawn

REQUESTS, SMOKE_REQUESTS = 60, 12
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}


def measure(settings: Settings, add: Add) -> None:
    """Eager and with graphs, on each runner that there is."""
    require_packages("vllm")
    folder = settings.folder("requests-drafts")
    save(folder)
    count = SMOKE_REQUESTS if settings.smoke else REQUESTS
    # without async scheduling and aborts: what is drafted is then the same in every run
    requests = [{k: v for k, v in own.items() if k != "aborted"} for own in drawn(count, seed=7)]
    eager = play(folder, requests, "v1", {})
    if eager[0] is None:
        raise RuntimeError(f"eager V1 has not run: {reason(eager[1])}")
    drafted: dict[str, Any] = {"speculative_config": NGRAM, "async_scheduling": False}
    graphs = {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "PIECEWISE"}}
    engines = {"eager": drafted}
    if settings.on_gpu:
        engines |= {"PIECEWISE": drafted | graphs}
    for runner in ("v1", "v2") if settings.on_gpu else ("v1",):
        for mode, (came, told) in together(folder, requests, runner, engines, settings.workers):
            name = f"{runner} {mode} with drafts"
            report(name, requests, eager[0], came, told, add)
            if came is not None:
                add(Figure(f"{name}: accepted drafts", came["accepted"], "tokens", 1))
