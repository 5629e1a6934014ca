"""A small random language model for measurements, and the shipped steering guard fitted to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guard.artifact import Artifact
from steering.fingerprint import fingerprint

SHIPPED = Path(__file__).parents[1] / "examples" / "harry-potter" / "steer.safetensors"
SPECIALS = ("<unk>", "<s>", "</s>")
_THIN: dict[str, Any] = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # what attention on a CPU takes in vLLM
    "head_dim": 32,
}
SMOLLM2 = {
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
"""What `write_tiny` needs for the decoder layers of the guard's model, for measurements of time."""


def write_tiny(folder: Path, artifact: Path, **shape: int) -> None:
    """Write a Llama with the depth and width of the guard's model to `folder`, the guard to
    `artifact`; `shape` changes the rest of its configuration.

    The guard's directions and gates say nothing of the random model: good for time alone.
    """
    shipped = Artifact.load(SHIPPED)
    fitted = shipped.meta.model
    tokenizer = _letters()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=fitted.width,
            num_hidden_layers=fitted.layers,
            **{**_THIN, **shape},
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        # without an end of text, every response is as long as it may be
        model.lm_head.weight[: len(SPECIALS)] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fits = fitted.model_copy(update={"name": "tiny", "fingerprint": fingerprint(model)})
    Artifact(shipped.meta.model_copy(update={"model": fits}), shipped.tensors).save(artifact)


def _letters() -> PreTrainedTokenizerFast:
    """One token for each printable character."""
    names = [*SPECIALS, *(chr(code) for code in range(32, 127)), "\n"]
    backend = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    untyped: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = untyped(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return tokenizer
