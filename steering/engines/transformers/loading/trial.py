"""A trial of an architecture that no test covers: do rows in a batch answer as each alone?

What an architecture makes of positions, masks and caches that are not transformers' own cannot be
told from its configuration. So a few tokens are generated both ways when such a model is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.layers import TESTED, UnknownArchitecture
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.vision.base import VisionFamily
from steering.hidden.bank import HiddenBank
from steering.prompt import Prompt

_LENGTHS = (9, 3, 6)
_STEPS = 4
_CLOSE = {torch.float32: 1e-3}
_CLOSE_ROUNDED = 0.15
"""Half the tokens must have log-probabilities as close: in half precision single ones differ more,
where experts are chosen."""


def require_same_answers(model: Any, vision: VisionFamily | None = None) -> None:
    """Raise UnknownArchitecture for a model of an untested architecture whose rows answer otherwise
    in a batch than alone, or cannot be run in one."""
    kind = str(model.config.get_text_config().model_type)
    if kind in TESTED:
        return
    try:
        difference = _difference(model, vision)
    except UnknownArchitecture:
        raise
    except Exception as error:
        raise UnknownArchitecture(
            f"a {kind!r} model cannot be run in batches ({type(error).__name__}: "
            f"{str(error)[:200]}); tested architectures are {', '.join(TESTED)}"
        ) from error
    if not difference <= _CLOSE.get(model.dtype, _CLOSE_ROUNDED):
        raise UnknownArchitecture(
            f"a {kind!r} model answers otherwise in a batch than alone (log-probabilities differ "
            f"by {difference:.2g}): it is not supported; tested architectures are "
            f"{', '.join(TESTED)}"
        )


@torch.inference_mode()
def _difference(model: Any, vision: VisionFamily | None) -> float:
    """Between log-probabilities of generated tokens in a batch and alone: their median."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(vocabulary, (length,), generator=generator).tolist() for length in _LENGTHS
    ]
    starts = [
        RowStart(Prompt(tuple(tokens)), (), RowSampling(top_logprobs=0)) for tokens in prompts
    ]
    engine = TransformersEngine(model, HiddenBank(), capacity=len(starts), vision=vision)
    try:
        rows: list[list[RowToken]] = [[token] for token in engine.prefill(starts[:-1])]
        engine.begin(starts[-1])
        last = None
        while last is None:
            for row, token in zip(rows, engine.decode(), strict=True):
                row.append(token)
            last = engine.read(2)
        rows.append([last])
        for _ in range(_STEPS):
            for row, token in zip(rows, engine.decode(), strict=True):
                row.append(token)
    finally:
        engine.close()
    pairs = zip(prompts, rows, strict=True)
    return float(torch.cat([_apart(model, prompt, row) for prompt, row in pairs]).median())


def _apart(model: Any, prompt: list[int], row: list[RowToken]) -> Tensor:
    """How far the log-probabilities of the tokens of a row are from those that it has alone."""
    answer = [token.token for token in row]
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([prompt + answer[:-1]], device=device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
    alone = logits.log_softmax(-1).cpu()[torch.arange(len(answer)), torch.tensor(answer)]
    return (alone - torch.tensor([token.logprob for token in row])).abs()
