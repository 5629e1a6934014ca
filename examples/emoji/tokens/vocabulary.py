"""The tokenizer of captions: their words are tokens, any other word is letters."""

from __future__ import annotations

import re
import string

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from examples.emoji.captions import caption, phrases
from examples.emoji.sprites import names
from examples.emoji.tokens.codes import scenes

BEGIN, UNKNOWN, PAD, IMAGE = "[BEGIN]", "[UNKNOWN]", "[PAD]", "[IMAGE]"
"""IMAGE stands behind the prompt: an image token follows."""
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}" + BEGIN + " "
    "{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + IMAGE + "{% endif %}"
)
MOST = 64
"""Tokens of a prompt."""


def words() -> list[str]:
    """All words and marks of the training captions."""
    texts = [phrase for c in range(len(names())) for phrase in phrases(c, "train")]
    rng = np.random.default_rng(5)
    # many enough for each template, style and colour to be among them
    texts += [caption(scene, rng) for scene in scenes(4000, rng)]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def tokenizer() -> PreTrainedTokenizerFast:
    """Ids are by the order of the words, behind those of the control tokens and of letters."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    listed = dict.fromkeys(
        [PAD, UNKNOWN, BEGIN, IMAGE, *letters, *(f"##{letter}" for letter in letters), *words()]
    )
    vocabulary = {word: number for number, word in enumerate(listed)}
    whole = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=40))
    whole.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BEGIN,
        additional_special_tokens=[IMAGE],
    )
    fast.chat_template = TEMPLATE
    return fast
