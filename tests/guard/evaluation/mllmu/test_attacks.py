"""Attackers: gradients through the guards, images within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from guard.data.benchmarks.questions import Benchmark
from guard.data.benchmarks.released import load_benchmark
from guard.evaluation.mllmu.asking import Asked, asked_questions
from guard.evaluation.mllmu.attacks import (
    EPSILON,
    Attacker,
    attack,
    targets_of,
)
from guard.evaluation.mllmu.contestants import BARE, Contestant, Reply
from guard.models.chat import TransformersChat
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.vision.descent import Bounds
from steering.engines.transformers.vision.pixels import DifferentiablePixels
from steering.engines.transformers.vision.recall import EVADE, Recall
from steering.prompt import Prompt
from tests.guard.data.benchmarks.files import save_mllmu
from tests.guard.evaluation.mllmu.test_contestants import PROGRESS
from tests.guard.evaluation.mllmu.tiny import guarded, steer, tiny_chat


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    return tiny_chat()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    benchmark: Benchmark = load_benchmark(save_mllmu(tmp_path_factory.mktemp("data")), 10)
    return [
        item
        for item in asked_questions(benchmark, parts=["forget"], limit=None)
        if item.question.task == "generation" and item.question.by != "name" and not item.variant
    ]


def _pixels(chat: TransformersChat, item: Asked) -> tuple[DifferentiablePixels, torch.Tensor]:
    assert chat.vision is not None and item.image is not None
    preprocessing = DifferentiablePixels(chat.vision, item.image)
    return preprocessing, preprocessing.own([item.image]).round()


def _recall(
    contestant: Contestant,
    preprocessing: DifferentiablePixels,
    prompt: Prompt,
    answer: Sequence[int],
) -> Recall:
    model, guards = contestant.chat.model, contestant.guards
    return Recall(model, preprocessing, [prompt], [answer], contestant.bank, guards)


def _answer(chat: TransformersChat, text: str = "Town1 Town2") -> list[int]:
    return chat.ids(text)


def test_silent_guards_leave_the_loss_of_the_bare_model(
    chat: TransformersChat, asked: list[Asked]
) -> None:
    preprocessing, pixels = _pixels(chat, asked[0])
    image = pixels[0].to(torch.uint8).numpy()
    prompt, answer = chat.prompt(asked[0].text, [image]), _answer(chat)
    bare = _recall(Contestant(BARE, chat), preprocessing, prompt, answer)
    silent = _recall(guarded(chat, 1e9), preprocessing, prompt, answer)
    expected = -sum(
        float(
            chat.model(
                input_ids=torch.tensor([[*prompt.tokens, *answer[:i]]]),
                **chat.vision.prepare([image]),  # type: ignore[union-attr]
            )
            .logits[0, -1]
            .log_softmax(-1)[answer[i]]
        )
        for i in range(len(answer))
    ) / len(answer)
    assert float(bare(pixels)) == pytest.approx(expected, abs=1e-4)
    assert float(silent(pixels)) == pytest.approx(expected, abs=1e-4)
    bare.close()
    silent.close()


def test_guards_that_fire_act_in_the_loss_as_they_do_in_the_engine(
    chat: TransformersChat, asked: list[Asked]
) -> None:
    item = asked[0]
    preprocessing, pixels = _pixels(chat, item)
    prompt = chat.prompt(item.text, [pixels[0].to(torch.uint8).numpy()])
    contestant = guarded(chat, -1e3)
    assert contestant.bank is not None
    engine = TransformersEngine(chat.model, contestant.bank, capacity=1, vision=chat.vision)
    steps = engine.prefill([RowStart(prompt, contestant.guards, RowSampling(top_logprobs=1))])
    steps += [token for _ in range(3) for token in engine.decode()]
    engine.close()
    expected = -sum(step.logprob or 0.0 for step in steps) / len(steps)
    loss = _recall(contestant, preprocessing, prompt, [step.token for step in steps])
    # the excess of the unchanged image counts EVADE in full
    assert float(loss(pixels)) - EVADE == pytest.approx(expected, abs=1e-4)
    loss.close()


@pytest.mark.parametrize("threshold", [-1e3, 0.0, 1e9])
def test_rows_of_a_batch_are_those_of_each_alone(
    chat: TransformersChat, asked: list[Asked], threshold: float
) -> None:
    chosen = [next(item for item in asked if item.question.by == by) for by in ("portrait", "both")]
    answers = [_answer(chat, "Town1"), _answer(chat, "Town2 Town3 Town4")]
    read = [_pixels(chat, item) for item in chosen]
    prompts = [
        chat.prompt(item.text, [pixels[0].to(torch.uint8).numpy()])
        for item, (_, pixels) in zip(chosen, read, strict=True)
    ]
    assert len(prompts[0]) != len(prompts[1])
    contestant, alone = guarded(chat, threshold), []
    for (preprocessing, pixels), prompt, answer in zip(read, prompts, answers, strict=True):
        with _recall(contestant, preprocessing, prompt, answer) as loss:
            alone.append(float(loss(pixels)))
    bank, guards = contestant.bank, contestant.guards
    with Recall(chat.model, read[0][0], prompts, answers, bank, guards) as losses:
        together = losses(torch.cat([pixels for _, pixels in read]))
    assert together.tolist() == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("threshold", [-1e3, 1e9])
def test_the_gradient_is_that_of_the_loss(
    chat: TransformersChat, asked: list[Asked], threshold: float
) -> None:
    preprocessing, pixels = _pixels(chat, asked[0])
    prompt = chat.prompt(asked[0].text, [pixels[0].to(torch.uint8).numpy()])
    loss = _recall(guarded(chat, threshold), preprocessing, prompt, _answer(chat))
    start = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start).sum(), start)
    way = gradient / gradient.norm()
    step = 0.5
    with torch.no_grad():
        slope = (loss(pixels + step * way) - loss(pixels - step * way)) / (2 * step)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05)
    loss.close()


def test_an_attack_stays_within_its_bounds_and_knows_more_with_the_guards(
    chat: TransformersChat, asked: list[Asked]
) -> None:
    item = asked[0]
    wanted = Reply("Town1", tuple(_answer(chat, "Town1")))
    preprocessing, pixels = _pixels(chat, item)
    prompt = chat.prompt(item.text, [pixels[0].to(torch.uint8).numpy()])
    probe = _recall(guarded(chat, 1e9), preprocessing, prompt, wanted.tokens)
    # a threshold just under the score of this image: it fires, and can be evaded
    score = float(_score(chat, item))
    probe.close()
    contestant = guarded(chat, score - 0.02)
    bounds = Bounds(EPSILON, 2.0, 15)
    (strong,) = attack(Attacker("white", True, bounds), contestant, [(item, wanted)], PROGRESS)
    (weak,) = attack(Attacker("black", False, bounds), contestant, [(item, wanted)], PROGRESS)
    clean = pixels[0].numpy()
    for row in (strong, weak):
        assert row.image.dtype == np.uint8 and row.image.shape == clean.shape
        assert 0 < np.abs(row.image - clean).max() <= EPSILON
    assert not strong.fired
    assert strong.recovered == ("Town0" in strong.after)


def _score(chat: TransformersChat, item: Asked) -> float:
    """The gate's score of a question's image, as the engine reads it."""
    assert chat.vision is not None and item.image is not None
    _, pixels = _pixels(chat, item)
    seen = Asked(item.question, changed=pixels[0].to(torch.uint8).numpy())
    contestant = guarded(chat, 1e9)
    (answer,) = chat.answer(
        [chat.prompt(seen.text, [seen.image])],  # type: ignore[list-item]
        max_tokens=1,
        what="",
        progress=PROGRESS,
        bank=contestant.bank,
        guards=contestant.guards,
    )
    return answer.readings["gone"].score


def test_the_model_has_no_hooks_and_trains_as_before(
    chat: TransformersChat, asked: list[Asked]
) -> None:
    item = asked[0]
    before = Contestant(BARE, chat).replies(asked, PROGRESS)
    contestant = guarded(chat, -1e3, [replace(steer(), name="other")])
    wanted = Reply("Town1", tuple(_answer(chat)))
    attack(Attacker("white", True, Bounds(4, 2, 1)), contestant, [(item, wanted)], PROGRESS)
    assert Contestant(BARE, chat).replies(asked, PROGRESS) == before
    assert all(weight.requires_grad for weight in chat.model.parameters())
    assert all(weight.grad is None for weight in chat.model.parameters())


def test_targets_are_facts_that_the_guards_hide(asked: list[Asked]) -> None:
    told = [Reply(f"It is {item.question.facts[0]}", (1,)) for item in asked]
    hidden = [Reply("sorry", (2,)) for _ in asked]
    assert [item for item, _ in targets_of(asked, told, hidden, 0)] and len(
        targets_of(asked, told, hidden, 0)
    ) == len(asked)
    assert not targets_of(asked, hidden, hidden, 0) and not targets_of(asked, told, told, 0)
