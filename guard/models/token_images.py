"""A loaded language model that writes images, as fitting and evaluation use it. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.models.chat import BATCH, TransformersChat
from guard.models.sources import resolve_source
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.image_tokens import ImageTokens, writes_images
from steering.engines.transformers.offline import Advance, Answer, answers, nothing
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.prompt import Prompt


class TokenImageModel:
    """`chat` is the model as fits of language models take it, `images` what its tokens mean."""

    def __init__(self, chat: TransformersChat, images: ImageTokens) -> None:
        self.chat, self.images = chat, images

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> TokenImageModel:
        """Load a model by its name in the store or its directory. Raises ModelError."""
        folder = Path(resolve_source(source))
        if not writes_images(folder):
            raise ModelError(f"model {source!r} writes no images: name one that does")
        chat = TransformersChat.load(source, device=device)
        vocabulary = chat.model.get_input_embeddings().num_embeddings
        try:
            images = ImageTokens.load(folder, vocabulary, chat.device)
        except ValueError as error:
            raise ModelError(f"model {source!r}: {error}") from error
        return cls(chat, images)

    def draw(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        bank: HiddenBank | None = None,
        guards: Sequence[Sequence[RowGuard]] = (),
        tokens: int | None = None,
        advance: Advance = nothing,
    ) -> list[Answer]:
        """The tokens of an image for each prompt, the first `tokens` of them where given, and the
        readings of the `guards` of its row, as a server draws them."""
        engine = TransformersEngine(self.chat.model, bank or HiddenBank(), capacity=BATCH)
        rows = guards or [()] * len(prompts)
        try:
            return answers(
                engine,
                [
                    RowStart(prompt, row, self.images.sampling(seed))
                    for prompt, row, seed in zip(prompts, rows, seeds, strict=True)
                ],
                max_tokens=tokens or self.images.count,
                end_tokens=frozenset(),
                advance=advance,
            )
        finally:
            engine.close()

    def pixels(self, drawn: Sequence[Answer]) -> list[NDArray[np.uint8]]:
        """The images `[height, width, 3]` of whole answers."""
        return list(self.images.pixels([answer.tokens for answer in drawn])) if drawn else []
