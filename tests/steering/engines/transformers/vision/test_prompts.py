"""Chats with images become prompts: where images stand, in templates of both kinds, and what is
refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steering.engines.transformers.vision import vision_family
from steering.engines.transformers.vision.prompts import VisionPrompts
from steering.prompt import Prompt
from tests.steering.engines.transformers.vision.tiny import Image, ask, image, tiny

STRINGS = (
    "{% for message in messages %}{{ message['role'] | upper }}: {{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
"""A template of a language model."""
JSON = STRINGS.replace(
    "message['content'] }}",
    "message['content'] if message['content'] is string else message['content'] | tojson }}",
)
"""Another one, which writes what is no string as JSON."""
PARTS = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
"""A template that takes lists of parts alone."""
FIRST, SECOND = image(16, 16, 1), image(30, 9, 2)


def prompts(template: str | None = None, kind: str = "llava") -> VisionPrompts:
    small = tiny(kind)
    tokenizer = small.tokenizer
    if template is not None:
        tokenizer.chat_template = template
    family = vision_family(small.model.config, small.processor.image_processor, tokenizer)
    return VisionPrompts(tokenizer, family)


def text(made: VisionPrompts, prompt: Prompt) -> str:
    """The prompt as text, each image as `[i]`."""
    tokens = list(prompt.tokens)
    decode = made._tokens._tokenizer.decode
    out, end = "", 0
    for item in prompt.media:
        out += decode(tokens[end : item.start]) + f"[{item.stop - item.start}]"
        end = item.stop
    return out + str(decode(tokens[end:]))


def part(pixels: Image) -> dict[str, Any]:
    return {"type": "image", "image": pixels}


@pytest.mark.parametrize("template", [None, STRINGS, PARTS, JSON])
def test_images_stand_where_their_parts_do(template: str | None) -> None:
    made = prompts(template)
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "One: "}, part(FIRST)]},
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": [part(SECOND), {"type": "text", "text": "And now?"}]},
    ]
    prompt = made.chat(chat)
    assert text(made, prompt) == (
        "USER: One: [16]\n</s>ASSISTANT: Seen.</s>USER: [16]\nAnd now?</s>ASSISTANT: "
    )
    first, second = (item.content for item in prompt.media)
    assert first is FIRST and second is SECOND
    assert prompt.positions is None


@pytest.mark.parametrize("template", [None, STRINGS, PARTS])
def test_a_chat_of_text_is_as_in_a_language_model(template: str | None) -> None:
    made = prompts(template)
    for content in ("Hello", [{"type": "text", "text": "Hello"}]):
        prompt = made.chat([{"role": "user", "content": content}])
        assert text(made, prompt) == "USER: Hello</s>ASSISTANT: " and not prompt.media


@pytest.mark.parametrize("template", [None, STRINGS, PARTS])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_the_name_of_a_placeholder_is_text(template: str | None, role: str) -> None:
    """In a chat with an image too, whose place it does not take."""
    made = prompts(template)
    chat = [
        {"role": role, "content": [{"type": "text", "text": "<image> <image>"}]},
        *ask("<image>?", FIRST),
    ]
    prompt = made.chat(chat)
    assert len(prompt.media) == 1
    placeholders = [n for n, token in enumerate(prompt.tokens) if token == made.family.image_token]
    (item,) = prompt.media
    assert placeholders == list(range(item.start, item.stop))
    assert text(made, prompt).endswith("USER: [16]\n<image>?</s>ASSISTANT: ")


def test_a_template_that_leaves_out_images_is_an_error() -> None:
    made = prompts(PARTS.replace("<image>\n", ""))
    with pytest.raises(ValueError, match="writes 0 images where the messages have 1"):
        made.chat(ask("What?", FIRST))


def test_a_tokenizer_of_another_model_is_an_error() -> None:
    made = prompts()
    made.family.image_token += 1
    with pytest.raises(ValueError, match="has 0 placeholder tokens where its images need 16"):
        made.chat(ask("What?", FIRST))


@pytest.mark.parametrize("template", [None, STRINGS])
def test_parts_of_another_kind_are_refused(template: str | None) -> None:
    chat = [{"role": "user", "content": [{"type": "audio", "audio": b""}]}]
    with pytest.raises(ValueError, match="of type 'audio': give parts of type 'text' and 'image'"):
        prompts(template).chat(chat)


def test_a_part_without_a_type_is_refused() -> None:
    with pytest.raises(ValueError, match="is no object with a type"):
        prompts().chat([{"role": "user", "content": ["Hello"]}])


def test_a_message_without_content_goes_to_the_template() -> None:
    template = STRINGS.replace("message['content']", "message['content'] or 'none'")
    made = prompts(template)
    prompt = made.chat([{"role": "user", "content": None}])
    assert text(made, prompt) == "USER: none</s>ASSISTANT: "


def test_a_text_alone_has_no_images() -> None:
    made = prompts()
    prompt = made.text("<image> of text")
    assert not prompt.media and made.family.image_token not in prompt.tokens


def test_pixels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give uint8 \[height, width, 3\]"):
        prompts().chat(ask("What?", np.zeros((4, 4, 4), np.uint8)))
