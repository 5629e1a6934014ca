"""The transformers engine on the GPU in 16 bits: decisions, throughput, host syncs for one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.host_syncs import count_syncs, own_places
from benchmarks.throughput import copies, measure_sides, starts_of
from benchmarks.vllm_guards import TOPIC
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split, read_rows
from guard.models.chat import TransformersChat
from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.loading.models import load_language_model
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of
from steering.prompt import Prompt
from tests.gpu.parts.decisions import decisions
from tests.gpu.parts.models import language_model
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings

DTYPES = ("float32", "float16", "bfloat16")
THROUGHPUT = 0.97
BATCH, GUARDS, STEPS = 16, 64, 24
NEVER = 1e9


def measure(settings: Settings, add: Add) -> None:
    """In each of DTYPES, beside float32 on the CPU."""
    folder, artifact = language_model(settings)
    smoke = settings.smoke
    exact = _chat(folder, "float32", "cpu")
    texts = _texts(2 if smoke else 16)
    prompts = [Prompt(tuple(exact.tokenizer.encode(text)[:120])) for text in texts]
    guards = copies(artifact, 4 if smoke else GUARDS)
    expected = _scores(exact, prompts, guards[:8])
    del exact
    for dtype in DTYPES[:1] if smoke and not settings.on_gpu else DTYPES:
        chat = _chat(folder, dtype, settings.device)
        for figure in decisions(dtype, expected, _scores(chat, prompts, guards[:8])):
            add(figure)
        batch = [prompts[i % len(prompts)] for i in range(4 if smoke else BATCH)]
        result = measure_sides(chat, batch, guards, rounds=2 if smoke else 7)
        note = "quartiles {:.3f} to {:.3f}".format(*result["quartiles"])
        add(Figure(f"{dtype}: bare throughput", result["bare"], "tokens/s"))
        target = settings.speed(THROUGHPUT)
        add(Figure(f"{dtype}: guarded, of bare", result["ratio"], "ratio", target, note=note))
        _syncs(dtype, chat, batch, guards, 3 if smoke else STEPS, add)


def _chat(folder: str, dtype: str, device: str) -> TransformersChat:
    model, tokenizer, _ = load_language_model(folder, dtype=dtype, device=device)
    return TransformersChat(model, tokenizer, name=folder)


def _texts(count: int) -> list[str]:
    """Questions about the topic of the shipped guard, and others, by turns."""
    forget = in_split(read_rows(TOPIC / "forget.jsonl", ForgetPrompt), "test")
    retain = in_split(read_rows(TOPIC / "retain.jsonl", RetainPrompt), "test")
    return [row.prompt for pair in zip(forget[:count], retain[:count], strict=True) for row in pair]


def _scores(
    chat: TransformersChat, prompts: Sequence[Prompt], guards: Sequence[SteerGuard]
) -> Tensor:
    """What each guard says of each prompt, `[prompts, guards]`, float64."""
    engine = TransformersEngine(chat.model, bank_of(guards, chat.device), capacity=len(prompts))
    carried = tuple(RowGuard(guard.name, NEVER, 1.0) for guard in guards)
    engine.prefill(starts_of(prompts, [carried] * len(prompts)))
    rows = [engine.readings(row) for row in range(len(prompts))]
    engine.close()
    return torch.tensor(
        [[row[guard.name].score for guard in guards] for row in rows], dtype=torch.float64
    )


def _syncs(
    dtype: str,
    chat: TransformersChat,
    prompts: Sequence[Prompt],
    guards: Sequence[SteerGuard],
    steps: int,
    add: Add,
) -> None:
    """Of one decoding step, beyond those of an unguarded one."""
    engine = TransformersEngine(chat.model, bank_of(guards, chat.device), capacity=len(prompts))
    found: dict[str, Any] = {}
    places = {}
    for side, carried in (("bare", ()), ("guarded", (_silent(guards[0]),))):
        engine.reset()
        engine.prefill(starts_of(prompts, [carried] * len(prompts)))

        def run() -> None:
            for _ in range(steps):
                engine.decode()

        run()
        found[side] = count_syncs(run).per(steps)
        places = own_places(run)
    engine.close()
    own = found["guarded"] - found["bare"]
    add(Figure(f"{dtype}: waits for the GPU, bare", found["bare"].waits, "a step"))
    where = ", ".join(f"{place} {times}x" for place, times in [*places.items()][:5])
    add(Figure(f"{dtype}: own waits for the GPU", own.waits, "a step", note=where))
    add(Figure(f"{dtype}: own scalars read", own.scalars, "a step"))


def _silent(guard: SteerGuard) -> RowGuard:
    return RowGuard(guard.name, NEVER, 1.0, recheck=NEVER)
