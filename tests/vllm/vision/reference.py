"""What the engine of transformers says of requests with images: what vLLM is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from guard.config.schema import load_config
from guard.plans.language import LanguagePlans, ServedModel
from guard.verdict import Verdict
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.loading.models import load_language_model
from steering.engines.transformers.vision.prompts import VisionPrompts
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of
from steering.prompt import Media, Prompt
from tests.steering.engines.driver import NO_SAMPLING, ids, serve
from tests.steering.tiny import VOCABULARY
from tests.vllm.vision.models import LLAVA_TOKENS
from tests.vllm.vision.pictures import pixels

IMAGE = VOCABULARY
"""The token that stands for an image of the kind "llava"."""


def expanded(request: Mapping[str, Any]) -> Prompt:
    """The prompt of a request in a play: each placeholder is that of one of its images."""
    tokens: list[int] = []
    media = []
    images = iter(request.get("images", ()))
    for token in request["prompt"]:
        count = LLAVA_TOKENS if token == IMAGE else 1
        if token == IMAGE:
            media.append(Media("image", pixels(*next(images)), len(tokens), len(tokens) + count))
        tokens += [token] * count
    return Prompt(tuple(tokens), tuple(media))


class Reference:
    """The model and the policies of a folder, in the engine of transformers, one row at a time."""

    def __init__(self, folder: Path, config: str = "config.toml") -> None:
        loaded = load_language_model(str(folder / "model"), device="cpu")
        served = ServedModel.of(loaded.model)
        self._plans = LanguagePlans(load_config(folder / config), served, name="tiny")
        self._engine = TransformersEngine(
            loaded.model, self._plans.bank, capacity=1, vision=loaded.vision
        )

    def answer(self, request: Mapping[str, Any]) -> tuple[list[int], Verdict]:
        """Its tokens, and its verdict."""
        plan = self._plans[request["policy"] or "none"]
        start = RowStart(expanded(request), plan.rows(), NO_SAMPLING)
        (out,), (readings,) = serve(self._engine, [start], tokens=request["tokens"])
        (tokens,) = ids([out])
        return tokens, plan.verdict(readings, request_id="", model="", elapsed_ms=0.0)

    def close(self) -> None:
        """Take the hooks off."""
        self._engine.close()


def scores_of(folder: Path, gates: NDArray[Any], asked: Sequence[tuple[int, str]]) -> list[float]:
    """The scores of a guard that senses behind the first two layers, of chats with a picture of a
    seed before a text."""
    loaded = load_language_model(str(folder / "model"), device="cpu")
    assert loaded.vision is not None
    prompts = VisionPrompts(loaded.tokenizer, loaded.vision)
    guard = SteerGuard(
        name="g",
        sense_layers=(0, 1),
        gates=torch.from_numpy(gates),
        act_layers=(2,),
        directions=torch.zeros(1, 1, gates.shape[1]),
        pool=3,
    )
    engine = TransformersEngine(loaded.model, bank_of([guard]), capacity=1, vision=loaded.vision)
    scores = []
    for seed, text in asked:
        parts = [{"type": "image", "image": pixels(seed)}, {"type": "text", "text": text}]
        prompt = prompts.chat([{"role": "user", "content": parts}])
        start = RowStart(prompt, [RowGuard("g", threshold=1e9, strength=1.0)], NO_SAMPLING)
        _, (readings,) = serve(engine, [start], tokens=1)
        scores.append(readings["g"].score)
    engine.close()
    return scores
