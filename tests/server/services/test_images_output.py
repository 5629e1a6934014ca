"""What becomes of images that a guard finds its concept in once they are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.errors import ContentBlocked, GuardFailed
from server.errors import EngineFailed
from server.services.interface import GeneratedImage
from steering.images.embedding import ImageReading
from tests.guard.toy_images import BLINDING, CONCEPT, NAN, PAINTED, STUBBORN
from tests.server.image_stand import ImageStand, image_stand
from tests.server.services.test_images import (
    CAPACITY,
    QUEUE,
    ask,
    outcome,
    run,
    same,
    together,
    until,
)

SHOWN, BLURRED = f"a {PAINTED}", f"a {BLINDING}"


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[ImageStand]:
    with image_stand(tmp_path, max_batch=CAPACITY, queue_limit=QUEUE) as stand:
        yield stand


def told_of(end: GeneratedImage | ContentBlocked, guard: str = "look") -> dict[str, object]:
    """What the verdict says of one guard."""
    assert end.verdict is not None
    (found,) = [each for each in end.verdict.as_dict()["guards"] if each["guard"] == guard]
    return dict(found)


# -- blocked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["refine", "block", "open"])
def test_a_image_that_shows_it_is_blocked_when_it_is_drawn(stand: ImageStand, action: str) -> None:
    (blocked,) = together(stand, ask(SHOWN, f"{action}-look", steps=5))
    assert isinstance(blocked, ContentBlocked) and blocked.code == "content_policy_violation"
    assert blocked.message == (
        "A guard of this policy finds its concept in the image, and blocks it."
    )
    told = told_of(blocked)
    assert (told["action"], told["fired"], told["position"]) == ("block", True, 5)
    assert blocked.verdict.outcome == "blocked" and stand.engine.steps == 5
    assert [verdict.outcome for verdict in stand.verdicts] == ["blocked"]


def test_nobody_gets_to_see_it(stand: ImageStand, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    images = stand.engine.images

    def counted(rows: list[int]) -> object:
        decoded.extend(rows)
        return images(rows)

    monkeypatch.setattr(stand.engine, "images", counted)
    together(stand, ask(SHOWN, "refine-look"))
    assert decoded == []


def test_a_image_that_does_not_show_it_is_the_bare_one(stand: ImageStand) -> None:
    bare, silent = together(stand, ask(), ask(policy="refine-look"))
    assert same(bare, silent)
    told = told_of(silent)
    assert silent.verdict.outcome == "pass" and isinstance(told["score"], float)
    assert (told["fired"], told["action"], told["position"]) == (False, "none", None)


@pytest.mark.parametrize(("action", "outcome"), [("observe", "pass"), ("flag", "flagged")])
def test_policies_that_only_tell_show_it(stand: ImageStand, action: str, outcome: str) -> None:
    bare, shown = together(stand, ask(SHOWN), ask(SHOWN, f"{action}-look"))
    assert isinstance(shown, GeneratedImage) and same(bare, shown)
    assert shown.verdict.outcome == outcome
    told = told_of(shown)
    assert (told["fired"], told["action"], told["position"]) == (True, action, 4)


def test_others_of_the_batch_go_on_undisturbed(stand: ImageStand) -> None:
    alone = [together(stand, ask(seed=3, steps=9))[0], together(stand, ask("b", steps=4))[0]]
    blocked, longer, beside, replaced = together(
        stand,
        ask(SHOWN, "refine-look"),
        ask(seed=3, steps=9),
        ask("b", policy="refine-look"),
        ask(SHOWN, "replace-look", steps=4),
    )
    assert isinstance(blocked, ContentBlocked) and isinstance(replaced, GeneratedImage)
    assert same(longer, alone[0]) and same(beside, alone[1])
    assert len(stand.verdicts) == 6


def test_a_prompt_that_was_refined_may_show_something_else_all_the_same(
    stand: ImageStand,
) -> None:
    both = f"a {CONCEPT}{PAINTED}"
    (blocked,) = together(stand, ask(both, "refine-knife-look"))
    assert isinstance(blocked, ContentBlocked) and "in the image" in blocked.message
    assert told_of(blocked, "knife")["action"] == "refine"
    assert told_of(blocked)["action"] == "block" and blocked.verdict.outcome == "blocked"


def test_a_prompt_that_is_blocked_is_not_drawn_to_be_looked_at(stand: ImageStand) -> None:
    (blocked,) = together(stand, ask(f"a {STUBBORN}{PAINTED}", "refine-knife-look"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    assert stand.engine.steps == 0
    assert told_of(blocked)["score"] is None and told_of(blocked, "knife")["position"] == 0


# -- replaced -----------------------------------------------------------------------------------


def test_a_replacement_is_drawn_with_the_seed_of_what_it_replaces(stand: ImageStand) -> None:
    banana, replaced = together(
        stand, ask("a banana", seed=11), ask(SHOWN, "replace-look", seed=11)
    )
    assert isinstance(replaced, GeneratedImage) and same(replaced, banana)
    assert stand.engine.started == ["a banana", SHOWN, "a banana"]
    # told is why it was drawn, not what its own image scored
    told = told_of(replaced)
    assert (told["action"], told["fired"], told["position"]) == ("replace", True, 4)
    assert isinstance(told["score"], float) and told["score"] > 5
    assert replaced.verdict.outcome == "refined" and stand.engine.steps == 8
    assert len(stand.verdicts) == 1 + 1


@pytest.mark.parametrize("prompt", [SHOWN, f"a {STUBBORN}"])
def test_a_replacement_that_shows_it_too_is_blocked(stand: ImageStand, prompt: str) -> None:
    """Wherever the first prompt was caught, by its image or by its words."""
    (blocked,) = together(stand, ask(prompt, "repaint-knife-look"))
    assert isinstance(blocked, ContentBlocked) and "in the image" in blocked.message
    assert stand.engine.started == [prompt, SHOWN]
    assert (told_of(blocked)["action"], told_of(blocked)["position"]) == ("block", 4)
    assert [verdict.outcome for verdict in stand.verdicts] == ["blocked"]


def test_a_replacement_whose_words_are_refused_is_blocked(stand: ImageStand) -> None:
    (blocked,) = together(stand, ask(SHOWN, "relapse-knife-look"))
    assert isinstance(blocked, ContentBlocked) and "could not refine" in blocked.message
    assert stand.engine.started == [SHOWN, f"an {STUBBORN}"] and stand.engine.steps == 4
    # its own readings: the first image's would blame the wrong guard
    assert told_of(blocked, "knife")["action"] == "block" and told_of(blocked)["score"] is None


def test_a_replacement_of_words_is_looked_at_and_shown(stand: ImageStand) -> None:
    banana, replaced = together(stand, ask("a banana"), ask(f"a {STUBBORN}", "replace-knife-look"))
    assert isinstance(replaced, GeneratedImage) and same(replaced, banana)
    assert told_of(replaced, "knife")["action"] == "replace"
    assert told_of(replaced)["fired"] is False and isinstance(told_of(replaced)["score"], float)


def test_several_are_replaced_at_once_beside_one_that_goes_on(stand: ImageStand) -> None:
    seeds = range(3)
    longer = together(stand, ask(steps=12))[0]
    bananas = together(stand, *(ask("a banana", seed=seed) for seed in seeds))
    running, *replaced = together(
        stand, ask(steps=12), *(ask(SHOWN, "replace-look", seed=seed) for seed in seeds)
    )
    assert same(running, longer)
    assert all(map(same, replaced, bananas))


# -- what is not a number -----------------------------------------------------------------------


def test_a_guard_that_meets_nan_in_the_image_fails_closed(stand: ImageStand) -> None:
    bare, closed = together(stand, ask(BLURRED), ask(BLURRED, "refine-look"))
    assert isinstance(bare, GeneratedImage)  # the image itself is sound
    assert isinstance(closed, GuardFailed) and closed.code == "guard_failed"
    assert closed.verdict is not None and closed.verdict.outcome == "error"
    assert "NaN" in (closed.verdict.guards[0].error or "")


def test_or_lets_the_image_through_where_the_policy_is_open(stand: ImageStand) -> None:
    bare, opened = together(stand, ask(BLURRED), ask(BLURRED, "open-look"))
    assert isinstance(opened, GeneratedImage) and same(opened, bare)
    assert opened.verdict.outcome == "error" and "NaN" in str(told_of(opened)["error"])


def test_a_guard_of_prompts_that_met_nan_is_left_out_once_and_the_image_looked_at(
    stand: ImageStand,
) -> None:
    knife, both = f"a {CONCEPT}", f"a {CONCEPT}{PAINTED}"
    bare, drawn, blocked = together(
        stand, ask(knife), ask(knife, "open-blind-look"), ask(both, "open-blind-look")
    )
    assert isinstance(drawn, GeneratedImage) and same(drawn, bare)
    assert "NaN" in str(told_of(drawn, "blind")["error"]) and told_of(drawn)["error"] is None
    assert isinstance(blocked, ContentBlocked) and told_of(blocked)["position"] == 4
    # each of the two is started once more, and no more than that
    assert stand.engine.started == [knife, knife, both, knife, both]
    assert stand.engine.steps == 4


def test_an_embedding_of_nan_is_the_engines_error_whoever_looks(stand: ImageStand) -> None:
    (lost,) = together(stand, ask(f"a {NAN}", "open-look"))
    assert isinstance(lost, EngineFailed) and stand.engine.steps == 0


# -- comings and goings -------------------------------------------------------------------------


def test_a_client_that_goes_while_the_replacement_is_drawn_loses_its_row_only(
    stand: ImageStand,
) -> None:
    async def hang_up() -> None:
        stand.engine.pace_s = 0.005
        gone, other = stand.service.submit(
            [ask(SHOWN, "replace-look", steps=60), ask("b", steps=150)]
        )
        await until(lambda: stand.engine.started.count("a banana") == 1)
        await gone.aclose()
        await until(lambda: stand.engine.rows == 1)
        assert not other.ended and stand.engine.steps < 120
        assert isinstance(await outcome(other), GeneratedImage)

    run(hang_up)
    assert [v.request_id for v in stand.verdicts] == [f"replace-look:{SHOWN}", "none:b"]
    # what had been read by then is on record
    assert stand.verdicts[0].guards[0].fired and len(stand.audit()) == 2


def test_what_was_read_on_the_way_is_on_record_when_a_client_goes(
    stand: ImageStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = ImageReading(9.0, 0.5, True, steps=2, position=3, area=0.25, peak=4.0)
    monkeypatch.setattr(stand.engine, "readings", lambda _row: {"look": late})

    async def hang_up() -> None:
        stand.engine.pace_s = 0.005
        (gone,) = stand.service.submit([ask(policy="refine-look", steps=60)])
        await until(lambda: stand.engine.steps > 3)
        await gone.aclose()
        await until(lambda: stand.engine.rows == 0)

    run(hang_up)
    (verdict,) = stand.verdicts
    assert verdict.guards[0].fired and verdict.guards[0].score == 9.0
    assert stand.audit()[0]["guards"][0]["position"] == 3


def test_a_full_batch_replaces_in_place_while_others_wait(stand: ImageStand) -> None:
    async def crowd() -> None:
        rows = stand.service.submit(
            [ask(SHOWN, "replace-look", seed=seed) for seed in range(CAPACITY + QUEUE)]
        )
        ends = await asyncio.gather(*map(outcome, rows))
        assert all(isinstance(end, GeneratedImage) for end in ends)

    run(crowd)
    assert len(stand.verdicts) == CAPACITY + QUEUE
    assert stand.engine.started.count("a banana") == CAPACITY + QUEUE
