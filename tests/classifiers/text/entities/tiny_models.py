"""Small real models of names: no package has one that a test may trust.

Both are trained on some dozens of made-up sentences, so that they know these names and little more:
they show that the plumbing holds, not how well names are found.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

PEOPLE = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Emmy Noether")
PLACES = ("London", "Paris", "Berlin", "Vienna")
SENTENCES = (
    "{person} lives in {place}.",
    "Please write to {person} today.",
    "We met {person} near {place} last week.",
    "The office in {place} is closed.",
    "The report is late and the weather is fine.",
)
Example = tuple[str, list[tuple[int, int, str]]]


def examples() -> list[Example]:
    """Sentences with the positions of their names."""
    found: list[Example] = []
    for sentence, (person, place) in product(SENTENCES, product(PEOPLE, PLACES)):
        text = sentence.format(person=person, place=place)
        spans = [
            (text.index(name), text.index(name) + len(name), label)
            for name, label in ((person, "PERSON"), (place, "GPE"))
            if name in text
        ]
        found.append((text, spans))
    return found


def save_ruler(folder: Path, language: str = "en") -> Path:
    """A pipeline of spaCy that knows the names by a list."""
    import spacy

    pipeline = spacy.blank(language)
    ruler: Any = pipeline.add_pipe("entity_ruler")
    patterns = [{"label": "PERSON", "pattern": name} for name in PEOPLE]
    patterns += [{"label": "GPE", "pattern": name} for name in PLACES]
    ruler.add_patterns([*patterns, {"label": "PRODUCT", "pattern": "Difference Engine"}])
    pipeline.to_disk(folder)
    return folder


def save_trained_pipeline(folder: Path) -> Path:
    """A pipeline of spaCy whose network has learnt the names."""
    import spacy
    from spacy.training import Example as Pair

    random.seed(0)
    spacy.util.fix_random_seed(0)
    pipeline = spacy.blank("en")
    pipeline.add_pipe("ner")
    pairs = [
        Pair.from_dict(pipeline.make_doc(text), {"entities": spans}) for text, spans in examples()
    ]
    pipeline.initialize(lambda: pairs)
    for _ in range(6):
        random.shuffle(pairs)
        for first in range(0, len(pairs), 16):
            pipeline.update(pairs[first : first + 16], drop=0.1)
    pipeline.to_disk(folder)
    return folder


def save_token_classifier(folder: Path, positions: int = 128) -> Path:
    """A BERT of transformers, of one small layer, that has learnt the names."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    splitter = pre_tokenizers.Whitespace()
    words = {word for text, _ in examples() for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {
        word: index
        for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)])
    }
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = splitter
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=positions,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    batch = tokenizer(
        [text for text, _ in examples()], padding=True, return_offsets_mapping=True,
        return_tensors="pt",
    )  # fmt: skip
    wanted = torch.zeros_like(batch["input_ids"])
    for row, (_, spans) in enumerate(examples()):
        for column, (start, end) in enumerate(batch["offset_mapping"][row].tolist()):
            for first, last, label in spans:
                if first <= start < end <= last:
                    wanted[row, column] = (1 if label == "PERSON" else 3) + (start > first)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        output = model(batch["input_ids"], batch["attention_mask"], labels=wanted)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def relabelled(folder: Path, labels: dict[str, str]) -> None:
    """Give a token classifier other labels."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["id2label"] = {key: labels.get(name, name) for key, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
