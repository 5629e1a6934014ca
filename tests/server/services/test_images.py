"""Rows of an image service: guards on the prompt, replacement, NaN, admission."""

from __future__ import annotations

import asyncio

import pytest

from guard.errors import (
    ContentBlocked,
    GuardFailed,
    PolicyUnfit,
    RequestError,
    TooManyRequests,
    UnknownPolicy,
)
from server.errors import EngineFailed
from server.services.interface import GeneratedImage
from tests.guard.toy_images import CONCEPT, NAN, STEPS, STUBBORN, TOKENS
from tests.server.running_service import run, until
from tests.server.services.image_driver import CAPACITY, QUEUE, outcome, outcomes, request, same
from tests.server.toy_image_service import HEIGHT, TOO_MANY, WIDTH, RunningImages


def test_silent_rows_equal_the_unguarded_model_and_refined_ones_differ(
    images: RunningImages,
) -> None:
    knife = f"a {CONCEPT}"
    bare, silent = outcomes(images, request(), request(policy="refine-knife"))
    assert same(bare, silent) and bare.pixels.shape == (HEIGHT, WIDTH, 3)
    unguarded, refined, observed, flagged = outcomes(
        images,
        *(
            request(knife, policy)
            for policy in ("none", "refine-knife", "observe-knife", "flag-knife")
        ),
    )
    assert same(unguarded, observed) and same(unguarded, flagged) and not same(unguarded, refined)
    names = [image.verdict.outcome for image in (unguarded, refined, observed, flagged)]
    assert names == ["pass", "refined", "pass", "flagged"]
    (guard,) = refined.verdict.guards
    assert (guard.fired, guard.action, guard.position) == (True, "refine", 0)
    assert (guard.steps, guard.score, guard.after) == (STEPS, 1.0, pytest.approx(0.0, abs=0.1))


def test_a_blocked_prompt_takes_no_step(images: RunningImages) -> None:
    blocked, other = outcomes(images, request(f"a {CONCEPT}", "block-knife"), request(steps=3))
    assert isinstance(blocked, ContentBlocked) and blocked.code == "content_policy_violation"
    assert blocked.verdict.outcome == "blocked" and blocked.verdict.guards[0].action == "block"
    assert isinstance(other, GeneratedImage) and images.engine.steps == 3
    steps = images.engine.steps
    outcomes(images, request(f"a {CONCEPT}", "block-knife"))
    assert images.engine.steps == steps


def test_text_that_the_encoder_cuts_off_is_guarded(images: RunningImages) -> None:
    hidden = "x" * (3 * TOKENS) + CONCEPT
    blocked, refined, bare = outcomes(
        images, request(hidden, "block-knife"), request(hidden, "refine-knife"), request(hidden)
    )
    assert isinstance(blocked, ContentBlocked)
    # the encoder drops it, so there is nothing to refine
    assert same(refined, bare) and refined.verdict.outcome == "pass"
    assert refined.verdict.guards[0].fired and refined.verdict.guards[0].action == "none"


def test_a_prompt_that_cannot_be_refined_is_blocked(images: RunningImages) -> None:
    (blocked,) = outcomes(images, request(f"a {STUBBORN}", "refine-knife"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    (guard,) = blocked.verdict.guards
    assert (guard.action, guard.steps, guard.after) == ("block", STEPS, 1.0)
    assert images.engine.steps == 0


def test_a_prompt_that_cannot_be_refined_is_replaced_by_its_policy(images: RunningImages) -> None:
    stuck = f"a {STUBBORN}"
    first, replaced, last, banana = outcomes(
        images, request(), request(stuck, "replace-knife"), request(steps=2), request("a banana")
    )
    assert same(replaced, banana) and same(first, banana) is False
    assert isinstance(last, GeneratedImage)
    (guard,) = replaced.verdict.guards
    assert replaced.verdict.outcome == "refined"
    assert (guard.action, guard.score, guard.after) == ("replace", 1.0, 1.0)
    assert len(images.verdicts) == 4


def test_a_replacement_prompt_is_guarded(images: RunningImages) -> None:
    (blocked,) = outcomes(images, request(f"a {STUBBORN}", "relapse-knife"))
    assert isinstance(blocked, ContentBlocked) and blocked.verdict.guards[0].action == "block"
    assert images.engine.started == [f"a {STUBBORN}", "an S"] and images.engine.steps == 0
    assert [verdict.outcome for verdict in images.verdicts] == ["blocked"]


def test_nan_in_an_embedding_fails_its_row_under_any_policy_and_spares_the_others(
    images: RunningImages,
) -> None:
    bare, closed, opened, unguarded = outcomes(
        images,
        request(),
        *(request(f"a {NAN}", policy) for policy in ("refine-knife", "open-knife", "none")),
    )
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert closed.verdict is not None and closed.verdict.outcome == "error"
    assert "NaN" in (closed.verdict.guards[0].error or "")
    for none in (opened, unguarded):  # there is nothing to draw from
        assert isinstance(none, EngineFailed) and "NaN" in none.message
        assert none.verdict is not None and none.verdict.outcome == "error"
    assert same(bare, outcomes(images, request())[0])


def test_a_guard_that_meets_nan_fails_closed_and_is_left_out_where_the_policy_is_open(
    images: RunningImages,
) -> None:
    knife = f"a {CONCEPT}"
    bare, closed, opened, silent = outcomes(
        images,
        request(knife),
        request(knife, "refine-blind"),
        request(knife, "open-blind"),
        request(policy="refine-blind"),
    )
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert same(opened, bare) and opened.verdict.outcome == "error"
    assert "NaN" in (opened.verdict.guards[0].error or "")
    assert silent.verdict.outcome == "pass"
    assert len(images.verdicts) == 4


def test_nan_between_steps_ends_its_row_at_once(images: RunningImages) -> None:
    async def meet_nan() -> None:
        images.engine.pace_s = 0.005
        sound, broken = images.service.submit(
            [request(steps=40), request(policy="refine-knife", steps=400)]
        )
        await until(lambda: images.engine.steps >= 2)
        images.engine._rows[1].spoilt = True
        lost = await outcome(broken)
        assert isinstance(lost, EngineFailed) and lost.verdict is not None
        assert lost.verdict.guards[0].score is not None
        assert isinstance(await outcome(sound), GeneratedImage) and images.engine.steps < 100

    run(meet_nan)


def test_a_row_that_the_engine_refuses_fails_alone(images: RunningImages) -> None:
    image, refused = outcomes(images, request(), request(steps=TOO_MANY))
    assert isinstance(image, GeneratedImage)
    assert isinstance(refused, RequestError) and refused.status == 400
    assert "cannot do 499 steps" in refused.message
    assert [verdict.outcome for verdict in images.verdicts] == ["error", "pass"]


def test_a_guard_of_another_encoder_refuses_every_row_with_its_own_verdict(
    images: RunningImages,
) -> None:
    with pytest.raises(GuardFailed) as caught:
        outcomes(images, request(policy="refine-other"), request(policy="refine-other"))
    assert caught.value.verdict is not None
    assert "was fitted on" in (caught.value.verdict.guards[0].error or "")
    assert [verdict.outcome for verdict in images.verdicts] == ["error", "error"]
    (opened,) = outcomes(images, request(policy="open-other"))
    assert isinstance(opened, GeneratedImage) and opened.verdict.outcome == "error"


def test_requests_that_cannot_run_are_refused_without_a_verdict(images: RunningImages) -> None:
    with pytest.raises(UnknownPolicy):
        outcomes(images, request(), request(policy="ghost"))
    with pytest.raises(RequestError, match="acts on the guidance") as caught:
        outcomes(images, request(policy="refine-guide", guidance=1.0))
    assert caught.value.param == "guidance_scale"
    outcomes(images, request(policy="refine-guide"), request(policy="block-guide", guidance=1.0))
    assert len(images.verdicts) == 2 and images.service.queued() == 0


def test_a_policy_for_language_models_is_refused_here(images: RunningImages) -> None:
    with pytest.raises(PolicyUnfit, match="default_policy"):
        outcomes(images, request(policy="refine-words"))
    assert images.verdicts == [] and "refine-words" not in images.service.info.policies


def test_a_full_queue_refuses_exactly_the_rows_that_do_not_fit(images: RunningImages) -> None:
    async def overflow() -> None:
        images.engine.go.clear()
        rows = [*images.service.submit([request()])]
        await until(images.engine.stalled.is_set)
        places = CAPACITY + QUEUE - 1
        rows += images.service.submit([request()] * (places - 1))
        with pytest.raises(TooManyRequests) as caught:
            images.service.submit([request(), request()])  # one of them would fit: all or none
        assert caught.value.retry_after > 0
        rows += images.service.submit([request()])
        with pytest.raises(TooManyRequests):
            images.service.submit([request()])
        assert images.service.queued() == places
        images.engine.go.set()
        assert all(
            isinstance(end, GeneratedImage) for end in await asyncio.gather(*map(outcome, rows))
        )

    run(overflow)
    assert len(images.verdicts) == CAPACITY + QUEUE
