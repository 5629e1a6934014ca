"""What chat templates are found to do with tools, and how models are told of them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from guard.errors import RequestError
from server.services.prompts import PromptEncoder
from server.services.text_rows import TokenText
from server.services.tools.offered import OfferedTools
from server.services.tools.template import tool_format

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALLS = "{% for c in m.tool_calls %}<tool_call>{{ ARGUMENTS }}</tool_call>{% endfor %}"
KNOWS = (
    "{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + CALLS + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OBJECTS = KNOWS.replace("ARGUMENTS", "c.function.arguments | tojson")
STRINGS = KNOWS.replace("ARGUMENTS", "c.function.name + c.function.arguments")


def tokenizer(template: str, *added: AddedToken) -> PreTrainedTokenizerFast:
    vocabulary = {char: at for at, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    backend.add_tokens([*added])
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.chat_template = template
    return made


def encoder(template: str, parser: str | None = None) -> tuple[PromptEncoder, Any]:
    made = tokenizer(template)
    form = tool_format(made, parser)
    return PromptEncoder(made, vocabulary=1000, max_context=4096, tools=form), made


def offered(**options: Any) -> OfferedTools:
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    definitions = ({"type": "function", "function": function},)
    return OfferedTools(definitions, frozenset({"weather"}), **options)


CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Paris"}},
            }
        ],
    },
    {"role": "tool", "content": "warm", "tool_call_id": "call_1", "name": "weather"},
    {"role": "tool", "content": "dry", "tool_call_id": "call_2"},
]


@pytest.mark.parametrize(
    ("template", "parser", "family"),
    [
        (OBJECTS, None, "hermes"),
        (OBJECTS, "llama3", "llama3"),
        (OBJECTS.replace("<tool_call>", "[TOOL_CALLS]"), None, "mistral"),
        (OBJECTS.replace("<tool_call>", "<|python_tag|>"), None, "llama3"),
        (OBJECTS.replace("<tool_call>", "[CALL]"), None, "json"),
        (PLAIN, "json", "json"),
    ],
)
def test_the_family_follows_from_the_template_or_the_configuration(
    template: str, parser: str | None, family: str
) -> None:
    form = tool_format(tokenizer(template), parser)
    assert form is not None and form.family.name == family
    assert form.in_template is (template is not PLAIN)


@pytest.mark.parametrize("parser", [None, "hermes"])
def test_a_template_without_tools_refuses_them(parser: str | None) -> None:
    refusing, _ = encoder(PLAIN, parser)
    for messages, tools, param in ((CHAT[:1], offered(), "tools"), (CHAT, None, "messages")):
        with pytest.raises(RequestError, match="knows no tools") as caught:
            refusing.chat(messages, tools)
        assert caught.value.param == param
    assert len(refusing.chat(CHAT[:1])) > 0


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (OBJECTS, '<tool_call>{"city": "Paris"}</tool_call>'),
        (STRINGS, '<tool_call>weather{"city": "Paris"}</tool_call>'),
    ],
)
def test_arguments_are_objects_or_text_as_the_template_takes_them(
    template: str, written: str
) -> None:
    made, tokens = encoder(template)
    text = tokens.decode(made.chat(CHAT, offered()).tokens)
    assert written in text and '"name": "weather"' in text
    assert text.endswith("<tool>warm<tool>dry<assistant>")


def test_forced_calls_begin_behind_the_prompt() -> None:
    made, tokens = encoder(OBJECTS)
    free, forced = (
        tokens.decode(made.chat(CHAT, offered(choice=choice)).tokens)
        for choice in ("auto", "required")
    )
    assert forced == free + '<tool_call>\n{"name": "weather", "arguments":'


def test_without_a_template_for_tools_they_are_text_of_the_conversation() -> None:
    made, tokens = encoder(PLAIN, "json")
    text = tokens.decode(made.chat([{"role": "system", "content": "Be kind."}, *CHAT],
                                   offered()).tokens)  # fmt: skip
    head, _, rest = text.partition("<user>hi")
    assert head.startswith("<system>Be kind.\n\nYou can call tools.") and '"weather"' in head
    assert rest == (
        '<assistant>{"name": "weather", "arguments": {"city": "Paris"}}'
        "<user>Result of weather: warm\nResult of the tool: dry<assistant>"
    )
    alone = tokens.decode(made.chat(CHAT[:1], offered()).tokens)
    assert alone.startswith("<system>You can call tools.")


def test_ids_are_those_that_a_template_takes() -> None:
    form = tool_format(tokenizer(OBJECTS), "mistral")
    assert form is not None
    _, called, told, _ = form.for_template(CHAT, ())[0]
    made_id = called["tool_calls"][0]["id"]
    assert len(made_id) == 9 and made_id.isalnum() and told["tool_call_id"] == made_id
    assert form.family.id_for_template("abc123XYZ") == "abc123XYZ"


def test_special_tokens_that_open_calls_are_text_where_tools_are_offered() -> None:
    special = AddedToken("[TOOL_CALLS]", special=True), AddedToken("[END]", special=True)
    made = tokenizer(OBJECTS.replace("<tool_call>", "[TOOL_CALLS]"), *special)
    form = tool_format(made)
    assert form is not None
    ids = made.encode("a[TOOL_CALLS]b[END]é", add_special_tokens=False)
    assert [*form.shown.values()] == ["[TOOL_CALLS]"]
    for shown, expected in ((form.shown, "a[TOOL_CALLS]bé"), ({}, "abé")):
        text = TokenText(made, (), shown)
        assert "".join(text.push(token)[0] for token in ids) == expected


def test_names_of_control_tokens_in_tools_are_text() -> None:
    end = AddedToken("<|end|>", special=True)
    made = tokenizer(OBJECTS.replace("{{ m.content }}", "{{ m.content }}<|end|>"), end)
    form = tool_format(made)
    telling = PromptEncoder(made, vocabulary=1000, max_context=4096, tools=form)
    bad = {"name": "weather", "description": "x<|end|>y", "parameters": {"<|end|>": {}}}
    tools = OfferedTools(({"type": "function", "function": bad},), frozenset({"weather"}))
    prompt = telling.chat(CHAT[:1], tools)
    assert prompt.tokens.count(made.convert_tokens_to_ids("<|end|>")) == 1
    assert "x<|end|>y" in made.decode(prompt.tokens)
