"""Seconds of a batch with portraits under a policy relative to bare, in one run.

    python -m benchmarks.seeing_cost examples/portraits/config.toml --policy forget-5 \
        --prompts examples/portraits/benchmark/fit-5.retain.jsonl

Every row is a retain prompt of the test split with an image and carries every guard of the policy,
with its own thresholds; the same rows run bare and guarded in a random order, in batches of 1 and
16, through the engine of the server. Rows on which a guard fires are left out, so that both sides
generate the same tokens and the difference is the cost of the guards alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.rounds import timed_rounds
from benchmarks.throughput import run
from guard.config.schema import load_config
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.fitting.steering.asking import prompt_of
from guard.models.chat import TransformersChat
from guard.plans.language import LanguagePlans
from guard.reporting.progress import stages
from steering.engines.transformers.engine import TransformersEngine
from steering.prompt import Prompt

BATCHES = (1, 16)


def main() -> None:
    """Measure, and print one JSON object for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = load_config(arguments.config)
    (entry,) = settings.models
    chat = TransformersChat.load(entry.source)
    plans = LanguagePlans(settings, chat.model, name=entry.name)
    carried = plans[arguments.policy].rows()
    rows = in_split(read_rows(arguments.prompts, RetainPrompt), "test")
    asked = [prompt_of(chat, row) for row in rows if row.images][: 2 * max(BATCHES)]
    with stages() as progress:
        answers = chat.answer(
            asked, max_tokens=1, what="rows", progress=progress, bank=plans.bank, guards=carried
        )
    silent: Sequence[Prompt] = [p for p, a in zip(asked, answers, strict=True) if not a.fired]
    for batch in BATCHES:
        prompts = silent[:batch]
        engine = TransformersEngine(
            chat.model, plans.bank, capacity=len(prompts), vision=chat.vision
        )
        runs = {
            side: partial(run, engine, prompts, [guards for _ in prompts])
            for side, guards in (("bare", ()), ("guarded", carried))
        }
        found = timed_rounds(runs, arguments.rounds, "bare")
        engine.close()
        print(json.dumps({"batch": len(prompts), "guards": len(carried), **found}))


if __name__ == "__main__":
    main()
