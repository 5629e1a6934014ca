"""The cost of text screens on prompts of 200 tokens, on one thread, beside a DeBERTa-sized model.

    python -m benchmarks.screens [--rounds 30] [--json]

The time of the shipped classifiers includes all that a request pays for: undoing disguises,
tokenising, embedding, heads. The other model has the shape of DeBERTa-v3-base, which the usual
scanners of prompts run, with random weights: good for time alone. Texts are new in every round, so
that no cache answers, and first stages are off (`benchmarks.screens.cascade` has those). The report
has medians of wall and CPU time; each round has a new random order.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DebertaV2Config, DebertaV2Model

from benchmarks.rounds import shuffled_rounds
from benchmarks.screens.shipped import TOKENS, Shipped, random_texts, read_text
from classifiers.text.patterns.matching import shipped


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = _measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("screen", "wall ms", "CPU ms", "p95 wall ms")
    for name, row in result.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("wall", "processor", "p95")))
    Console().print(table)


def _measure(rounds: int) -> dict[str, Any]:
    classifiers = Shipped.load()
    lists = [shipped("secrets"), shipped("personal-data")]
    deberta = DebertaV2Model(DebertaV2Config(**_DEBERTA_V3_BASE))
    deberta.train(False)

    def classify(texts: Sequence[str]) -> None:
        classifiers.cascade.scores([read_text(text) for text in texts])

    def match(texts: Sequence[str]) -> None:
        for patterns in lists:
            for text in texts:
                patterns.find(text)

    def run_deberta(texts: Sequence[str]) -> None:
        ids = torch.randint(5, 1000, (len(texts), TOKENS))
        with torch.inference_mode():
            deberta(input_ids=ids)

    screens: dict[str, tuple[Callable[[Sequence[str]], None], int]] = {
        # the function, and the prompts of one call
        f"{len(classifiers.names)} heads, one prompt": (classify, 1),
        f"{len(classifiers.names)} heads, 16 prompts, each": (classify, 16),
        "two lists of patterns, one prompt": (match, 1),
        "DeBERTa-v3-base's shape, one prompt": (run_deberta, 1),
    }
    milliseconds: dict[str, list[tuple[float, float]]] = {name: [] for name in screens}
    random_words = random.Random(0)
    for number, name in shuffled_rounds(list(screens), rounds):
        screen, count = screens[name]
        texts = random_texts(count, random_words)
        wall, cpu = time.perf_counter(), time.process_time()
        screen(texts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if number:
            milliseconds[name].append((1000 * wall / count, 1000 * cpu / count))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in rows),
            "processor": statistics.median(cpu for _, cpu in rows),
            "p95": float(np.quantile([wall for wall, _ in rows], 0.95)),
        }
        for name, rows in milliseconds.items()
    }


_DEBERTA_V3_BASE: dict[str, Any] = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}

if __name__ == "__main__":
    main()
