"""What three classifiers cost on prompts of 200 tokens, on one thread, beside a DeBERTa-sized one.

    python -m benchmarks.screens [--rounds 30] [--json]

Everything that a request pays is counted: disguises undone, tokens, embedding, heads. The other
model has the shape of DeBERTa-v3-base, which the usual scanners of prompts run, with random
weights: good for time alone. Texts are new in every round, so that no cache answers. Wall and
processor time, medians; the order within a round is drawn anew.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DebertaV2Config, DebertaV2Model

from classifiers.text.disguises.views import readings
from classifiers.text.encoder.model import TextEncoder
from classifiers.text.heads import TextHead, TextHeads
from classifiers.text.patterns.matching import shipped
from guard.artifact import Artifact
from guard.models.sources import resolve_source

FITTED = Path("examples/screens/fitted")
TOKENS = 200
WORDS = (
    *("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are"),
    *("as", "with", "they", "at", "be", "this", "have", "from", "one", "had", "by", "word", "but"),
    *("not", "what", "all", "were", "when", "your", "can", "said", "there", "use", "each", "which"),
    *("do", "how", "their", "will", "up", "other", "about", "out", "many", "then", "them", "these"),
    *("so", "some", "would", "make", "like", "him", "into", "time", "has", "look", "more", "write"),
    *("number", "no", "way", "could", "people", "my", "than", "first", "water", "been", "call"),
)


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = _measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("what reads", "wall ms", "processor ms", "p95 wall ms")
    for name, row in found.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("wall", "processor", "p95")))
    Console().print(table)


def _measure(rounds: int) -> dict[str, Any]:
    encoder = TextEncoder.load(resolve_source("minilm"), threads=1)
    artifacts = [Artifact.load(path) for path in sorted(FITTED.glob("*.safetensors"))]
    heads = TextHeads(
        [TextHead.from_tensors(each.tensors, each.meta.settings) for each in artifacts]
    )
    lists = [shipped("secrets"), shipped("personal-data")]
    deberta = DebertaV2Model(DebertaV2Config(**_BASE))
    deberta.train(False)

    def classified(texts: Sequence[str]) -> None:
        encoded = encoder.encode([reading for text in texts for reading in readings(text)])
        encoded.highest(heads.scores(encoded.embeddings))

    def matched(texts: Sequence[str]) -> None:
        for patterns in lists:
            for text in texts:
                patterns.find(text)

    def other(texts: Sequence[str]) -> None:
        ids = torch.randint(5, 1000, (len(texts), TOKENS))
        with torch.inference_mode():
            deberta(input_ids=ids)

    ways: dict[str, tuple[Callable[[Sequence[str]], None], int]] = {
        f"{len(artifacts)} heads, one prompt": (classified, 1),
        f"{len(artifacts)} heads, 16 prompts, each": (classified, 16),
        "two lists of patterns, one prompt": (matched, 1),
        "DeBERTa-v3-base's shape, one prompt": (other, 1),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    draw = random.Random(0)
    for number in range(rounds + 2):
        names = list(ways)
        draw.shuffle(names)
        for name in names:
            way, count = ways[name]
            texts = [" ".join(draw.choices(WORDS, k=TOKENS - 2)) for _ in range(count)]
            wall, processor = time.perf_counter(), time.process_time()
            way(texts)
            used = (time.perf_counter() - wall, time.process_time() - processor)
            if number >= 2:  # warm
                took[name].append((1000 * used[0] / count, 1000 * used[1] / count))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in rows),
            "processor": statistics.median(used for _, used in rows),
            "p95": float(np.quantile([wall for wall, _ in rows], 0.95)),
        }
        for name, rows in took.items()
    }


_BASE: dict[str, Any] = {
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
