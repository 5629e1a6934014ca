"""Streamers and threads: a reader never waits for ever, and no thread runs unguarded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer

import guard
from guard.errors import ContentBlocked, GuardError, GuardFailed
from tests.guard.attach.language import language_config
from tests.steering.tiny import prompt, tiny_model

PATIENCE_S = 30.0
RECHECK = 36.0


class Letters:
    """As much of a tokenizer as a streamer needs."""

    def decode(self, ids: Sequence[int], **_more: Any) -> str:
        return "".join(chr(97 + number % 26) for number in ids)


def _stream(model: Any, streamer: Any, **arguments: Any) -> Any:
    ids = torch.tensor([prompt(9, 1)])
    return model.generate(
        input_ids=ids, streamer=streamer, max_new_tokens=8, do_sample=False, **arguments
    )


def _read(streamer: Any, *calls: Callable[[], Any]) -> tuple[list[str], list[BaseException]]:
    """The pieces of a streamer while other threads run `calls`, and their errors."""
    pieces: list[str] = []
    errors: list[BaseException] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    reader = threading.Thread(target=lambda: pieces.extend(streamer), daemon=True)
    for thread in (reader, *threads):
        thread.start()
    for thread in (reader, *threads):
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread waits for ever"
    return pieces, errors


@pytest.mark.parametrize("at", ["prompt", "answer"])
def test_a_streamer_ends_where_its_generation_is_blocked(tmp_path: Path, at: str) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, recheck=RECHECK, action="block")
    streamer: Any = TextIteratorStreamer(Letters(), skip_prompt=True)  # type: ignore[arg-type]
    policy = "loud" if at == "prompt" else "silent"
    with guard.attached(model, policy, config=config):
        pieces, errors = _read(streamer, lambda: _stream(model, streamer))
    assert [type(error) for error in errors] == [ContentBlocked]
    # letters without a space are held back as a word: it must not leave with the end
    assert "".join(pieces) == ""


def test_a_streamer_ends_where_a_call_is_refused_or_fails(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    for arguments, expected in (({"num_beams": 2}, GuardFailed), ({"nothing": 1}, ValueError)):
        streamer: Any = TextIteratorStreamer(Letters())  # type: ignore[arg-type]
        with guard.attached(model, "silent", config=config):

            def call(streamer: Any = streamer, more: Any = arguments) -> Any:
                return _stream(model, streamer, **more)

            _, errors = _read(streamer, call)
        assert [type(error) for error in errors] == [expected]


def test_an_asynchronous_reader_is_not_left_waiting(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, action="block")

    async def read() -> None:
        streamer: Any = AsyncTextIteratorStreamer(Letters())  # type: ignore[arg-type]
        with guard.attached(model, "loud", config=config):
            call = asyncio.create_task(asyncio.to_thread(_stream, model, streamer))
            async for _ in streamer:
                pass
            with pytest.raises(ContentBlocked):
                await call

    asyncio.run(asyncio.wait_for(read(), PATIENCE_S))


def test_a_printing_streamer_ends_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, action="block")
    streamer: Any = TextStreamer(Letters(), skip_prompt=True)  # type: ignore[arg-type]
    with guard.attached(model, "loud", config=config), pytest.raises(ContentBlocked):
        _stream(model, streamer)
    assert capsys.readouterr().out == "\n"


def test_what_passes_is_streamed_as_without_guards(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    bare: Any = TextIteratorStreamer(Letters(), skip_prompt=True)  # type: ignore[arg-type]
    expected = _read(bare, lambda: _stream(model, bare))
    streamer: Any = TextIteratorStreamer(Letters(), skip_prompt=True)  # type: ignore[arg-type]
    with guard.attached(model, "silent", config=config) as handle:
        assert _read(streamer, lambda: _stream(model, streamer)) == expected
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"]


class Waiting:
    """A streamer that waits at its second token until it is let go on."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()
        self.count = 0

    def put(self, _tokens: Any) -> None:
        self.count += 1
        if self.count == 2:
            self.reached.set()
            assert self.goes_on.wait(PATIENCE_S)

    def end(self) -> None:
        self.count = -1


def _in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def test_a_generation_that_outlives_the_context_ends_in_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    streamer = Waiting()
    context = guard.attached(model, "loud", config=config)
    context.__enter__()
    thread, errors = _in_thread(lambda: _stream(model, streamer))
    assert streamer.reached.wait(PATIENCE_S)
    with pytest.raises(GuardFailed, match="wait for it inside"):
        context.__exit__(None, None, None)
    streamer.goes_on.set()
    thread.join(PATIENCE_S)
    assert [type(error) for error in errors] == [GuardFailed]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert "generate" not in vars(model)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    _stream(model, None)  # the model is as before


def test_two_generations_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    streamer = Waiting()
    with guard.attached(model, "loud", config=config) as handle:
        expected = _stream(model, None).tolist()
        said: list[Any] = []
        thread, errors = _in_thread(lambda: said.append(_stream(model, streamer).tolist()))
        assert streamer.reached.wait(PATIENCE_S)
        for call in (
            lambda: _stream(model, None),
            lambda: model(torch.tensor([prompt(4, 2)])),
        ):
            with pytest.raises(GuardError, match="at the same time"):
                call()
        streamer.goes_on.set()
        thread.join(PATIENCE_S)
        assert not errors
        assert said == [expected]
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered"]
