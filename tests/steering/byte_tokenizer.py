"""A tokenizer with a token for each byte, which libraries of grammars can read."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
PAIRS = [("t", "h"), ("a", "n"), ('"', ":"), ("Ġ", '"')]
VOCABULARY = len(SPECIALS) + 256 + len(PAIRS)
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Special tokens first, then the bytes, then tokens of two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIALS, *letters, *("".join(pair) for pair in PAIRS)]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, PAIRS))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIALS[3:],
        chat_template=TEMPLATE,
    )
