"""Guards on the rows of a text service: silence, actions, blocked answers, NaN."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import load_config
from guard.errors import ContentBlocked, GuardFailed
from tests.server.running_service import run
from tests.server.services.text_driver import Answer, answers, request
from tests.server.tiny_text_service import NAN_LETTER, RunningText, TinyTextModel


def test_silent_rows_are_identical_to_bare_ones_in_the_same_batch(shared: RunningText) -> None:
    policies = ("none", "steer-never", "steer-always", "block-never", "observe-always", "none")
    bare, silent, steered, unblocked, observed, _ = answers(
        shared, *(request(shared, policy) for policy in policies)
    )
    assert silent.content == unblocked.content == observed.content == bare.content
    assert len(bare.tokens) == 16 and bare.text
    assert steered.text != bare.text


def test_a_row_does_not_depend_on_the_guards_of_its_neighbours(shared: RunningText) -> None:
    def beside(policies: list[str]) -> list[Answer]:
        texts = ("tell me more", "b", "a longer one than the others are")
        others = [
            request(shared, policy, text) for policy, text in zip(policies, texts, strict=True)
        ]
        same = [request(shared, "none", "mine"), request(shared, "steer-always", "mine")]
        return answers(shared, same[0], *others, same[1])

    unguarded = beside(["none", "none", "none"])
    guarded = beside(["steer-always", "block-always", "steer-late"])
    assert (
        guarded[0].content == unguarded[0].content and guarded[-1].content == unguarded[-1].content
    )
    assert guarded[1].text != unguarded[1].text


def test_a_guard_that_blocks_the_prompt_gives_no_event_before_its_error(
    shared: RunningText,
) -> None:
    blocked, other = answers(shared, request(shared, "block-always"), request(shared))
    assert isinstance(blocked.end, ContentBlocked)
    assert blocked.content == ("", [])
    assert blocked.end.verdict.outcome == "blocked"
    assert blocked.end.verdict.guards[0].position == 0
    assert other.finished.reason == "length"


def test_a_guard_that_blocks_an_answer_cuts_it_before_the_token_it_fired_on(
    shared: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    bare, blocked, steered = answers(
        shared,
        *(
            request(shared, policy, late.prompt)
            for policy in ("none", "block-late", "straight-late")
        ),
    )
    assert blocked.finished.reason == "content_filter"
    (guard,) = blocked.finished.verdict.guards
    assert (guard.fired, guard.position, guard.action) == (True, late.position, "block")
    assert blocked.tokens == bare.tokens[: late.position - 1]
    assert blocked.text == "".join(token.text for token in blocked.tokens)
    assert blocked.finished.completion_tokens == late.position - 1
    # the steering of the same guard begins where it fires, not before
    assert steered.tokens[: late.position] == bare.tokens[: late.position]
    assert steered.text != bare.text


def test_a_guard_in_shadow_blocks_nothing(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    config = load_config(tiny_model.write_config(tiny_model.copy(tmp_path)))
    shadowed = [
        guard.model_copy(update={"shadow": guard.name in {"always", "late"}})
        for guard in config.guards
    ]
    policies = {
        **config.policies,
        "both": PolicyConfig(guards=("late", "watchful", "always"), action="block"),
    }
    config = config.model_copy(update={"guards": tuple(shadowed), "policies": policies})
    with tiny_model.serve(tmp_path, config) as running:
        prompt = tiny_model.late.prompt
        bare, *shadows = answers(
            running,
            *(
                request(running, policy, prompt)
                for policy in ("none", "block-always", "steer-always", "block-late", "both")
            ),
        )
    for answer in shadows:
        assert answer.content == bare.content and answer.finished.verdict.outcome == "pass"
    fired = {guard.guard: guard.action for guard in shadows[-1].finished.verdict.guards}
    assert fired == {"late": "observe", "watchful": "none", "always": "observe"}


def test_the_last_token_is_guarded_too(shared: RunningText, tiny_model: TinyTextModel) -> None:
    late = tiny_model.late
    for max_tokens, reason in ((late.position, "content_filter"), (late.position - 1, "length")):
        row = request(shared, "block-late", late.prompt, max_tokens=max_tokens)
        (answer,) = answers(shared, row)
        assert answer.finished.reason == reason
        assert answer.finished.completion_tokens == len(answer.tokens) == late.position - 1


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_delayed_tokens_are_all_sent(shared: RunningText, max_tokens: int) -> None:
    bare, silent = answers(
        shared,
        request(shared, "none", max_tokens=max_tokens),
        request(shared, "block-watchful", max_tokens=max_tokens),
    )
    assert silent.content == bare.content
    assert silent.finished.completion_tokens == bare.finished.completion_tokens == max_tokens
    assert silent.finished.reason == "length"


@pytest.mark.parametrize(
    ("action", "outcome"), [("flag", "flagged"), ("observe", "pass"), ("steer", "steered")]
)
def test_verdicts_name_the_action(shared: RunningText, action: str, outcome: str) -> None:
    (answer,) = answers(shared, request(shared, f"{action}-always"))
    verdict = answer.finished.verdict
    assert verdict.outcome == outcome
    (guard,) = verdict.guards
    assert guard.fired and guard.action == action and guard.position == 0


def test_nan_fails_a_closed_row_lets_an_open_one_through_and_spares_the_others(
    shared: RunningText,
) -> None:
    poisoned = f"a {NAN_LETTER} b"
    bare, closed, opened = answers(
        shared,
        request(shared),
        request(shared, "steer-never", poisoned),
        request(shared, "open-never", poisoned),
    )
    assert isinstance(closed.end, GuardFailed) and closed.content == ("", [])
    assert closed.end.verdict is not None and closed.end.verdict.outcome == "error"
    assert "NaN" in (closed.end.verdict.guards[0].error or "")
    assert opened.finished.reason == "length"
    assert opened.finished.verdict.outcome == "error"
    alike = answers(shared, request(shared), request(shared), request(shared))[0]
    assert bare.text == alike.text
    # rows leave this batch, and some processors' kernels sum in another order then
    logprobs, expected = ([token.logprob for token in row.tokens] for row in (bare, alike))
    assert logprobs == pytest.approx(expected, abs=1e-5)


def test_a_guard_of_another_model_refuses_every_row_with_its_own_verdict(
    shared: RunningText,
) -> None:
    before = len(shared.verdicts)

    async def refused() -> None:
        shared.service.submit([request(shared, "steer-other"), request(shared, "steer-other")])

    with pytest.raises(GuardFailed) as caught:
        run(refused)
    assert caught.value.verdict is not None and caught.value.verdict.outcome == "error"
    assert [verdict.outcome for verdict in shared.verdicts[before:]] == ["error", "error"]
    assert shared.verdicts[before] == caught.value.verdict
    (opened,) = answers(shared, request(shared, "open-other"))
    assert opened.finished.verdict.outcome == "error"
    assert opened.text == answers(shared, request(shared))[0].text
