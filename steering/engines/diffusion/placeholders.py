"""Vectors of a request's own in a text encoder, whose tokenizer and weights stay as they are.

A placeholder is written out as *stand-ins*: words of the vocabulary that the prompt does not use,
one for each of its vectors. The pipeline tokenises and encodes that text as any other, and where
the encoder looks up a stand-in's embedding it is handed the vector in its place.
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
"""Placeholders of one prompt, each with its vectors `[vectors, width]`."""

_WORDS = 1024
"""Of the vocabulary, among which stand-ins are chosen."""
_NONE = -1
"""No token."""


class Vocabulary:
    """The words that can stand in: one token each, of plain letters, wherever they stand."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words = tuple(islice(self._found(), _WORDS))

    def _found(self) -> Iterator[tuple[int, str]]:
        for number in range(len(self._tokenizer)):
            word = str(self._tokenizer.decode([number])).strip()
            plain = word.isascii() and word.isalpha() and word.islower()
            if plain and self.ids(word) == [number]:
                yield number, word

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, without the tokenizer's marks."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def unused(self, prompt: str, count: int) -> list[tuple[int, str]]:
        """`count` words, each with its token, of which the prompt holds none, nor any part of one.

        Raises EmbeddingError where there are not as many.
        """
        said, used = prompt.lower(), set(self.ids(prompt))
        free = (each for each in self._words if each[0] not in used and each[1] not in said)
        found = list(islice(free, count))
        if len(found) < count:
            raise EmbeddingError(
                f"the prompt leaves no {count} words to stand in for its embeddings"
            )
        return found


class Placeholders:
    """`prompts` with stand-ins for their placeholders, and the vectors behind these.

    `read` is how a pipeline treats a text on its way to the tokenizer. Raises EmbeddingError for a
    prompt from which stand-ins would not come out as they are.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompts: Sequence[str],
        learned: Sequence[Learned],
        read: Callable[[str], str],
    ) -> None:
        counts = [sum(map(len, own.values())) for own in learned]
        chosen = [
            vocabulary.unused(prompt, count) for prompt, count in zip(prompts, counts, strict=True)
        ]
        self.texts = [
            _written(prompt, own, [word for _, word in words])
            for prompt, own, words in zip(prompts, learned, chosen, strict=True)
        ]
        for prompt, text, own, words in zip(prompts, self.texts, learned, chosen, strict=True):
            placed = sum(prompt.count(name) * len(vectors) for name, vectors in own.items())
            come = vocabulary.ids(read(text))
            if sum(come.count(number) for number, _ in words) != placed:
                raise EmbeddingError(
                    "the tokens of the embeddings do not stand apart in the prompt: put spaces "
                    "around them"
                )
        numbers = [torch.tensor([number for number, _ in words]).long() for words in chosen]
        width = next(vectors.shape[1] for own in learned for vectors in own.values())
        nothing = torch.zeros(0, width)
        vectors = [
            torch.cat([nothing, *(v.cpu().float() for v in own.values())]) for own in learned
        ]
        self._ids = pad_sequence(numbers, batch_first=True, padding_value=_NONE)
        self._vectors = pad_sequence(vectors, batch_first=True)

    @contextmanager
    def inside(self, encoder: nn.Module) -> Iterator[None]:
        """Have `encoder` find the vectors where it looks up stand-ins, while the context lasts.

        It may read these texts, or, where there is one, any number of pieces of it.
        """
        with ExitStack() as hooks:
            for module in _tables(encoder):
                hooks.enter_context(_hooked(module, self._looked_up))
            yield

    def _looked_up(self, _module: nn.Module, inputs: tuple[Tensor, ...], found: Tensor) -> Tensor:
        """The embeddings `[rows, tokens, width]` of ids `[rows, tokens]`; all others as found."""
        (ids,) = inputs
        hits = ids[..., None] == self._ids.to(ids.device)[:, None]
        own = self._vectors.to(found).expand(len(ids), -1, -1)
        which = hits.long().argmax(-1)[..., None].expand(-1, -1, own.shape[-1])
        return torch.where(hits.any(-1)[..., None], own.gather(1, which), found)


def _written(prompt: str, own: Learned, words: Sequence[str]) -> str:
    """With spaces around, so that stand-ins are words of their own."""
    if not own:
        return prompt
    remaining = iter(words)
    runs = {name: " ".join(islice(remaining, len(vectors))) for name, vectors in own.items()}
    names = "|".join(map(re.escape, own))
    return re.sub(names, lambda found: f" {runs[found[0]]} ", prompt)


def _tables(encoder: Any) -> list[nn.Module]:
    """The modules that look up its input embeddings: some encoders share their weight."""
    weight = encoder.get_input_embeddings().weight
    return [module for module in encoder.modules() if getattr(module, "weight", None) is weight]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
