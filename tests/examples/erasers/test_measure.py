"""The figures of a guard are those of a run in which every test prompt is asked under it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.erasers.measure import TOKENS, Measurement, _bank
from guard.artifact import Artifact
from guard.data.prompts import ForgetPrompt, RetainPrompt
from guard.fitting.gated.imported import LanguageImport, import_overlay
from guard.fitting.gated.token_gate import TokenGate
from guard.models.chat import TransformersChat
from guard.reporting.progress import Lines
from steering.hidden.rows import RowGuard
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer
from tests.steering.adapters import save_adapter
from tests.steering.tiny import WIDTH, tiny_model

FORGET = [ForgetPrompt(prompt=f"w{i} w{3 * i} w9", pattern="w1") for i in range(10, 18)]
FAR = [RetainPrompt(prompt=f"w{i} w{2 * i}", kind="far") for i in range(20, 28)]
NEAR = [RetainPrompt(prompt=f"w{i} w5 w{2 * i}", kind="near") for i in range(30, 36)]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> TransformersChat:
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(folder)
    tiny_model().save_pretrained(folder)
    return TransformersChat.load(str(folder), device="cpu")


def guard_of(chat: TransformersChat, folder: Path) -> Artifact:
    """An overlay whose gate fires on about a half of the prompts."""
    gates = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(2))
    probe = TokenGate((1,), gates, 0.0, 2)
    held_out = probe.held_out(chat, _as_validation(), Lines().begin)
    middle = sorted(row.score for row in held_out.prompts)[9:12]
    # between two scores, which are those of states in half precision
    gate = TokenGate((1,), gates, (middle[0] + middle[1]) / 2, 2)
    source = save_adapter(folder / "lora", chat.model, size=0.2)
    request = LanguageImport(source)
    return import_overlay(chat, request, gate, [], concept="topic/t", progress=Lines().begin)


def _as_validation() -> list[ForgetPrompt]:
    texts = [row.prompt for row in (*FORGET, *FAR, *NEAR)]
    return [ForgetPrompt(prompt=text, pattern="w", split="validation") for text in texts]


def test_figures_are_those_of_all_prompts_asked(chat: TransformersChat, tmp_path: Path) -> None:
    guard = guard_of(chat, tmp_path)
    run = Measurement(chat, FORGET, FAR, NEAR, Lines().begin, {}, every=1)
    fired = run.fired(guard)
    figures = run.figures("lora", [guard], fired, published=True)
    texts = [row.prompt for row in (*FORGET, *FAR, *NEAR)]

    def asked(threshold: float | None) -> dict[str, tuple[str, bool]]:
        guards = [] if threshold is None else [RowGuard("g0", threshold, 1.0)]
        bank = None if threshold is None else _bank([guard])
        replies = chat.answer(
            texts,
            max_tokens=TOKENS,
            what="all",
            progress=Lines().begin,
            bank=bank,
            guards=guards,
        )
        return {t: (reply.text, reply.fired) for t, reply in zip(texts, replies, strict=True)}

    bare = asked(None)
    threshold = float(guard.meta.settings["threshold"])  # type: ignore[arg-type]
    for name, answers in (("gated", asked(threshold)), ("published", asked(-1e9))):
        if name == "gated":
            assert {text for text, (_, hit) in answers.items() if hit} == fired
        leaks = sum(row.leaks(answers[row.prompt][0]) for row in FORGET)
        assert figures[name]["leaks"] == [leaks, len(FORGET)]
        for kind, rows in (("far", FAR), ("near", NEAR)):
            same = sum(answers[row.prompt][0] == bare[row.prompt][0] for row in rows)
            assert figures[name][f"{kind} identical"] == [same, len(rows)]
    # else all of this shows nothing
    assert 2 < len(fired) < len(texts) - 2
    assert figures["gated"] != figures["published"]


def test_an_eraser_of_an_earlier_task_acts_beside_the_guard(
    chat: TransformersChat, tmp_path: Path
) -> None:
    guard = guard_of(chat, tmp_path)
    run = Measurement(chat, FORGET, FAR, NEAR, Lines().begin, {}, every=1)
    texts = [row.prompt for row in FAR]
    twice = Artifact(
        guard.meta.model_copy(update={"settings": guard.meta.settings | {"strength": 2.0}}),
        guard.tensors,
    )
    once, both = run.answers(texts, "once", [guard]), run.answers(texts, "both", [guard, guard])
    assert both == run.answers(texts, "twice", [twice]) != once
