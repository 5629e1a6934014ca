"""The batching service over a real engine: admission, ends of every kind, and the invariants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.errors import (
    ContentBlocked,
    ContextExceeded,
    GuardError,
    GuardFailed,
    PolicyUnfit,
    RequestError,
    ServiceStopped,
    TooManyRequests,
    UnknownPolicy,
)
from server.errors import EngineFailed
from server.services.interface import (
    FinishedText,
    RowEvents,
    SamplingParams,
    TextRowRequest,
    TokenLogprob,
)
from server.services.text_rows import TokenText
from steering.prompt import Media, Prompt
from tests.server.stand import NAN_LETTER, Stand, Workshop

CAPACITY, QUEUE = 4, 3


@pytest.fixture
def stand(workshop: Workshop, tmp_path: Path) -> Iterator[Stand]:
    with workshop.stand(tmp_path, max_batch=CAPACITY, queue_limit=QUEUE) as stand:
        yield stand


@pytest.fixture(scope="module")
def wide(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One for all tests that leave it as they found it."""
    with workshop.stand(tmp_path_factory.mktemp("wide"), max_batch=8) as stand:
        yield stand


def ask(stand: Stand, policy: str = "none", text: str = "hello", **more: Any) -> TextRowRequest:
    sampling = {"max_tokens": 16, "temperature": 0.0, "top_logprobs": 3} | more
    return TextRowRequest(
        request_id=f"{policy}:{text[:20]}",
        prompt=stand.service.encode_chat([{"role": "user", "content": text}]),
        policy=policy,
        sampling=SamplingParams(**sampling),
        tenant="acme",
    )


@dataclass
class Answer:
    text: str
    tokens: list[TokenLogprob]
    end: FinishedText | GuardError

    @property
    def said(self) -> tuple[str, list[TokenLogprob]]:
        return self.text, self.tokens

    @property
    def finished(self) -> FinishedText:
        assert isinstance(self.end, FinishedText)
        return self.end


async def read(events: RowEvents) -> Answer:
    answer = Answer("", [], GuardError("it never ended"))
    try:
        async for event in events:
            if isinstance(event, FinishedText):
                answer.end = event
            else:
                answer.text += event.text
                answer.tokens += event.tokens
    except GuardError as error:
        answer.end = error
    return answer


async def batch(stand: Stand, requests: list[TextRowRequest]) -> list[Answer]:
    """The answers of requests that run as one batch from the first token on."""
    return await asyncio.gather(*map(read, stand.service.submit(requests)))


def together(stand: Stand, *requests: TextRowRequest) -> list[Answer]:
    return run(lambda: batch(stand, list(requests)))


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(limited())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


# -- what guards do to rows ---------------------------------------------------------------------


def test_silent_rows_are_identical_to_bare_ones_in_the_same_batch(wide: Stand) -> None:
    policies = ("none", "steer-never", "steer-always", "block-never", "observe-always", "none")
    bare, silent, steered, unblocked, observed, _ = together(
        wide, *(ask(wide, policy) for policy in policies)
    )
    assert silent.said == unblocked.said == observed.said == bare.said
    assert len(bare.tokens) == 16 and bare.text
    assert steered.text != bare.text


def test_a_row_does_not_depend_on_the_guards_of_its_neighbours(wide: Stand) -> None:
    def answers(neighbours: list[str]) -> list[Answer]:
        texts = ("tell me more", "b", "a longer one than the others are")
        others = [ask(wide, each, text) for each, text in zip(neighbours, texts, strict=True)]
        mine = [ask(wide, "none", "mine"), ask(wide, "steer-always", "mine")]
        return together(wide, mine[0], *others, mine[1])

    quiet = answers(["none", "none", "none"])
    loud = answers(["steer-always", "block-always", "steer-late"])
    assert loud[0].said == quiet[0].said and loud[-1].said == quiet[-1].said
    assert loud[1].text != quiet[1].text


def test_a_guard_that_blocks_the_prompt_gives_no_event_before_its_error(wide: Stand) -> None:
    blocked, other = together(wide, ask(wide, "block-always"), ask(wide))
    assert isinstance(blocked.end, ContentBlocked)
    assert blocked.said == ("", [])
    assert blocked.end.verdict.outcome == "blocked"
    assert blocked.end.verdict.guards[0].position == 0
    assert other.finished.reason == "length"


def test_a_guard_that_blocks_an_answer_cuts_it_before_the_token_it_fired_on(
    wide: Stand, workshop: Workshop
) -> None:
    late = workshop.late
    bare, blocked, steered = together(
        wide,
        *(ask(wide, policy, late.prompt) for policy in ("none", "block-late", "steer-late")),
    )
    assert blocked.finished.reason == "content_filter"
    (guard,) = blocked.finished.verdict.guards
    assert (guard.fired, guard.position, guard.action) == (True, late.at, "block")
    assert blocked.tokens == bare.tokens[: late.at - 1]
    assert blocked.text == "".join(token.text for token in blocked.tokens)
    assert blocked.finished.completion_tokens == late.at - 1
    # the steering of the same guard begins where it fires, not before
    assert steered.tokens[: late.at] == bare.tokens[: late.at]
    assert steered.text != bare.text


def test_the_last_token_is_looked_at_too(wide: Stand, workshop: Workshop) -> None:
    late = workshop.late
    for max_tokens, reason in ((late.at, "content_filter"), (late.at - 1, "length")):
        request = ask(wide, "block-late", late.prompt, max_tokens=max_tokens)
        (answer,) = together(wide, request)
        assert answer.finished.reason == reason
        assert answer.finished.completion_tokens == len(answer.tokens) == late.at - 1


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_tokens_that_wait_for_their_guard_are_all_sent_in_the_end(
    wide: Stand, max_tokens: int
) -> None:
    bare, silent = together(
        wide,
        ask(wide, "none", max_tokens=max_tokens),
        ask(wide, "block-watchful", max_tokens=max_tokens),
    )
    assert silent.said == bare.said
    assert silent.finished.completion_tokens == bare.finished.completion_tokens == max_tokens
    assert silent.finished.reason == "length"


@pytest.mark.parametrize(
    ("action", "outcome"), [("flag", "flagged"), ("observe", "pass"), ("steer", "steered")]
)
def test_what_an_action_is_called(wide: Stand, action: str, outcome: str) -> None:
    (answer,) = together(wide, ask(wide, f"{action}-always"))
    verdict = answer.finished.verdict
    assert verdict.outcome == outcome
    (guard,) = verdict.guards
    assert guard.fired and guard.action == action and guard.position == 0


def test_nan_fails_a_closed_row_lets_an_open_one_through_and_spares_the_others(
    wide: Stand,
) -> None:
    spoilt = f"a {NAN_LETTER} b"
    bare, closed, opened = together(
        wide,
        ask(wide),
        ask(wide, "steer-never", spoilt),
        ask(wide, "open-never", spoilt),
    )
    assert isinstance(closed.end, GuardFailed) and closed.said == ("", [])
    assert closed.end.verdict is not None and closed.end.verdict.outcome == "error"
    assert "NaN" in (closed.end.verdict.guards[0].error or "")
    assert opened.finished.reason == "length"
    assert opened.finished.verdict.outcome == "error"
    alike = together(wide, ask(wide), ask(wide), ask(wide))[0]
    assert bare.text == alike.text
    # rows leave this batch, and some processors' kernels sum in another order then
    own, theirs = ([token.logprob for token in row.tokens] for row in (bare, alike))
    assert own == pytest.approx(theirs, abs=1e-5)


def test_a_guard_of_another_model_refuses_every_row_with_its_own_verdict(wide: Stand) -> None:
    before = len(wide.verdicts)

    async def refused() -> None:
        wide.service.submit([ask(wide, "steer-other"), ask(wide, "steer-other")])

    with pytest.raises(GuardFailed) as caught:
        run(refused)
    assert caught.value.verdict is not None and caught.value.verdict.outcome == "error"
    assert [verdict.outcome for verdict in wide.verdicts[before:]] == ["error", "error"]
    assert wide.verdicts[before] == caught.value.verdict
    (opened,) = together(wide, ask(wide, "open-other"))
    assert opened.finished.verdict.outcome == "error"
    assert opened.text == together(wide, ask(wide))[0].text


# -- admission ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UnknownPolicy, {"policy": "ghost"}),
        (PolicyUnfit, {"policy": "steer-drawn"}),
        (ContextExceeded, {"max_tokens": 250}),
        (ContextExceeded, {"text": "x" * 300}),
    ],
)
def test_requests_that_cannot_run_are_refused_without_a_verdict(
    wide: Stand, error: type[GuardError], fault: dict[str, Any]
) -> None:
    before = len(wide.verdicts)

    async def refused() -> None:
        wide.service.submit([ask(wide), ask(wide, **fault)])

    with pytest.raises(error):
        run(refused)
    assert len(wide.verdicts) == before and wide.service.queued() == 0


def test_token_ids_that_the_model_does_not_have_are_refused(wide: Stand) -> None:
    async def submit(token: int) -> None:
        request = TextRowRequest("r", Prompt((5, token)), "none", SamplingParams(1))
        (events,) = wide.service.submit([request])
        assert isinstance((await read(events)).end, FinishedText)

    size = len(wide.service._encoder.tokenizer)
    run(lambda: submit(size - 1))
    for token in (size, 2**31 - 1):
        with pytest.raises(RequestError) as caught:
            run(lambda token=token: submit(token))
        assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((5, 6), (Media("image", np.zeros((2, 2, 3), np.uint8), 0, 1),)),
        Prompt((5, 6), positions=((0, 1), (0, 0), (0, 0))),
    ],
)
def test_a_prompt_of_more_than_text_is_refused(wide: Stand, prompt: Prompt) -> None:
    before = len(wide.verdicts)

    async def submit() -> None:
        wide.service.submit([replace(ask(wide), prompt=prompt)])

    with pytest.raises(RequestError, match="leave them out") as caught:
        run(submit)
    assert caught.value.param == "prompt" and len(wide.verdicts) == before


def test_messages_that_the_template_refuses_are_a_bad_request(wide: Stand) -> None:
    with pytest.raises(RequestError, match="no system here") as caught:
        wide.service.encode_chat([{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


def test_exactly_the_rows_that_do_not_fit_are_turned_away(stand: Stand) -> None:
    async def overflow() -> None:
        stand.engine.go.clear()
        taken = [*stand.service.submit([ask(stand)])]
        await until(stand.engine.stalled.is_set)  # the first is in the batch, not in the queue
        places = CAPACITY + QUEUE - 1
        taken += [stand.service.submit([ask(stand)])[0] for _ in range(places - 1)]
        with pytest.raises(TooManyRequests) as caught:
            stand.service.submit([ask(stand), ask(stand)])  # one of them would fit: all or none
        assert caught.value.retry_after > 0
        taken += stand.service.submit([ask(stand)])
        with pytest.raises(TooManyRequests):
            stand.service.submit([ask(stand)])
        assert stand.service.queued() == places
        stand.engine.go.set()
        answers = await asyncio.gather(*map(read, taken))
        assert {answer.finished.reason for answer in answers} == {"length"}
        assert stand.service.queued() == 0
        again = stand.service.submit([ask(stand) for _ in range(CAPACITY + QUEUE)])
        await asyncio.gather(*map(read, again))

    run(overflow)
    assert len(stand.verdicts) == 2 * (CAPACITY + QUEUE)


# -- ends ---------------------------------------------------------------------------------------


def test_a_client_that_hangs_up_frees_its_place_at_once(stand: Stand) -> None:
    async def hang_up() -> None:
        stand.engine.go.clear()
        stand.engine.pace_s = 0.01
        (first,) = stand.service.submit([ask(stand, text="first", max_tokens=200)])
        await until(stand.engine.stalled.is_set)
        waiting = stand.service.submit([ask(stand) for _ in range(CAPACITY + QUEUE - 1)])
        await waiting[-1].aclose()  # still in the queue, engine stalled
        assert len(stand.verdicts) == 1
        more = stand.service.submit([ask(stand)])
        with pytest.raises(StopAsyncIteration):
            await waiting[-1].__anext__()
        stand.engine.go.set()
        await first.__anext__()
        await first.aclose()
        await first.aclose()
        for answer in await asyncio.gather(*map(read, [*waiting[:-1], *more])):
            assert answer.finished.completion_tokens == 16
        await until(lambda: stand.engine.rows == 0)

    run(hang_up)
    told = Counter(verdict.request_id for verdict in stand.verdicts)
    assert told == {"none:first": 1, "none:hello": CAPACITY + QUEUE}
    assert len(stand.audit()) == CAPACITY + QUEUE + 1


def test_a_row_that_nobody_reads_is_not_computed_to_its_end(stand: Stand) -> None:
    async def hang_up() -> None:
        stand.engine.pace_s = 0.02  # it must not have ended by itself
        (events,) = stand.service.submit([ask(stand, max_tokens=200)])
        await events.__anext__()
        stand.engine.go.clear()
        await until(stand.engine.stalled.is_set)
        steps = stand.engine.steps
        await events.aclose()
        stand.engine.go.set()
        await until(lambda: stand.engine.rows == 0)
        assert stand.engine.steps == steps and len(stand.verdicts) == 1

    run(hang_up)


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_a_step_that_fails_loses_its_batch_and_nothing_else(stand: Stand, step: str) -> None:
    before = together(stand, ask(stand, "steer-never"))[0].said
    stand.verdicts.clear()

    async def fail() -> None:
        if step == "decode":
            running = stand.service.submit([ask(stand, "steer-never", max_tokens=200)] * 2)
            await running[0].__anext__()
        stand.engine.go.clear()
        stand.engine.stalled.clear()
        if step == "prefill":
            running = stand.service.submit([ask(stand, "steer-never")])
        await until(stand.engine.stalled.is_set)
        waiting = stand.service.submit([ask(stand, "steer-never")] * QUEUE)
        stand.engine.faults.append(RuntimeError("secret of the device"))
        stand.engine.go.set()
        for lost in await asyncio.gather(*map(read, running)):
            assert isinstance(lost.end, EngineFailed)
            assert "secret" not in lost.end.message
            assert lost.end.verdict is not None and lost.end.verdict.outcome == "error"
        for served in await asyncio.gather(*map(read, waiting)):
            assert served.text == before[0]
        assert len(stand.verdicts) == len(running) + len(waiting)

    run(fail)
    assert stand.service.ready()


def test_an_engine_that_cannot_start_again_stops_the_service(stand: Stand) -> None:
    async def die() -> None:
        stand.engine.go.clear()
        (running,) = stand.service.submit([ask(stand)])
        await until(stand.engine.stalled.is_set)
        (waiting,) = stand.service.submit([ask(stand)])
        stand.engine.reset_fault = RuntimeError("the device is gone")
        stand.engine.faults.append(RuntimeError("the device is gone"))
        stand.engine.go.set()
        assert isinstance((await read(running)).end, EngineFailed)
        assert isinstance((await read(waiting)).end, ServiceStopped)
        await until(lambda: not stand.service.ready())
        with pytest.raises(ServiceStopped):
            stand.service.submit([ask(stand)])

    run(die)
    assert [verdict.outcome for verdict in stand.verdicts] == ["error", "error"]


def test_closing_ends_every_row_with_its_verdict_and_leaves_the_model_as_it_was(
    stand: Stand,
) -> None:
    assert stand.engine.hooks() > 0

    async def close() -> None:
        running = stand.service.submit([ask(stand, "steer-never", max_tokens=200)] * CAPACITY)
        await running[0].__anext__()
        stand.engine.stalled.clear()
        stand.engine.go.clear()
        await until(stand.engine.stalled.is_set)
        waiting = stand.service.submit([ask(stand, "steer-never")] * QUEUE)
        asyncio.get_running_loop().run_in_executor(None, stand.engine.go.set)
        stand.service.close()
        stand.service.close()
        for answer in await asyncio.gather(*map(read, [*running, *waiting])):
            assert isinstance(answer.end, ServiceStopped)
            assert answer.end.verdict is not None and answer.end.verdict.outcome == "error"
            assert answer.end.verdict in stand.verdicts
        with pytest.raises(ServiceStopped):
            stand.service.submit([ask(stand)])

    run(close)
    assert not stand.service.ready() and stand.engine.hooks() == 0
    scores = [verdict.guards[0].score for verdict in stand.verdicts]
    assert [score is None for score in scores] == [False] * CAPACITY + [True] * QUEUE
    assert len(stand.audit()) == CAPACITY + QUEUE


def test_a_record_that_cannot_be_kept_does_not_stop_the_engine(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise RuntimeError("nowhere to put it")

    monkeypatch.setattr(stand.service, "_record", full)
    first, second = together(stand, ask(stand), ask(stand, "steer-always"))
    assert first.finished.reason == second.finished.reason == "length"
    assert together(stand, ask(stand))[0].text == first.text


def test_a_fault_in_one_rows_text_does_not_touch_the_others(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = TokenText.push

    def picky(self: TokenText, token: int) -> tuple[str, bool]:
        if self._stop == ("odd",):
            raise ValueError("this tokenizer cannot")
        return push(self, token)

    monkeypatch.setattr(TokenText, "push", picky)
    lost, kept = together(stand, ask(stand, stop=("odd",)), ask(stand))
    assert isinstance(lost.end, EngineFailed)
    assert kept.finished.completion_tokens == 16


def test_a_loop_that_is_gone_does_not_stop_the_engine(stand: Stand) -> None:
    async def leave() -> None:
        stand.service.submit([ask(stand, max_tokens=100)])

    run(leave)
    assert together(stand, ask(stand))[0].finished.completion_tokens == 16
    # the row that nobody reads any more ends by itself, with its verdict
    run(lambda: until(lambda: len(stand.verdicts) == 2))


# -- sampling -----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text_in_whatever_company(wide: Stand) -> None:
    def mine() -> TextRowRequest:
        return ask(wide, temperature=1.0, seed=7)

    alone = together(wide, mine())[0].text
    company = together(
        wide, ask(wide, text="other", temperature=1.0), mine(), ask(wide, "flag-never")
    )
    assert company[1].text == alone
    assert together(wide, ask(wide, temperature=1.0, seed=8))[0].text != alone
    unseeded = together(wide, *[ask(wide, temperature=1.5)] * 4)
    assert len({answer.text for answer in unseeded}) > 1


def test_a_stop_string_ends_the_row_before_it(wide: Stand) -> None:
    (whole,) = together(wide, ask(wide))
    stop = whole.text[5:8]
    at = whole.text.index(stop)
    cut, held = together(wide, ask(wide, stop=(stop,)), ask(wide, "block-watchful", stop=(stop,)))
    assert cut.text == held.text == whole.text[:at]
    assert cut.finished.reason == held.finished.reason == "stop"
    assert cut.finished.completion_tokens == held.finished.completion_tokens < 16


def test_the_start_of_a_stop_string_at_the_end_is_sent(wide: Stand) -> None:
    (whole,) = together(wide, ask(wide))
    cut, held = (
        ask(wide, policy, stop=(whole.text[-1] + "\n\n",)) for policy in ("none", "block-watchful")
    )
    for answer in together(wide, cut, held):
        assert answer.text == whole.text
        assert answer.finished.reason == "length"


def test_an_end_token_ends_the_row_and_is_not_told(
    wide: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = together(wide, ask(wide))
    end = whole.tokens[6].token_id
    first = next(i for i, token in enumerate(whole.tokens) if token.token_id == end)
    monkeypatch.setattr(wide.service, "_end_tokens", frozenset({end}))
    for answer in together(wide, ask(wide), ask(wide, "block-watchful")):
        assert [token.token_id for token in answer.tokens] == [
            token.token_id for token in whole.tokens[:first]
        ]
        assert answer.finished.reason == "stop"
        assert answer.finished.completion_tokens == first + 1
