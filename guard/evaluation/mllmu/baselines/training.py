"""Training a copy of the model to forget: gradient ascent, and with KL divergence to the model as
it was on retain questions (the baselines GA and KL of MLLMU-Bench, arXiv 2410.22108, after Yao et
al., arXiv 2310.10683).

The decoder layers are trained; the vision tower, the projector and the embeddings stay. Training
stops before the model loses more than a tenth of what it knew of other people.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from guard.evaluation.mllmu.contestants import Contestant
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.vision.base import VisionFamily
from steering.prompt import Prompt

Objective = Literal["gradient ascent", "KL minimisation"]

RATE = 2e-5
STEPS = 16
BATCH = 4
CHECKED = 16
"""Retain questions by which the knowledge of other people is measured."""
LEAST_KEPT = 0.9
"""Share of the bare model's token accuracy on them that must stay."""


@dataclass(frozen=True)
class Example:
    """A prompt and the tokens of its answer."""

    prompt: Prompt
    answer: tuple[int, ...]

    @property
    def whole(self) -> Prompt:
        """The prompt with the answer behind it."""
        return self.prompt.extended(self.answer)


def trained(
    chat: TransformersChat,
    objective: Objective,
    forget: Sequence[Example],
    retain: Sequence[Example],
    progress: Stages,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Contestant:
    """A copy of the model after at most `steps` steps; `retain` is split into questions to train on
    (KL alone) and questions to stop by."""
    rng = random.Random(seed)
    shuffled = rng.sample(list(retain), len(retain))
    checked, trained_on = shuffled[:CHECKED], shuffled[CHECKED:] or shuffled
    twin = copy.copy(chat)
    twin.model = copy.deepcopy(chat.model)
    twin.model.requires_grad_(False)
    weights = [*decoder_layers(twin.model).parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    least = LEAST_KEPT * _accuracy(twin, checked)
    advance = progress(f"baseline: {objective}", steps)
    done, before = 0, [weight.detach().clone() for weight in weights]
    for _ in range(steps):
        with torch.enable_grad():
            loss = -_loss(twin, rng.sample(list(forget), min(BATCH, len(forget))))
            if objective == "KL minimisation":
                batch = rng.sample(trained_on, min(BATCH, len(trained_on)))
                loss = loss + _divergence(twin, chat, batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if _accuracy(twin, checked) < least:
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)
            break
        done += 1
        advance(1)
        for weight, old in zip(weights, before, strict=True):
            old.copy_(weight.detach())
    twin.model.requires_grad_(False)
    return Contestant(objective, twin, notes={"steps": done, "rate": RATE, "batch": BATCH})


def _loss(chat: TransformersChat, batch: Sequence[Example]) -> Tensor:
    """-log p of the answers' tokens, their mean."""
    logits, targets = _answers(chat, batch)
    return cross_entropy(logits, targets)


def _divergence(twin: TransformersChat, chat: TransformersChat, batch: Sequence[Example]) -> Tensor:
    """KL of the model as it was from the copy, the mean over the answers' tokens."""
    with torch.no_grad():
        before = _answers(chat, batch)[0].log_softmax(-1)
    now = _answers(twin, batch)[0].log_softmax(-1)
    return kl_div(now, before, reduction="batchmean", log_target=True)


@torch.no_grad()
def _accuracy(chat: TransformersChat, examples: Sequence[Example]) -> float:
    """The share of the answers' tokens that are the likeliest ones."""
    right = total = 0
    for first in range(0, len(examples), BATCH):
        logits, targets = _answers(chat, examples[first : first + BATCH])
        right += int((logits.argmax(-1) == targets).sum())
        total += len(targets)
    return right / max(total, 1)


def _answers(chat: TransformersChat, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Logits `[answer tokens, vocabulary]` that predict the answers of all rows, and the tokens."""
    prompts = [example.whole for example in batch]
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    real = torch.zeros_like(ids)
    # right padding: under causal attention no token before it attends to it
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], real[row, : len(prompt)] = torch.tensor(prompt.tokens), 1
    states = _logits(chat.model, chat.vision, prompts, ids.to(chat.device), real.to(chat.device))
    picked = [
        states[row, len(example.prompt) - 1 : len(prompt) - 1]
        for row, (example, prompt) in enumerate(zip(batch, prompts, strict=True))
    ]
    targets = [token for example in batch for token in example.answer]
    return torch.cat(picked).float(), torch.tensor(targets, device=chat.device)


def _logits(
    model: Any, vision: VisionFamily | None, prompts: Sequence[Prompt], ids: Tensor, real: Tensor
) -> Tensor:
    images = [item.content for prompt in prompts for item in prompt.media]
    inputs = {}
    if images and vision is not None:
        pixels = [image for image in images if not isinstance(image, str)]
        inputs = {name: value.to(ids.device) for name, value in vision.prepare(pixels).items()}
    output = model(input_ids=ids, attention_mask=real, use_cache=False, **inputs)
    return output.logits  # type: ignore[no-any-return]
