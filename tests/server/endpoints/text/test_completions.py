from __future__ import annotations

from typing import Any

import pytest

from tests.server.live_server import LiveServer


def complete(live: LiveServer, prompt: Any, **options: Any) -> Any:
    return live.client().completions.create(model="fake", prompt=prompt, **options)


def test_answer_has_openais_shape_and_the_verdict(live: LiveServer) -> None:
    answer = complete(live, "hi")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "Hello there!"
    assert answer.choices[0].logprobs is None
    assert answer.guard["outcome"] == "pass"
    assert answer.choices[0].guard == answer.guard
    assert live.service.submitted[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
def test_all_four_kinds_of_prompt(live: LiveServer, prompt: Any, rows: list[bytes]) -> None:
    answer = complete(live, prompt)
    assert [bytes(request.prompt.tokens) for request in live.service.submitted] == rows
    assert [choice.index for choice in answer.choices] == list(range(len(rows)))


def test_choices_are_ordered_by_prompt(live: LiveServer) -> None:
    answer = complete(live, ["a", "bcd"], n=2)
    assert [bytes(r.prompt.tokens) for r in live.service.submitted] == [b"a", b"a", b"bcd", b"bcd"]
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 12


def test_logprobs_hold_offsets_and_the_chosen_token(live: LiveServer) -> None:
    logprobs = complete(live, "a", logprobs=2).choices[0].logprobs
    assert logprobs.tokens == ["Hello", " there", "!"]
    assert logprobs.text_offset == [0, 5, 11]
    assert logprobs.top_logprobs[1] == {" there": -0.5, "\ufffd": -2.0}
    assert complete(live, "a", logprobs=0).choices[0].logprobs.top_logprobs[0] == {"Hello": -0.5}


def test_stream_has_the_text_then_the_verdict(live: LiveServer) -> None:
    options = {"include_usage": True}
    chunks = list(complete(live, ["x", "y"], stream=True, stream_options=options, logprobs=0))
    texts = {0: "", 1: ""}
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            offsets[choice.index] += choice.logprobs.text_offset
        assert chunk.usage is None
        assert ("guard" in chunk.model_extra) is (choice.finish_reason is not None)
    assert texts == {0: "Hello there!", 1: "Hello there!"}
    assert offsets == {0: [0, 5, 11], 1: [0, 5, 11]}
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 8


@pytest.mark.parametrize(
    "prompt",
    [
        None, "", [], [""], [[]], [[1], []], ["a", 1], [1, "a"], [True], [-1], [2**31], [1.0],
        [["a"]], {"a": 1}, 5, [[[1]]],
    ],
)  # fmt: skip
def test_other_prompts_are_refused_by_name(live: LiveServer, prompt: Any) -> None:
    response = live.post("/v1/completions", json={"model": "fake", "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_more_rows_than_the_queue_limit_are_refused_before_they_are_encoded(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(_text: str) -> Any:
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr(live.service, "encode", encode)
    response = live.post("/v1/completions", json={"model": "fake", "prompt": ["a"] * 33, "n": 2})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"
    # so many that they are validated beside the event loop
    response = live.post("/v1/completions", json={"model": "fake", "prompt": [[1]] * 5000})
    assert response.status_code == 400
