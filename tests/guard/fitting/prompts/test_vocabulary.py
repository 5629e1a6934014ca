from __future__ import annotations

from pathlib import Path

import torch

from guard.fitting.prompts.vocabulary import typed, words
from tests.server.tiny_pipeline import WORDS, save_pipeline


def test_rows_that_are_read_as_themselves_can_be_typed(tmp_path: Path) -> None:
    tokenizer = save_pipeline(tmp_path).readers[0].tokenizer
    knife, cat, unknown = (WORDS.index(word) for word in ("knife", "cat", "<unk>"))
    texts, possible = typed(tokenizer, torch.tensor([[knife, cat], [unknown, cat]]))
    assert texts[0] == "knife cat"
    # the mark of an unknown word is no word
    assert possible.tolist() == [True, False]
    assert (knife, "knife") in words(tokenizer)
    assert unknown not in dict(words(tokenizer))
