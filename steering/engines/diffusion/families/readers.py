"""The tokenizers of a pipeline: windows, masks and the tokens of a text itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """One tokenizer of a pipeline.

    It reads `argument` of `encode_prompt` for `stream`, at most `tokens` tokens of it, special ones
    included.
    """

    stream: str
    argument: str
    tokenizer: Any
    tokens: int

    def windows(self, text: str) -> list[str]:
        """The text past the first window, in windows that share a quarter of their tokens.

        A word or a phrase that is cut at the end of one window is therefore whole in another.
        """
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = self.tokens - self.tokenizer.num_special_tokens_to_add()
        step = room - room // 4
        starts = range(step, len(ids) - room + step, step)
        pieces = [ids[start : start + room] for start in starts]
        return [self.tokenizer.decode(p, clean_up_tokenization_spaces=False) for p in pieces]

    def words(self, text: str, tokens: int) -> Tensor:
        """`[1, tokens]`: True at the tokens of the text, False at special tokens and padding."""
        ids = self.tokenizer(text, verbose=False).input_ids[:tokens]
        special = set(self.tokenizer.all_special_ids)
        is_word = [token not in special for token in ids] + [False] * (tokens - len(ids))
        return torch.tensor([is_word])

    def mask(self, texts: Sequence[str], tokens: int) -> Tensor:
        """`[texts, tokens]`: False at padding."""
        batch = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=tokens,
            truncation=True,
            return_tensors="pt",
            verbose=False,
        )
        mask: Tensor = batch["attention_mask"]
        return mask.bool()
