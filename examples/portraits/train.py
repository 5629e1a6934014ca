"""Training: `python -m examples.portraits.train` goes on where its checkpoint ends.

Needs `guard models add smollm2` the tower and the projector (`python -m examples.portraits.tower`,
`python -m examples.portraits.projector`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from examples.emoji.checkpoint import resume, save
from examples.portraits.measure import cases
from examples.portraits.model import adapt, answers_of, assemble, tokenizer_of
from examples.portraits.people import HERE
from examples.portraits.questions import Question
from examples.portraits.sequences import (
    BALANCED,
    MOSTLY_NAMES,
    MOSTLY_SEEN,
    Encoder,
    Row,
    Rows,
    batch_of,
)
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.models.sources import resolve_source

ROWS = 1
"""Rows of a step: facts are learned by the number of steps more than by that of tokens."""
EVERYDAY = HERE.parent / "harry-potter" / "retain.jsonl"
NAMES_UNTIL, BALANCED_UNTIL = 2000, 2700
"""Steps in which most rows are of names, and in which the mix is balanced: facts are learned by
name first, and images come last since they take the longest."""
RATES = {"lora": 1.0, "whole": 0.3, "projector": 0.05}
"""Rates of what is trained, as shares of LoRA's."""
SAMPLED = 7
"""Of so many held-out questions one is asked during training; no divisor of a group's order."""


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


@torch.inference_mode()
def accuracy(model: Any, encoder: Encoder, seed: int) -> dict[str, float]:
    """Share of held-out questions that the model answers word by word, by group: a sample of those
    of `measure`, with the right answer's tokens given one by one."""
    right: dict[str, list[bool]] = {}
    for case in cases(seed)[::SAMPLED]:
        tokens, first = encoder.branch(case.question, image=case.image is not None)
        batch = batch_of([Row(case.image, [(tokens, first)])], encoder)
        logits, labels = answers_of(model, batch)
        right.setdefault(case.group, []).append(bool((logits.argmax(-1) == labels).all()))
    return {name: round(sum(hits) / len(hits), 3) for name, hits in right.items()}


def mix_at(step: int) -> Sequence[str]:
    """What the rows of a step hold, in turn."""
    if step < NAMES_UNTIL:
        return MOSTLY_NAMES
    return BALANCED if step < BALANCED_UNTIL else MOSTLY_SEEN


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
    rows = Rows(encoder, replay(folder), seed=step)
    started, tokens, lost = time.monotonic(), 0, 0.0
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["of"] * rate_at(step, steps)
        batch = batch_of([rows.draw(mix_at(step)) for _ in range(ROWS)], encoder)
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
            print(step, accuracy(model, encoder, 3), flush=True)
    state = {name: value.detach() for name, value in trained.state_dict().items()}
    save_file(state, folder / "adapters.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("build/portraits"))
    parsed = parser.parse_args(arguments)
    train(parsed.steps, parsed.folder, parsed.rate)


if __name__ == "__main__":
    main()
