"""A random pipeline of Stable Diffusion's shape with a BERT encoder, small enough for a test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from examples.emoji.captions import phrases
from examples.emoji.scenes import BACKGROUNDS
from examples.emoji.sprites import names
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TOKENS = 16


def tokenizer() -> PreTrainedTokenizerFast:
    """Word pieces: the words of the emoji model's captions, and single letters."""
    texts = [phrases(i, "train")[0] for i in range(len(names()))]
    texts += [*BACKGROUNDS, "a picture of on background", "twemoji noto style twitter"]
    words = sorted({word for text in texts for word in text.replace("-", " ").split()})
    letters = [f"##{chr(c)}" for c in range(97, 123)]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *words, *letters])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def pipeline() -> Any:
    """Fresh, from a fixed seed, on images of 64 pixels."""
    torch.manual_seed(0)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_attention_mask=True,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    return SimpleNamespace(
        tokenizer=words,
        text_encoder=BertModel(config, add_pooling_layer=False).eval(),
        unet=unet.eval(),
        vae=PatchAutoencoder().eval(),
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
        ),
    )
