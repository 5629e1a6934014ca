"""What fails in a screen that only a shadow has fails no request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.config.schema import load_config
from guard.errors import GuardError, GuardFailed
from guard.plans.screens import TextPlans, TextScreen
from server.observe.exchange import Exchange
from server.screening.errors import TextTooLong
from server.screening.exchange import ScreenedExchange
from server.screening.routes import route_of
from server.wire.body import RequestBody
from tests.server.policies.stand import write_config

SHADOWED = (
    '[policies.strict]\nguards = ["words"]\naction = "block"\n'
    '[policies.strict.shadow]\nguards = ["words", "names"]\n'
)


class Screener:
    """Reads with all screens but those that have `failed`."""

    def __init__(self, *failed: str, error: GuardError) -> None:
        self.failed, self.error = {*failed}, error
        self.asked: list[list[str]] = []

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: Any, caller: Any
    ) -> list[list[str]]:
        if self.failed & {screen.name for screen in screens}:
            raise self.error
        self.asked.append([screen.name for screen in screens])
        return [[screen.name for screen in screens] for _ in texts]


@pytest.mark.parametrize("policy", ["closed", "open"])
def test_the_rest_is_read_without_it(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    on_error = f'action = "block"\non_error = "{policy}"\n'
    path.write_text(write_config(tmp_path, SHADOWED.replace('action = "block"\n', on_error)))
    plan = TextPlans(load_config(path))["strict"]
    assert plan.watching == {"names"} and len(plan.screens) == 2
    route, _ = route_of("POST", "/v1/chat/completions")
    assert route is not None

    def read(*failed: str, error: GuardError | None = None) -> Any:
        screener = Screener(*failed, error=error or GuardFailed("the encoder is broken"))
        context: Any = SimpleNamespace(screener=screener, own_app=True)
        body = RequestBody(b"{}", {})
        screened = ScreenedExchange(context, plan, route, Exchange("r"), body, model="")
        return screened, asyncio.run(screened.read(["a", "b"], plan.screens))

    screened, found = read("names")
    assert found == [["words"], ["words"]] and screened.findings.outcome == "pass"
    assert read("names", error=TextTooLong())[1] == [["words"], ["words"]]
    with pytest.raises(TextTooLong):
        read("words", error=TextTooLong())
    if policy == "closed":
        with pytest.raises(GuardFailed):
            read("words")
    else:
        screened, found = read("words")
        assert screened.findings.outcome == "error"


@pytest.mark.parametrize("first_stage", [True, False])
def test_a_shadow_takes_no_text_to_the_encoder_of_its_policy(
    first_stage: bool, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(write_config(tmp_path, SHADOWED))
    plan = TextPlans(load_config(path))["strict"]
    heads = tuple(
        replace(screen, head=column, first_stage=first_stage)
        for column, screen in enumerate(plan.screens)
    )
    route, _ = route_of("POST", "/v1/chat/completions")
    assert route is not None
    screener = Screener(error=GuardFailed(""))
    context: Any = SimpleNamespace(screener=screener, own_app=True)
    body = RequestBody(b"{}", {})
    plan = replace(plan, screens=heads)
    screened = ScreenedExchange(context, plan, route, Exchange("r"), body, model="")
    assert asyncio.run(screened.read(["a"], heads)) == [["words", "names"]]
    assert screener.asked == ([["words"], ["names"]] if first_stage else [["words", "names"]])
