"""The texts that are searched: values in contexts, with and without a label."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.patterns.contexts import Filler, Text, written
from benchmarks.patterns.labels import ALWAYS, label_for
from benchmarks.patterns.values import Values


def made_up(contexts: Sequence[str], count: int, seed: int) -> list[Text]:
    """`count` texts of each kind in each context."""
    values, fill = Values(seed), Filler(seed)
    texts: list[Text] = []
    for kind in values.kinds:
        for context in contexts:
            made = 0
            for _ in range(4 * count):
                value = values.draw(kind)
                if value is None:
                    continue
                labelled = kind in ALWAYS or fill.draw.random() < 0.5
                label = label_for(value, fill.draw) if labelled else None
                text = written(fill, context, value, label)
                if text is None:
                    break
                texts.append(text)
                made += 1
                if made == count:
                    break
    return texts
