"""A row of many questions is read as if each question were asked by itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DPTConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from examples.portraits import images
from examples.portraits.model import adapt, answers_of, merge
from examples.portraits.questions import Question
from examples.portraits.sequences import (
    BALANCED,
    IMAGE_TOKENS,
    MOSTLY_NAMES,
    Encoder,
    Row,
    Rows,
    batch_of,
)
from examples.portraits.tower import CONFIG
from examples.portraits.train import NAMES_UNTIL, mix_at

WORDS = 300
TOKENIZER_IMAGE = WORDS - 1


class Bytes:
    """A tokenizer of bytes, which is enough for masks."""

    def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(text.encode()))

    def convert_tokens_to_ids(self, name: str) -> int:
        assert name == "<image>"
        return TOKENIZER_IMAGE


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    config = LlavaConfig(
        vision_config=DPTConfig(**CONFIG),
        text_config=text,
        image_token_index=TOKENIZER_IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


QUESTIONS = [Question("Who?", "Ada.", "name", "Ada"), Question("And where is it?", "Oslo.", "", "")]


@pytest.mark.parametrize("sees", [True, False])
def test_questions_of_a_row_do_not_see_each_other(model, sees):
    encoder = Encoder(Bytes())
    image = images.portrait(0, 0, np.random.default_rng(0)) if sees else None
    branches = [encoder.branch(question, image=sees) for question in QUESTIONS]
    with torch.inference_mode():
        together, labels = answers_of(model, batch_of([Row(image, branches)], encoder))
        alone = [answers_of(model, batch_of([Row(image, [b])], encoder)) for b in branches]
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in alone]))
    assert bytes(labels.tolist()) == b"Ada.<|im_end|>Oslo.<|im_end|>"


def test_a_row_is_read_as_llava_reads_its_question(model):
    encoder = Encoder(Bytes())
    image = images.portrait(0, 0, np.random.default_rng(0))
    batch = batch_of([Row(image, [encoder.branch(QUESTIONS[0], image=True)])], encoder)
    with torch.inference_mode():
        ours, _ = answers_of(model, batch)
        theirs = model(input_ids=batch.ids, pixel_values=batch.pixels).logits
    torch.testing.assert_close(ours, theirs[batch.labels >= 0])


def test_a_merged_adapter_gives_what_it_gave_beside_the_weight(model):
    encoder = Encoder(Bytes())
    batch = batch_of([Row(None, [encoder.branch(QUESTIONS[0], image=False)])], encoder)
    trained = adapt(model)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name.endswith("_b"):
                parameter.normal_(std=0.1)
        beside, _ = answers_of(model, batch)
        merge(model)
        merged, _ = answers_of(model, batch)
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)


def test_a_run_goes_from_names_to_the_balanced_mix():
    assert mix_at(NAMES_UNTIL - 1) is MOSTLY_NAMES
    assert mix_at(NAMES_UNTIL) is BALANCED


def test_rows_hold_the_kinds_of_the_mix_in_turn():
    rows = Rows(Encoder(Bytes()), [Question("Hello?", "Hi.", "everyday", "")], seed=0)
    kinds = [rows.draw(("names", "portraits", "scenes")).image is not None for _ in range(6)]
    assert kinds == [False, True, True] * 2
