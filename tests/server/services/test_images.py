"""The service of images: screening, replacement, ends of every kind, and nothing lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.errors import (
    ContentBlocked,
    GuardError,
    GuardFailed,
    PolicyUnfit,
    RequestError,
    ServiceStopped,
    TooManyRequests,
    UnknownPolicy,
)
from server.errors import EngineFailed
from server.services.images import ImageRow
from server.services.interface import GeneratedImage, ImageRowRequest
from tests.guard.toy_images import CONCEPT, NAN, STEPS, STUBBORN, TOKENS
from tests.server.image_stand import HEIGHT, TOO_MANY, WIDTH, ImageStand, image_stand

CAPACITY, QUEUE = 4, 3


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[ImageStand]:
    with image_stand(tmp_path, max_batch=CAPACITY, queue_limit=QUEUE) as stand:
        yield stand


def ask(prompt: str = "a cat", policy: str = "none", **more: Any) -> ImageRowRequest:
    drawn = {"seed": 7, "steps": 4, "guidance": 3.0, "tenant": "acme"} | more
    return ImageRowRequest(f"{policy}:{prompt[:20]}", prompt, policy, **drawn)


async def outcome(row: ImageRow) -> GeneratedImage | GuardError:
    try:
        return await row.drawn()
    except GuardError as error:
        return error


async def batch(stand: ImageStand, requests: list[ImageRowRequest]) -> list[Any]:
    return await asyncio.gather(*map(outcome, stand.service.submit(requests)))


def together(stand: ImageStand, *requests: ImageRowRequest) -> list[Any]:
    return run(lambda: batch(stand, list(requests)))


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(limited())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def same(one: GeneratedImage, other: GeneratedImage) -> bool:
    return bool(np.array_equal(one.pixels, other.pixels))


# -- screening ----------------------------------------------------------------------------------


def test_silent_rows_are_those_of_the_bare_model_and_refined_ones_are_not(
    stand: ImageStand,
) -> None:
    knife = f"a {CONCEPT}"
    bare, silent = together(stand, ask(), ask(policy="refine-knife"))
    assert same(bare, silent) and bare.pixels.shape == (HEIGHT, WIDTH, 3)
    shown, refined, watched, flagged = together(
        stand,
        *(ask(knife, policy) for policy in ("none", "refine-knife", "observe-knife", "flag-knife")),
    )
    assert same(shown, watched) and same(shown, flagged) and not same(shown, refined)
    outcomes = [each.verdict.outcome for each in (shown, refined, watched, flagged)]
    assert outcomes == ["pass", "refined", "pass", "flagged"]
    (guard,) = refined.verdict.guards
    assert (guard.fired, guard.action, guard.position) == (True, "refine", 0)
    assert (guard.steps, guard.score, guard.after) == (STEPS, 1.0, pytest.approx(0.0, abs=0.1))


def test_a_blocked_prompt_takes_no_step(stand: ImageStand) -> None:
    blocked, other = together(stand, ask(f"a {CONCEPT}", "block-knife"), ask(steps=3))
    assert isinstance(blocked, ContentBlocked) and blocked.code == "content_policy_violation"
    assert blocked.verdict.outcome == "blocked" and blocked.verdict.guards[0].action == "block"
    assert isinstance(other, GeneratedImage) and stand.engine.steps == 3
    steps = stand.engine.steps
    together(stand, ask(f"a {CONCEPT}", "block-knife"))
    assert stand.engine.steps == steps


def test_what_the_encoder_cuts_off_is_screened(stand: ImageStand) -> None:
    hidden = "x" * (3 * TOKENS) + CONCEPT
    blocked, refined, bare = together(
        stand, ask(hidden, "block-knife"), ask(hidden, "refine-knife"), ask(hidden)
    )
    assert isinstance(blocked, ContentBlocked)
    # it is not drawn, so there is nothing to refine
    assert same(refined, bare) and refined.verdict.outcome == "pass"
    assert refined.verdict.guards[0].fired and refined.verdict.guards[0].action == "none"


def test_a_prompt_that_cannot_be_refined_is_blocked(stand: ImageStand) -> None:
    (blocked,) = together(stand, ask(f"a {STUBBORN}", "refine-knife"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    (guard,) = blocked.verdict.guards
    assert (guard.action, guard.steps, guard.after) == ("block", STEPS, 1.0)
    assert stand.engine.steps == 0


def test_or_replaced_where_the_policy_says_so(stand: ImageStand) -> None:
    stuck = f"a {STUBBORN}"
    first, replaced, last, banana = together(
        stand, ask(), ask(stuck, "replace-knife"), ask(steps=2), ask("a banana")
    )
    assert same(replaced, banana) and same(first, banana) is False
    assert isinstance(last, GeneratedImage)
    (guard,) = replaced.verdict.guards
    assert replaced.verdict.outcome == "refined"
    assert (guard.action, guard.score, guard.after) == ("replace", 1.0, 1.0)
    assert len(stand.verdicts) == 4


def test_a_replacement_is_screened_itself(stand: ImageStand) -> None:
    (blocked,) = together(stand, ask(f"a {STUBBORN}", "relapse-knife"))
    assert isinstance(blocked, ContentBlocked) and blocked.verdict.guards[0].action == "block"
    assert stand.engine.started == [f"a {STUBBORN}", "an S"] and stand.engine.steps == 0
    assert [verdict.outcome for verdict in stand.verdicts] == ["blocked"]


def test_nan_in_an_embedding_fails_its_row_under_any_policy_and_spares_the_others(
    stand: ImageStand,
) -> None:
    bare, closed, opened, unguarded = together(
        stand,
        ask(),
        *(ask(f"a {NAN}", policy) for policy in ("refine-knife", "open-knife", "none")),
    )
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert closed.verdict is not None and closed.verdict.outcome == "error"
    assert "NaN" in (closed.verdict.guards[0].error or "")
    for none in (opened, unguarded):  # there is nothing to draw from
        assert isinstance(none, EngineFailed) and "NaN" in none.message
        assert none.verdict is not None and none.verdict.outcome == "error"
    assert same(bare, together(stand, ask())[0])


def test_a_guard_that_meets_nan_fails_closed_and_is_left_out_where_the_policy_is_open(
    stand: ImageStand,
) -> None:
    knife = f"a {CONCEPT}"
    bare, closed, opened, silent = together(
        stand,
        ask(knife),
        ask(knife, "refine-blind"),
        ask(knife, "open-blind"),
        ask(policy="refine-blind"),
    )
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert same(opened, bare) and opened.verdict.outcome == "error"
    assert "NaN" in (opened.verdict.guards[0].error or "")
    assert silent.verdict.outcome == "pass"
    assert len(stand.verdicts) == 4


def test_what_turns_to_nan_on_the_way_ends_its_row_at_once(stand: ImageStand) -> None:
    async def spoil() -> None:
        stand.engine.pace_s = 0.005
        sound, spoilt = stand.service.submit([ask(steps=40), ask(policy="refine-knife", steps=400)])
        await until(lambda: stand.engine.steps >= 2)
        stand.engine._rows[1].spoilt = True
        lost = await outcome(spoilt)
        assert isinstance(lost, EngineFailed) and lost.verdict is not None
        assert lost.verdict.guards[0].score is not None
        assert isinstance(await outcome(sound), GeneratedImage) and stand.engine.steps < 100

    run(spoil)


def test_a_row_that_the_engine_does_not_take_is_refused_alone(stand: ImageStand) -> None:
    drawn, refused = together(stand, ask(), ask(steps=TOO_MANY))
    assert isinstance(drawn, GeneratedImage)
    assert isinstance(refused, RequestError) and refused.status == 400
    assert "cannot do 499 steps" in refused.message
    assert [verdict.outcome for verdict in stand.verdicts] == ["error", "pass"]


def test_a_guard_of_another_encoder_refuses_every_row_with_its_own_verdict(
    stand: ImageStand,
) -> None:
    with pytest.raises(GuardFailed) as caught:
        together(stand, ask(policy="refine-other"), ask(policy="refine-other"))
    assert caught.value.verdict is not None
    assert "was fitted on" in (caught.value.verdict.guards[0].error or "")
    assert [verdict.outcome for verdict in stand.verdicts] == ["error", "error"]
    (opened,) = together(stand, ask(policy="open-other"))
    assert isinstance(opened, GeneratedImage) and opened.verdict.outcome == "error"


# -- admission ----------------------------------------------------------------------------------


def test_requests_that_cannot_run_are_refused_without_a_verdict(stand: ImageStand) -> None:
    with pytest.raises(UnknownPolicy):
        together(stand, ask(), ask(policy="ghost"))
    with pytest.raises(RequestError, match="acts on the guidance") as caught:
        together(stand, ask(policy="refine-guide", guidance=1.0))
    assert caught.value.param == "guidance_scale"
    together(stand, ask(policy="refine-guide"), ask(policy="block-guide", guidance=1.0))
    assert len(stand.verdicts) == 2 and stand.service.queued() == 0


def test_a_policy_for_language_models_is_refused_here(stand: ImageStand) -> None:
    with pytest.raises(PolicyUnfit, match="default_policy"):
        together(stand, ask(policy="refine-words"))
    assert stand.verdicts == [] and "refine-words" not in stand.service.info.policies


def test_exactly_the_rows_that_do_not_fit_are_turned_away(stand: ImageStand) -> None:
    async def overflow() -> None:
        stand.engine.go.clear()
        taken = [*stand.service.submit([ask()])]
        await until(stand.engine.stalled.is_set)
        places = CAPACITY + QUEUE - 1
        taken += stand.service.submit([ask()] * (places - 1))
        with pytest.raises(TooManyRequests) as caught:
            stand.service.submit([ask(), ask()])  # one of them would fit: all or none
        assert caught.value.retry_after > 0
        taken += stand.service.submit([ask()])
        with pytest.raises(TooManyRequests):
            stand.service.submit([ask()])
        assert stand.service.queued() == places
        stand.engine.go.set()
        assert all(
            isinstance(each, GeneratedImage) for each in await asyncio.gather(*map(outcome, taken))
        )

    run(overflow)
    assert len(stand.verdicts) == CAPACITY + QUEUE


# -- joining and leaving ------------------------------------------------------------------------


def test_a_request_joins_between_two_steps_and_leaves_before_the_others(
    stand: ImageStand,
) -> None:
    async def stagger() -> None:
        stand.engine.pace_s = 0.005
        (long,) = stand.service.submit([ask(steps=60)])
        await until(lambda: stand.engine.steps >= 3)
        (short,) = stand.service.submit([ask(steps=2)])
        assert isinstance(await outcome(short), GeneratedImage)
        assert not long.ended and stand.engine.steps < 60
        assert isinstance(await outcome(long), GeneratedImage)
        assert stand.engine.steps == 60, "the two have shared their steps"

    run(stagger)


def test_a_client_that_hangs_up_loses_its_row_at_the_next_step_and_no_other(
    stand: ImageStand,
) -> None:
    async def hang_up() -> None:
        stand.engine.pace_s = 0.005
        rows = stand.service.submit([ask("first", steps=400), ask("b", steps=30), ask(steps=40)])
        await until(lambda: stand.engine.steps >= 3)
        stand.engine.go.clear()
        stand.engine.stalled.clear()
        await until(stand.engine.stalled.is_set)
        waiting = stand.service.submit([ask("late")])
        await waiting[0].aclose()  # still in the queue: at once
        assert len(stand.verdicts) == 1
        await rows[0].aclose()
        await rows[0].aclose()
        steps = stand.engine.steps
        stand.engine.go.set()
        await until(lambda: stand.engine.rows == 2)
        assert stand.engine.steps <= steps + 2
        drawn = await asyncio.gather(*map(outcome, rows[1:]))
        assert all(isinstance(each, GeneratedImage) for each in drawn)
        await until(lambda: stand.engine.rows == 0)
        assert stand.engine.steps < 100

    run(hang_up)
    told = Counter(verdict.request_id for verdict in stand.verdicts)
    assert told == {"none:first": 1, "none:b": 1, "none:a cat": 1, "none:late": 1}
    assert len(stand.audit()) == 4


def test_a_image_is_the_same_in_whatever_company(stand: ImageStand) -> None:
    (alone,) = together(stand, ask(seed=3))
    company = together(
        stand,
        ask(f"a {CONCEPT}", "block-knife"),
        ask(f"a {STUBBORN}", "replace-knife", steps=2),
        ask(seed=3),
        ask("x", steps=1),
    )
    assert same(company[2], alone)
    assert not same(together(stand, ask(seed=4))[0], alone)


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["start", "step", "images"])
def test_a_step_that_fails_loses_its_batch_and_nothing_else(
    stand: ImageStand, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        stand.engine.go.clear()
        running = stand.service.submit([ask(policy="refine-knife")] * 2)
        await until(stand.engine.stalled.is_set)
        fault = RuntimeError("secret of the device")
        if step == "images":

            def broken(rows: Any) -> Any:
                monkeypatch.undo()
                raise fault

            monkeypatch.setattr(stand.engine, "images", broken)
        elif step == "start":
            stand.engine.faults.append(fault)
        else:
            real = stand.engine.step

            def spoilt() -> Any:
                monkeypatch.undo()
                stand.engine.faults.append(fault)
                return real()

            monkeypatch.setattr(stand.engine, "step", spoilt)
        waiting = stand.service.submit([ask(policy="refine-knife")] * QUEUE)
        if step != "start":  # those that wait join only what is left
            stand.engine.capacity = 2
        stand.engine.go.set()
        for lost in await asyncio.gather(*map(outcome, running)):
            assert isinstance(lost, EngineFailed) and "secret" not in lost.message
            assert lost.verdict is not None and lost.verdict.outcome == "error"
        for served in await asyncio.gather(*map(outcome, waiting)):
            assert isinstance(served, GeneratedImage)
        assert len(stand.verdicts) == len(running) + len(waiting)

    run(fail)
    assert stand.service.ready()


def test_an_engine_that_cannot_start_again_stops_the_service(stand: ImageStand) -> None:
    async def die() -> None:
        stand.engine.go.clear()
        (running,) = stand.service.submit([ask()])
        await until(stand.engine.stalled.is_set)
        (waiting,) = stand.service.submit([ask()])
        stand.engine.reset_fault = RuntimeError("the device is gone")
        stand.engine.faults.append(RuntimeError("the device is gone"))
        stand.engine.go.set()
        assert isinstance(await outcome(running), EngineFailed)
        assert isinstance(await outcome(waiting), ServiceStopped)
        await until(lambda: not stand.service.ready())
        with pytest.raises(ServiceStopped):
            stand.service.submit([ask()])

    run(die)
    assert [verdict.outcome for verdict in stand.verdicts] == ["error", "error"]


def test_closing_ends_every_row_with_its_verdict(stand: ImageStand) -> None:
    async def close() -> None:
        stand.engine.pace_s = 0.005
        running = stand.service.submit([ask(policy="refine-knife", steps=400)] * CAPACITY)
        await until(lambda: stand.engine.steps >= 2)
        stand.engine.stalled.clear()
        stand.engine.go.clear()
        await until(stand.engine.stalled.is_set)
        waiting = stand.service.submit([ask(policy="refine-knife")] * QUEUE)
        asyncio.get_running_loop().run_in_executor(None, stand.engine.go.set)
        stand.service.close()
        stand.service.close()
        for ended in await asyncio.gather(*map(outcome, [*running, *waiting])):
            assert isinstance(ended, ServiceStopped)
            assert ended.verdict is not None and ended.verdict.outcome == "error"
            assert ended.verdict in stand.verdicts
        with pytest.raises(ServiceStopped):
            stand.service.submit([ask()])

    run(close)
    assert not stand.service.ready() and stand.engine.closed
    scores = [verdict.guards[0].score for verdict in stand.verdicts]
    assert [score is None for score in scores] == [False] * CAPACITY + [True] * QUEUE
    assert len(stand.audit()) == CAPACITY + QUEUE


def test_a_record_that_cannot_be_kept_does_not_stop_the_engine(
    stand: ImageStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise RuntimeError("nowhere to put it")

    monkeypatch.setattr(stand.service, "_record", full)
    assert all(isinstance(each, GeneratedImage) for each in together(stand, ask(), ask("b")))
