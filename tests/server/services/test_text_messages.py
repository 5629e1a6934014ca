"""Messages in place of answers, and answers that go back, in a running text service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import load_config
from guard.errors import ContentBlocked
from server.errors import EngineFailed
from server.services.text_rows import TextRow
from tests.server.services.text_driver import Answer, answers, request
from tests.server.tiny_text_service import RunningText, TinyTextModel

MESSAGE = "Not here: ask the library."

POLICIES: dict[str, dict[str, Any]] = {
    "say-always": {"guards": ("always",), "action": "say"},
    "say-late": {"guards": ("late",), "action": "say"},
    "say-watchful": {"guards": ("watchful",), "action": "say"},
    "say-never": {"guards": ("never",), "action": "say"},
    "mixed": {"guards": ("always", "watchful"), "actions": {"always": "flag", "watchful": "block"}},
    "said-and-steered": {"guards": ("late", "watchful"), "actions": {"late": "say"}},
    "said-and-blocked": {"guards": ("always", "other-always"), "action": "say"},
    "back-late": {"guards": ("late",), "rewind": True},
    "back-always": {"guards": ("always",), "rewind": True},
    "back-watchful": {"guards": ("watchful",), "rewind": True},
    "default-late": {"guards": ("late",)},
    "default-always": {"guards": ("always",)},
    "default-watchful": {"guards": ("watchful",)},
    "never-late": {"guards": ("late",), "rewind": False},
}


@pytest.fixture(scope="module")
def saying(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningText]:
    """A service with the policies above; "other-always" is "always" once more, and blocks."""
    folder = tmp_path_factory.mktemp("saying")
    config = load_config(tiny_model.write_config(tiny_model.copy(folder), max_batch=8))
    always = next(guard for guard in config.guards if guard.name == "always")
    twice = always.model_copy(update={"name": "other-always"})
    made = {name: PolicyConfig(message=MESSAGE, **policy) for name, policy in POLICIES.items()}
    made["said-and-blocked"] = made["said-and-blocked"].model_copy(
        update={"actions": {"other-always": "block"}}
    )
    update = {"guards": (*config.guards, twice), "policies": {**config.policies, **made}}
    with tiny_model.serve(folder, config.model_copy(update=update)) as running:
        yield running


def ask(saying: RunningText, *policies: str, text: str = "hello", **options: Any) -> list[Answer]:
    return answers(saying, *(request(saying, policy, text, **options) for policy in policies))


def test_a_message_takes_the_place_of_the_answer_to_a_prompt(saying: RunningText) -> None:
    bare, said, other = ask(saying, "none", "say-always", "none")
    assert (said.text, said.said, said.tokens) == (MESSAGE, MESSAGE, [])
    assert bare.said == other.said == ""
    end = said.finished
    assert (end.reason, end.completion_tokens, end.stop) == ("stop", 0, None)
    assert end.prompt_tokens == bare.finished.prompt_tokens > 0
    assert end.verdict.outcome == "said"
    (guard,) = end.verdict.guards
    assert (guard.action, guard.position, guard.fired) == ("say", 0, True)
    assert other.content == bare.content


def test_a_message_takes_the_place_of_what_follows_the_last_sentence(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    bare, said = ask(saying, "none", "say-late", text=late.prompt)
    assert said.text.endswith(MESSAGE) and said.said.lstrip(" …") == MESSAGE
    before = said.text.removesuffix(MESSAGE).rstrip()
    # nothing of the sentence in which the guard fired has been sent
    assert bare.text.startswith(before) and len(said.tokens) < late.position - 1
    assert (said.finished.reason, said.finished.completion_tokens) == ("stop", len(said.tokens))
    (guard,) = said.finished.verdict.guards
    assert (guard.action, guard.position) == ("say", late.position)


@pytest.mark.parametrize("policy", ["say-watchful", "say-never", "back-watchful"])
@pytest.mark.parametrize("max_tokens", [1, 2, 16, 100])
def test_silent_rows_are_as_bare_ones(saying: RunningText, policy: str, max_tokens: int) -> None:
    bare, silent = ask(saying, "none", policy, max_tokens=max_tokens)
    assert silent.content == bare.content
    assert silent.finished.reason == bare.finished.reason == "length"
    assert silent.finished.completion_tokens == bare.finished.completion_tokens == max_tokens


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 2, 16, 100])
def test_silent_rows_are_bare_whether_they_are_streamed_or_not(
    saying: RunningText, streamed: bool, max_tokens: int
) -> None:
    options = {"max_tokens": max_tokens, "streamed": streamed}
    bare, silent = ask(saying, "none", "default-watchful", **options)
    assert silent.content == bare.content
    assert silent.finished.reason == bare.finished.reason == "length"
    assert silent.finished.completion_tokens == bare.finished.completion_tokens == max_tokens


def test_silent_rows_end_at_stop_strings(saying: RunningText) -> None:
    (bare,) = ask(saying, "none", max_tokens=12)
    stop = (bare.text[5:7],)
    stopped, silent = ask(saying, "none", "back-watchful", max_tokens=12, stop=stop)
    assert silent.content == stopped.content and silent.finished.stop == stopped.finished.stop


def test_a_guard_says_nothing_about_what_stands_behind_a_stop_string(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    (bare,) = ask(saying, "none", text=late.prompt)
    before = "".join(token.text for token in bare.tokens[: late.position - 2])
    stop = (before[-2:],)
    stopped, *held = ask(saying, "none", "say-late", "back-late", text=late.prompt, stop=stop)
    assert stopped.finished.stop == stop[0]
    for answer in held:
        assert answer.content == stopped.content
        assert (answer.finished.reason, answer.finished.stop) == ("stop", stop[0])
        assert answer.finished.verdict.outcome == "pass"


def test_stop_strings_are_found_in_an_answer_that_has_gone_back(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    (back,) = ask(saying, "back-late", text=tiny_model.late.prompt)
    stop = (back.text[-3:],)
    cut = back.text.find(stop[0])
    (stopped,) = ask(saying, "back-late", text=tiny_model.late.prompt, stop=stop)
    assert (stopped.text, stopped.finished.stop) == (back.text[:cut], stop[0])


@pytest.mark.parametrize("policy", ["say-always", "back-late", "back-watchful"])
def test_an_error_in_the_text_of_one_row_fails_that_row_alone(
    saying: RunningText,
    tiny_model: TinyTextModel,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    (bare,) = ask(saying, "none", text=tiny_model.late.prompt)

    def breaks(row: TextRow, *_rest: object) -> None:
        raise ValueError("no text")

    own = {"say-always": "say", "back-late": "go_back", "back-watchful": "_hold"}[policy]
    monkeypatch.setattr(TextRow, own, breaks)
    broken, other = ask(saying, policy, "none", text=tiny_model.late.prompt)
    assert isinstance(broken.end, EngineFailed) and other.text == bare.text


def test_guards_of_one_policy_have_actions_of_their_own(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    bare, mixed = ask(saying, "none", "mixed")
    assert mixed.content == bare.content and mixed.finished.verdict.outcome == "flagged"
    (both,) = ask(saying, "said-and-steered", text=tiny_model.late.prompt)
    assert both.text.endswith(MESSAGE)
    assert [guard.action for guard in both.finished.verdict.guards] == ["say", "none"]


def test_a_block_outranks_a_message(saying: RunningText) -> None:
    (answer,) = ask(saying, "said-and-blocked")
    assert isinstance(answer.end, ContentBlocked) and answer.content == ("", [])
    actions = {guard.guard: guard.action for guard in answer.end.verdict.guards}
    assert actions == {"always": "say", "other-always": "block"}
    assert answer.end.verdict.outcome == "blocked"


def test_an_answer_goes_back_before_its_client_has_seen_the_sentence(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    bare, back, steered = ask(saying, "none", "back-late", "back-always", text=late.prompt)
    (guard,) = back.finished.verdict.guards
    assert guard.position == late.position and guard.steps >= 1
    assert back.text != bare.text
    # without a sentence before, it goes on as if it had been steered from the prompt on
    if guard.steps == 1 and guard.action == "steer":
        assert back.text == steered.text
    else:
        assert back.text.endswith(MESSAGE) and guard.action == "say"
        assert back.said.lstrip(" …") == MESSAGE


def test_whole_answers_go_back_unless_their_policy_says_never(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    text = tiny_model.late.prompt
    back, default, never = ask(saying, "back-late", "default-late", "never-late", text=text)
    assert default.content == back.content != never.content
    assert [guard.steps for guard in never.finished.verdict.guards] == [0]


def test_a_stream_ends_with_the_message_where_its_client_has_read_the_sentence(
    saying: RunningText, tiny_model: TinyTextModel
) -> None:
    late = tiny_model.late
    bare, *streams = ask(saying, "none", "default-late", "back-late", text=late.prompt)
    (stream,) = ask(saying, "default-late", text=late.prompt, streamed=True)
    (guard,) = stream.finished.verdict.guards
    assert (guard.position, guard.action, guard.steps) == (late.position, "say", 1)
    assert stream.said == f"… {MESSAGE}" and bare.text.startswith(
        stream.text.removesuffix(stream.said)
    )
    # all tokens before that on which the guard has fired
    assert len(stream.tokens) == stream.finished.completion_tokens == late.position - 1
    assert streams[0].content == streams[1].content != stream.content


def test_streams_that_are_steered_from_their_prompt_on_are_those_of_whole_answers(
    saying: RunningText,
) -> None:
    (whole,) = ask(saying, "default-always", max_tokens=40)
    (stream,) = ask(saying, "default-always", max_tokens=40, streamed=True)
    assert stream.content == whole.content
    assert stream.finished.verdict.outcome == whole.finished.verdict.outcome == "steered"


def test_no_guard_in_shadow_says_anything(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    config = load_config(tiny_model.write_config(tiny_model.copy(tmp_path)))
    guards = [g.model_copy(update={"shadow": g.name in {"always", "late"}}) for g in config.guards]
    policies = {
        "say": PolicyConfig(guards=("always", "late"), action="say", message=MESSAGE),
        "back": PolicyConfig(guards=("always", "late"), rewind=True),
    }
    update = {"guards": tuple(guards), "policies": config.policies | policies}
    with tiny_model.serve(tmp_path, config.model_copy(update=update)) as running:
        bare, *shadows = ask(running, "none", "say", "back", text=tiny_model.late.prompt)
    for answer in shadows:
        assert answer.content == bare.content and answer.finished.verdict.outcome == "pass"
        assert {guard.action for guard in answer.finished.verdict.guards} == {"observe"}
