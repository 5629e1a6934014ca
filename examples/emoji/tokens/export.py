"""The trained autoregressive model as the folder that `guard models add emoji-tokens` reads.

Weights are float16. The autoencoder is left out, which the emoji model's weights have.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.emoji.tokens.codes import SIDE
from steering.engines.transformers.image_tokens import AUTOENCODER, CODEBOOK, IMAGE_TOKENS

WEIGHTS = Path(__file__).parent / "weights"
TEMPERATURE, TOP_P = 0.8, 1.0
"""No cut of unlikely tokens: the first token of an object is unlikely at each single place."""


def export(
    model: LlamaForCausalLM, words: PreTrainedTokenizerFast, codes: Tensor, weights: Path
) -> None:
    """Write the model, its tokenizer and the codebook to the folder `weights`."""
    (weights / AUTOENCODER).mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(weights)
    words.save_pretrained(weights)
    save_file({"codes": codes}, weights / AUTOENCODER / CODEBOOK)
    settings = {"rows": SIDE, "columns": SIDE, "temperature": TEMPERATURE, "top_p": TOP_P}
    (weights / IMAGE_TOKENS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
