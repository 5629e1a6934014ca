"""Continuations of a prompt, scored side by side, have the likelihood that they have alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from steering.engines.transformers.continuations import Continued, continuation_losses
from steering.engines.transformers.engine import RowStart
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from steering.prompt import Prompt
from tests.steering.engines.driver import hooks_on, serve
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import FAMILIES, WIDTH, ask, image
from tests.steering.tiny import random_guard

BANK = bank_of([random_guard("a", width=WIDTH), random_guard("b", seed=1, sense=(0,), act=(3,))])
FIRES = [RowGuard("a", -1e6, 10.0, recheck=-1e6), RowGuard("b", -1e6, 5.0)]
SILENT = [RowGuard("a", 1e6, 10.0, recheck=1e6)]
CHATS = [
    ask("What is on it?", image(20, 30, 1)),
    ask("Hello!"),
    ask("And on these two: are they the same?", image(16, 16, 2), image(44, 20, 3)),
]
ENDS = (5, 9)
OTHERS = ((7,), (11, 12, 13, 14, 15))


@pytest.fixture(scope="module", params=FAMILIES)
def running(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of(request.param, tmp_path_factory.mktemp(request.param))


def generated(
    running: Running, prompts: Sequence[Prompt], guards: Sequence[RowGuard], tokens: int
) -> tuple[list[tuple[int, ...]], list[float]]:
    """The greedy answers of the engine, and their losses with the end behind them."""
    engine = running.engine(BANK)
    sampling = RowSampling(top_logprobs=0, scored=ENDS)
    starts = [RowStart(prompt, guards, sampling) for prompt in prompts]
    rows, _ = serve(engine, starts, tokens=tokens + 1)
    engine.close()
    answers = [tuple(token.token for token in row[:tokens]) for row in rows]
    losses = []
    for row in rows:
        end = torch.tensor(row[tokens].scores).logsumexp(0).item()
        said = sum(token.logprob or 0.0 for token in row[:tokens])
        losses.append(-(said + end) / (tokens + 1))
    return answers, losses


def losses(
    running: Running,
    items: Sequence[Continued],
    guards: Sequence[RowGuard],
    batch: int = 8,
) -> tuple[list[tuple[float, ...]], list[bool]]:
    found = continuation_losses(
        running.model,
        items,
        end_tokens=frozenset(ENDS),
        bank=BANK,
        guards=guards,
        vision=running.vision,
        batch=batch,
    )
    assert hooks_on(running.model) == 0
    return [each.values for each in found], [each.fired for each in found]


@pytest.mark.parametrize("guards", [FIRES, SILENT], ids=["fires", "silent"])
@pytest.mark.parametrize("place", [0, 2], ids=["first", "last"])
def test_an_answer_has_the_likelihood_with_which_it_is_generated(
    running: Running, guards: list[RowGuard], place: int
) -> None:
    """Wherever it stands among other continuations, in a batch of ragged prompts."""
    prompts = [running.prompt(chat) for chat in CHATS]
    answers, expected = generated(running, prompts, guards, 4)
    items = []
    for prompt, answer in zip(prompts, answers, strict=True):
        options = [*OTHERS]
        options.insert(place, answer)
        items.append(Continued(prompt, options))
    found, fired = losses(running, items, guards)
    assert [values[place] for values in found] == pytest.approx(expected, rel=2e-4)
    assert fired == [guards is FIRES] * len(CHATS)


def test_continuations_do_not_see_each_other(running: Running) -> None:
    prompts = [running.prompt(chat) for chat in CHATS]
    together, _ = losses(running, [Continued(each, OTHERS) for each in prompts], FIRES)
    for i, option in enumerate(OTHERS):
        alone, _ = losses(running, [Continued(each, [option]) for each in prompts], FIRES, batch=1)
        expected = [values[0] for values in alone]
        assert [values[i] for values in together] == pytest.approx(expected, rel=2e-4)


def test_silent_guards_leave_every_bit(running: Running) -> None:
    items = [Continued(running.prompt(chat), OTHERS) for chat in CHATS]
    assert losses(running, items, SILENT)[0] == losses(running, items, [])[0]
    assert losses(running, items, FIRES)[0] != losses(running, items, [])[0]


def test_nothing_cannot_be_scored(running: Running) -> None:
    prompt = running.prompt(CHATS[1])
    for item in (
        Continued(prompt, [(3,), ()]),
        Continued(prompt, []),
        Continued(Prompt(()), [(3,)]),
    ):
        with pytest.raises(ValueError, match="has no tokens"):
            losses(running, [item], [])
