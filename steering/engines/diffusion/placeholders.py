"""Placeholders: vectors of one request in a text encoder whose tokenizer and weights do not change.

A placeholder is replaced by *substitute words*: words of the vocabulary that the prompt does not
use, one for each of its vectors. The pipeline tokenises and encodes that text like any other, and a
hook replaces the input embedding of each substitute word by the vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from steering.images.textual_inversion import EmbeddingError

Learned = Mapping[str, Tensor]
"""The placeholders of one prompt, each with its vectors `[vectors, width]`."""

_WORDS = 1024
"""The number of words of the vocabulary among which substitutes are chosen."""
_NONE = -1
"""The id of no token."""


class Vocabulary:
    """The words that can be substitutes: of plain letters, and one token in any position."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words = tuple(islice(self._single_tokens(), _WORDS))

    def _single_tokens(self) -> Iterator[tuple[int, str]]:
        for number in range(len(self._tokenizer)):
            word = str(self._tokenizer.decode([number])).strip()
            plain = word.isascii() and word.isalpha() and word.islower()
            if plain and self.ids(word) == [number]:
                yield number, word

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, without the tokenizer's special ones."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def unused(self, prompt: str, count: int) -> list[tuple[int, str]]:
        """`count` words with their tokens that occur nowhere in the prompt, not even inside a word.

        Raises EmbeddingError if there are fewer.
        """
        text, used = prompt.lower(), set(self.ids(prompt))
        free = ((i, word) for i, word in self._words if i not in used and word not in text)
        words = list(islice(free, count))
        if len(words) < count:
            raise EmbeddingError(
                f"the prompt leaves no {count} words to stand in for its embeddings"
            )
        return words


class Placeholders:
    """`prompts` with substitute words for their placeholders, and the vectors of these words.

    `cleaned` is the pipeline's treatment of a text before its tokenizer. Raises EmbeddingError for
    a prompt in which the tokenizer would not keep the substitute words.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompts: Sequence[str],
        learned: Sequence[Learned],
        cleaned: Callable[[str], str],
    ) -> None:
        counts = [sum(map(len, by_name.values())) for by_name in learned]
        chosen = [
            vocabulary.unused(prompt, count) for prompt, count in zip(prompts, counts, strict=True)
        ]
        self.texts = [
            _substituted(prompt, by_name, [word for _, word in words])
            for prompt, by_name, words in zip(prompts, learned, chosen, strict=True)
        ]
        for prompt, text, by_name, words in zip(prompts, self.texts, learned, chosen, strict=True):
            expected = sum(prompt.count(name) * len(vectors) for name, vectors in by_name.items())
            tokens = vocabulary.ids(cleaned(text))
            if sum(tokens.count(number) for number, _ in words) != expected:
                raise EmbeddingError(
                    "the tokens of the embeddings do not stand apart in the prompt: put spaces "
                    "around them"
                )
        numbers = [torch.tensor([number for number, _ in words]).long() for words in chosen]
        width = next(vectors.shape[1] for by_name in learned for vectors in by_name.values())
        empty = torch.zeros(0, width)
        vectors = [
            torch.cat([empty, *(v.cpu().float() for v in by_name.values())]) for by_name in learned
        ]
        self._ids = pad_sequence(numbers, batch_first=True, padding_value=_NONE)
        self._vectors = pad_sequence(vectors, batch_first=True)

    @contextmanager
    def inside(self, encoder: nn.Module) -> Iterator[None]:
        """Replace the embeddings of substitute words by the vectors inside the context.

        The rows of the encoder are these texts or, for a single text, any number of pieces of it.
        """
        with ExitStack() as hooks:
            for module in _embedding_modules(encoder):
                hooks.enter_context(_hooked(module, self._replaced))
            yield

    def _replaced(
        self, _module: nn.Module, inputs: tuple[Tensor, ...], embeddings: Tensor
    ) -> Tensor:
        """The embeddings `[rows, tokens, width]` of ids `[rows, tokens]`, those of substitute words
        replaced."""
        (ids,) = inputs
        hits = ids[..., None] == self._ids.to(ids.device)[:, None]
        vectors = self._vectors.to(embeddings).expand(len(ids), -1, -1)
        index = hits.long().argmax(-1)[..., None].expand(-1, -1, vectors.shape[-1])
        return torch.where(hits.any(-1)[..., None], vectors.gather(1, index), embeddings)


def _substituted(prompt: str, learned: Learned, words: Sequence[str]) -> str:
    """The prompt with words for placeholders, in spaces so that they do not join others."""
    if not learned:
        return prompt
    remaining = iter(words)
    runs = {name: " ".join(islice(remaining, len(vectors))) for name, vectors in learned.items()}
    names = "|".join(map(re.escape, learned))
    return re.sub(names, lambda match: f" {runs[match[0]]} ", prompt)


def _embedding_modules(encoder: Any) -> list[nn.Module]:
    """The modules that look up the input embeddings: in some encoders several share the weight."""
    weight = encoder.get_input_embeddings().weight
    return [module for module in encoder.modules() if getattr(module, "weight", None) is weight]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
