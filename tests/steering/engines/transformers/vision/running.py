"""A small vision-language model as it is served: from its folder, with its family's prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steering.engines.transformers.engine import TransformersEngine
from steering.engines.transformers.loading.models import load_language_model
from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.prompts import VisionPrompts
from steering.hidden.bank import HiddenBank
from steering.prompt import Prompt
from tests.steering.engines.transformers.vision.tiny import Messages, Tiny, tiny


@dataclass(frozen=True)
class Running:
    """`tiny` is the model with the family's own processor; the rest is ours."""

    kind: str
    tiny: Tiny
    folder: Path
    vision: VisionFamily
    prompts: VisionPrompts

    @classmethod
    def of(cls, kind: str, folder: Path, **text: Any) -> Running:
        """`text` are settings of the text part."""
        small = tiny(kind, **text)
        small.save(folder)
        loaded = load_language_model(str(folder), device="cpu")
        assert loaded.vision is not None
        small = Tiny(loaded.model, small.processor)
        prompts = VisionPrompts(loaded.tokenizer, loaded.vision)
        return cls(kind, small, folder, loaded.vision, prompts)

    @property
    def model(self) -> Any:
        return self.tiny.model

    def engine(self, bank: HiddenBank) -> TransformersEngine:
        return TransformersEngine(self.model, bank, capacity=4, vision=self.vision)

    def prompt(self, chat: Messages) -> Prompt:
        return self.prompts.chat(chat)
