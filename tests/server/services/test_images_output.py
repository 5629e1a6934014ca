"""Guards on generated images: block, replacement, NaN, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from guard.errors import ContentBlocked, GuardFailed
from server.errors import EngineFailed
from server.services.interface import GeneratedImage
from steering.images.embedding import ImageReading
from tests.guard.toy_images import BLINDING, CONCEPT, NAN, PAINTED, STUBBORN
from tests.server.running_service import run, until
from tests.server.services.image_driver import CAPACITY, QUEUE, outcome, outcomes, request, same
from tests.server.toy_image_service import RunningImages

SHOWN, BLURRED = f"a {PAINTED}", f"a {BLINDING}"


def entry_of(end: GeneratedImage | ContentBlocked, guard: str = "output") -> dict[str, object]:
    """The entry of one guard in the verdict."""
    assert end.verdict is not None
    (entry,) = [entry for entry in end.verdict.as_dict()["guards"] if entry["guard"] == guard]
    return dict(entry)


@pytest.mark.parametrize("action", ["refine", "block", "open"])
def test_a_generated_image_of_the_concept_is_blocked(images: RunningImages, action: str) -> None:
    (blocked,) = outcomes(images, request(SHOWN, f"{action}-output", steps=5))
    assert isinstance(blocked, ContentBlocked) and blocked.code == "content_policy_violation"
    assert blocked.message == (
        "A guard of this policy finds its concept in the image, and blocks it."
    )
    entry = entry_of(blocked)
    assert (entry["action"], entry["fired"], entry["position"]) == ("block", True, 5)
    assert blocked.verdict.outcome == "blocked" and images.engine.steps == 5
    assert [verdict.outcome for verdict in images.verdicts] == ["blocked"]


def test_a_blocked_image_is_never_decoded(
    images: RunningImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = images.engine.images

    def recorded(rows: list[int]) -> object:
        decoded.extend(rows)
        return decode(rows)

    monkeypatch.setattr(images.engine, "images", recorded)
    outcomes(images, request(SHOWN, "refine-output"))
    assert decoded == []


def test_an_image_without_the_concept_equals_the_unguarded_one(images: RunningImages) -> None:
    bare, silent = outcomes(images, request(), request(policy="refine-output"))
    assert same(bare, silent)
    entry = entry_of(silent)
    assert silent.verdict.outcome == "pass" and isinstance(entry["score"], float)
    assert (entry["fired"], entry["action"], entry["position"]) == (False, "none", None)


@pytest.mark.parametrize(("action", "outcome"), [("observe", "pass"), ("flag", "flagged")])
def test_observe_and_flag_return_the_image(
    images: RunningImages, action: str, outcome: str
) -> None:
    bare, image = outcomes(images, request(SHOWN), request(SHOWN, f"{action}-output"))
    assert isinstance(image, GeneratedImage) and same(bare, image)
    assert image.verdict.outcome == outcome
    entry = entry_of(image)
    assert (entry["fired"], entry["action"], entry["position"]) == (True, action, 4)


def test_other_rows_of_the_batch_are_not_changed(images: RunningImages) -> None:
    alone = [
        outcomes(images, request(seed=3, steps=9))[0],
        outcomes(images, request("b", steps=4))[0],
    ]
    blocked, longer, beside, replaced = outcomes(
        images,
        request(SHOWN, "refine-output"),
        request(seed=3, steps=9),
        request("b", policy="refine-output"),
        request(SHOWN, "replace-output", steps=4),
    )
    assert isinstance(blocked, ContentBlocked) and isinstance(replaced, GeneratedImage)
    assert same(longer, alone[0]) and same(beside, alone[1])
    assert len(images.verdicts) == 6


def test_an_image_of_a_refined_prompt_can_be_blocked(
    images: RunningImages,
) -> None:
    both = f"a {CONCEPT}{PAINTED}"
    (blocked,) = outcomes(images, request(both, "refine-knife-output"))
    assert isinstance(blocked, ContentBlocked) and "in the image" in blocked.message
    assert entry_of(blocked, "knife")["action"] == "refine"
    assert entry_of(blocked)["action"] == "block" and blocked.verdict.outcome == "blocked"


def test_a_blocked_prompt_generates_no_image_to_inspect(images: RunningImages) -> None:
    (blocked,) = outcomes(images, request(f"a {STUBBORN}{PAINTED}", "refine-knife-output"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    assert images.engine.steps == 0
    assert entry_of(blocked)["score"] is None and entry_of(blocked, "knife")["position"] == 0


def test_a_replacement_has_the_seed_of_the_first_image(images: RunningImages) -> None:
    banana, replaced = outcomes(
        images, request("a banana", seed=11), request(SHOWN, "replace-output", seed=11)
    )
    assert isinstance(replaced, GeneratedImage) and same(replaced, banana)
    assert images.engine.started == ["a banana", SHOWN, "a banana"]
    # the entry of the first image, not of the replacement
    entry = entry_of(replaced)
    assert (entry["action"], entry["fired"], entry["position"]) == ("replace", True, 4)
    assert isinstance(entry["score"], float) and entry["score"] > 5
    assert replaced.verdict.outcome == "refined" and images.engine.steps == 8
    assert len(images.verdicts) == 1 + 1


@pytest.mark.parametrize("prompt", [SHOWN, f"a {STUBBORN}"])
def test_a_replacement_of_the_same_concept_is_blocked(images: RunningImages, prompt: str) -> None:
    """Whether the first prompt was replaced for its image or for its words."""
    (blocked,) = outcomes(images, request(prompt, "repaint-knife-output"))
    assert isinstance(blocked, ContentBlocked) and "in the image" in blocked.message
    assert images.engine.started == [prompt, SHOWN]
    assert (entry_of(blocked)["action"], entry_of(blocked)["position"]) == ("block", 4)
    assert [verdict.outcome for verdict in images.verdicts] == ["blocked"]


def test_a_replacement_prompt_that_is_refused_is_blocked(images: RunningImages) -> None:
    (blocked,) = outcomes(images, request(SHOWN, "relapse-knife-output"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    assert images.engine.started == [SHOWN, f"an {STUBBORN}"] and images.engine.steps == 4
    # the readings of the replacement: those of the first image would name the wrong guard
    assert entry_of(blocked, "knife")["action"] == "block" and entry_of(blocked)["score"] is None


def test_the_image_of_a_replaced_prompt_is_inspected(images: RunningImages) -> None:
    banana, replaced = outcomes(
        images, request("a banana"), request(f"a {STUBBORN}", "replace-knife-output")
    )
    assert isinstance(replaced, GeneratedImage) and same(replaced, banana)
    assert entry_of(replaced, "knife")["action"] == "replace"
    assert entry_of(replaced)["fired"] is False and isinstance(entry_of(replaced)["score"], float)


def test_several_rows_are_replaced_at_once_beside_another(images: RunningImages) -> None:
    seeds = range(3)
    longer = outcomes(images, request(steps=12))[0]
    bananas = outcomes(images, *(request("a banana", seed=seed) for seed in seeds))
    active, *replaced = outcomes(
        images, request(steps=12), *(request(SHOWN, "replace-output", seed=seed) for seed in seeds)
    )
    assert same(active, longer)
    assert all(map(same, replaced, bananas))


def test_a_guard_that_meets_nan_in_the_image_fails_closed(images: RunningImages) -> None:
    bare, closed = outcomes(images, request(BLURRED), request(BLURRED, "refine-output"))
    assert isinstance(bare, GeneratedImage)  # the image itself is sound
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert closed.verdict is not None and closed.verdict.outcome == "error"
    assert "NaN" in (closed.verdict.guards[0].error or "")


def test_a_guard_that_meets_nan_in_the_image_fails_open_under_an_open_policy(
    images: RunningImages,
) -> None:
    bare, opened = outcomes(images, request(BLURRED), request(BLURRED, "open-output"))
    assert isinstance(opened, GeneratedImage) and same(opened, bare)
    assert opened.verdict.outcome == "error" and "NaN" in str(entry_of(opened)["error"])


def test_a_prompt_guard_that_met_nan_is_left_out_and_the_image_is_inspected(
    images: RunningImages,
) -> None:
    knife, both = f"a {CONCEPT}", f"a {CONCEPT}{PAINTED}"
    bare, image, blocked = outcomes(
        images,
        request(knife),
        request(knife, "open-blind-output"),
        request(both, "open-blind-output"),
    )
    assert isinstance(image, GeneratedImage) and same(image, bare)
    assert "NaN" in str(entry_of(image, "blind")["error"]) and entry_of(image)["error"] is None
    assert isinstance(blocked, ContentBlocked) and entry_of(blocked)["position"] == 4
    # each of the two is started once more, and no more than that
    assert images.engine.started == [knife, knife, both, knife, both]
    assert images.engine.steps == 4


def test_an_embedding_of_nan_is_an_engine_error_under_any_policy(images: RunningImages) -> None:
    (lost,) = outcomes(images, request(f"a {NAN}", "open-output"))
    assert isinstance(lost, EngineFailed) and images.engine.steps == 0


def test_a_disconnect_during_the_replacement_ends_its_row_alone(
    images: RunningImages,
) -> None:
    async def disconnect() -> None:
        images.engine.pace_s = 0.005
        cancelled, other = images.service.submit(
            [request(SHOWN, "replace-output", steps=60), request("b", steps=150)]
        )
        await until(lambda: images.engine.started.count("a banana") == 1)
        await cancelled.aclose()
        await until(lambda: images.engine.rows == 1)
        assert not other.ended and images.engine.steps < 120
        assert isinstance(await outcome(other), GeneratedImage)

    run(disconnect)
    assert [v.request_id for v in images.verdicts] == [f"replace-output:{SHOWN}", "none:b"]
    # what had been read by then is on record
    assert images.verdicts[0].guards[0].fired and len(images.audit()) == 2


def test_readings_before_a_disconnect_are_recorded(
    images: RunningImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = ImageReading(9.0, 0.5, True, steps=2, position=3, area=0.25, peak=4.0)
    monkeypatch.setattr(images.engine, "readings", lambda _row: {"output": reading})

    async def disconnect() -> None:
        images.engine.pace_s = 0.005
        (cancelled,) = images.service.submit([request(policy="refine-output", steps=60)])
        await until(lambda: images.engine.steps > 3)
        await cancelled.aclose()
        await until(lambda: images.engine.rows == 0)

    run(disconnect)
    (verdict,) = images.verdicts
    assert verdict.guards[0].fired and verdict.guards[0].score == 9.0
    assert images.audit()[0]["guards"][0]["position"] == 3


def test_a_full_batch_replaces_in_place_while_others_wait(images: RunningImages) -> None:
    async def fill() -> None:
        rows = images.service.submit(
            [request(SHOWN, "replace-output", seed=seed) for seed in range(CAPACITY + QUEUE)]
        )
        ends = await asyncio.gather(*map(outcome, rows))
        assert all(isinstance(end, GeneratedImage) for end in ends)

    run(fill)
    assert len(images.verdicts) == CAPACITY + QUEUE
    assert images.engine.started.count("a banana") == CAPACITY + QUEUE
