"""Training: `python -m examples.portraits.train --steps 1000` goes on where its checkpoint ends.

Needs `guard models add smollm2` and the tower (`python -m examples.portraits.tower`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from examples.emoji import scenes
from examples.emoji.checkpoint import resume, save
from examples.portraits import images, questions
from examples.portraits.draw import TEST, TRAIN
from examples.portraits.model import adapt, answers_of, assemble, tokenizer_of
from examples.portraits.people import HERE, people
from examples.portraits.questions import Question
from examples.portraits.sequences import BALANCED, MOSTLY_NAMES, Encoder, Row, Rows, batch_of
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.models.sources import resolve_source

ROWS = 1
"""Rows of a step: facts are learned by the number of steps more than by that of tokens."""
EVERYDAY = HERE.parent / "harry-potter" / "retain.jsonl"
NAMES_UNTIL = 2000
"""Steps in which most rows are of names: facts are learned by name first."""
RATES = {"lora": 1.0, "whole": 0.3, "projector": 0.05}
"""Rates of what is trained, as shares of LoRA's."""
WAYS = ("portrait", "name", "both")


def replay(folder: Path) -> list[Question]:
    """SmolLM2's own answers to everyday questions, so that it does not forget how to talk."""
    file = folder / "replay.json"
    if not file.is_file():
        from guard.models.chat import TransformersChat
        from guard.reporting.progress import stages

        rows = in_split(read_rows(EVERYDAY, RetainPrompt), "train")
        prompts = [row.prompt for row in rows if not row.near][:160]
        chat = TransformersChat.load("smollm2")
        with stages() as progress:
            answers = chat.answer(prompts, max_tokens=48, what="own answers", progress=progress)
        pairs = [[p, a.text] for p, a in zip(prompts, answers, strict=True)]
        file.write_text(json.dumps(pairs, indent=1), "utf-8")
    return [Question(p, a, "everyday", "") for p, a in json.loads(file.read_text("utf-8"))]


def tests(count: int, seed: int) -> list[tuple[str, Row, Any]]:
    """Rows of held-out wordings and portraits with their groups; their branches are questions."""
    rng = np.random.default_rng(seed)
    drawn: list[tuple[str, Any, list[Question]]] = []
    for kind, numbers in (("private", range(200)), ("famous", range(200, 240))):
        for number in rng.choice(numbers, count, replace=False):
            person = people()[int(number)]
            for way in WAYS:
                image = None
                if way != "name":
                    image = images.portrait(person.number, TRAIN + int(rng.integers(TEST)), rng)
                asked = [questions.asked(person, way, rng, test=True) for _ in range(4)]
                drawn.append((f"{kind} {way}", image, asked))
    for _ in range(count):
        scene = scenes.loose(int(rng.integers(1, 4)), rng)
        asked = [questions.about_scene(scene, rng, test=True) for _ in range(6)]
        drawn.append(("scenes", images.scene(scene), asked))
    return drawn  # type: ignore[return-value]


@torch.inference_mode()
def accuracy(model: Any, encoder: Encoder, count: int, seed: int) -> dict[str, float]:
    """Share of answers that the model gives word by word, by group; scenes by question too."""
    right: dict[str, list[bool]] = {}
    for group, image, asked in tests(count, seed):
        branches = [encoder.branch(q, image=image is not None) for q in asked]
        logits, labels = answers_of(model, batch_of([Row(image, branches)], encoder))
        hits = (logits.argmax(-1) == labels).split([len(t) - first for t, first in branches])
        for question, hit in zip(asked, hits, strict=True):
            exact = bool(hit.all())
            right.setdefault(group, []).append(exact)
            if group == "scenes":
                right.setdefault(f"scenes, {question.attribute}", []).append(exact)
    return {name: round(sum(hits) / len(hits), 3) for name, hits in right.items()}


def rate_at(step: int, steps: int) -> float:
    """Share of the highest rate: a short rise, then a fall over the last half."""
    return min(1.0, (step + 1) / 30, max((1 - step / steps) / 0.5, 0.02))


def train(steps: int, folder: Path, rate: float) -> None:
    source = Path(resolve_source("smollm2"))
    tokenizer = tokenizer_of(source)
    encoder = Encoder(tokenizer)
    torch.manual_seed(0)
    model = assemble(source, folder / "tower.safetensors", folder / "projector.safetensors")
    trained = adapt(model)
    groups = [
        {"params": list(part.parameters()), "of": RATES[name]} for name, part in trained.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint = folder / "checkpoint.safetensors"
    step = resume(checkpoint, trained, optimizer)
    mix = MOSTLY_NAMES if step < NAMES_UNTIL else BALANCED
    rows = Rows(encoder, replay(folder), mix, seed=step)
    started, tokens, lost = time.monotonic(), 0, 0.0
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["of"] * rate_at(step, steps)
        batch = batch_of([next(rows) for _ in range(ROWS)], encoder)
        logits, labels = answers_of(model, batch)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        step += 1
        tokens += batch.ids.numel()
        lost += loss.item()
        if step % 50 == 0:
            speed = tokens / (time.monotonic() - started)
            print(f"step {step}, loss {lost / 50:.3f}, {speed:.0f} tokens/s", flush=True)
            lost = 0.0
        if step % 400 == 0 or step == steps:
            save(checkpoint, trained, optimizer, step)
            print(step, accuracy(model, encoder, 12, 3), flush=True)
    state = {name: value.detach() for name, value in trained.state_dict().items()}
    save_file(state, folder / "adapters.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("build/portraits"))
    parsed = parser.parse_args(arguments)
    train(parsed.steps, parsed.folder, parsed.rate)


if __name__ == "__main__":
    main()
