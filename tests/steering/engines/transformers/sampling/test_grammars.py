"""Constraints: what they allow and refuse, their bounds, and rows of a batch that follow them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from steering.constraint import Constraint, ConstraintError
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.grammars import KEPT, Grammars
from steering.hidden.bank import HiddenBank
from tests.steering.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import tiny_model

END = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WORD = Constraint.regex(r"[a-c]{3,6}\d")
CHOICE = Constraint.choice(["yes", 'no "thanks"', "maybe\nlater"])


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(byte_tokenizer(), VOCABULARY, frozenset([END]))


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(tiny_model(vocab_size=VOCABULARY), HiddenBank(), capacity=4)
    yield engine
    engine.close()


def matches(grammars: Grammars, constraint: Constraint, text: str) -> bool:
    matcher = grammars.compile(constraint).matcher()
    tokens = byte_tokenizer().encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("constraint", "taken", "refused"),
    [
        (Constraint.json_schema(PERSON),
         ['{"name":"Ann","age":3,"tags":["a"]}', '{"name": "é", "age": 150, "tags": ["a", "b"]}'],
         ['{"name": "Ann", "age": 151, "tags": ["a"]}', '{"name": "Ann", "age": 3, "tags": []}',
          '{"name": "Annabel", "age": 3, "tags": ["a"]}', '{"name": "Ann", "age": 3', "",
          '{"name": "Ann", "age": 3, "tags": ["a"], "x": 1}', '{\n"name": "A"}']),
        (Constraint.json_schema(
            {"$defs": {"n": {"anyOf": [{"type": "null"}, {"type": "array",
             "items": {"$ref": "#/$defs/n"}}]}}, "$ref": "#/$defs/n"}),
         ["null", "[null, [[]]]"], ["[", "[1]"]),
        (Constraint.json_object(), ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", '{"a": }']),
        (Constraint.json_schema(True), ["1", "[]", '"x"'], ["x", "01"]),
        (WORD, ["abc1", "aaaaaa9"], ["ab1", "abc", "abc१", "abc12"]),
        (Constraint.regex(r"(\w/)+"), ["a/", "a/b/"], ["é/", "/"]),
        (CHOICE, ["yes", 'no "thanks"', "maybe\nlater"], ["no", "yes ", "maybe\\nlater", ""]),
        (Constraint.lark('start: "<call>" %json {"type": "integer"} "</call>"'),
         ["<call>12</call>"], ["<call></call>", "12"]),
    ],
)  # fmt: skip
def test_a_constraint_allows_its_language_alone(
    grammars: Grammars, constraint: Constraint, taken: list[str], refused: list[str]
) -> None:
    assert [text for text in taken if not matches(grammars, constraint, text)] == []
    assert [text for text in refused if matches(grammars, constraint, text)] == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [({"not": {"type": "string"}}, "not"),
     ({"if": {}, "then": {}}, "if"),
     ({"type": "array", "uniqueItems": True}, "uniqueItems"),
     ({"type": "object", "x-guidance": {"lenient": True}, "propertyNames": {}}, "propertyNames"),
     ({"unevaluatedProperties": False}, "unevaluatedProperties"),
     ({"type": "string", "format": "credit-card"}, "credit-card"),
     ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
     ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
     ({"$ref": "https://example.com/x.json"}, "https://example.com/x.json"),
     ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
     ({"$ref": "#/$defs/missing"}, "missing"),
     ({"type": "strin"}, "strin"),
     ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5)")],
)  # fmt: skip
def test_what_is_not_supported_is_an_error_that_names_it(
    grammars: Grammars, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConstraintError) as caught:
        grammars.compile(Constraint.json_schema(schema))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def _laughs(levels: int) -> dict[str, Any]:
    parts: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, levels):
        item = {"$ref": f"#/$defs/a{level - 1}"}
        parts[f"a{level}"] = {"type": "array", "prefixItems": [item, item], "minItems": 2}
    return {"$defs": parts, "$ref": f"#/$defs/a{levels - 1}"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{i}": {} for i in range(1000)}},
        {"type": "string", "pattern": "^(((a{0,100}){0,100}){0,100}){0,100}$"},
        {"type": "string", "pattern": "^.*(a.{200}b|c.{300}d|e.{500}f).*(g.{400}h)$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**18},
        {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {}}} for j in range(8)]}
                   for i in range(8)]},
        _laughs(30),
        {"$ref": "#"},
    ],
)  # fmt: skip
def test_hostile_schemas_end_soon(
    grammars: Grammars, engine: TransformersEngine, schema: dict[str, Any]
) -> None:
    """Refused, or followed until a step costs too much: never a step of seconds."""
    began = time.process_time()
    try:
        grammar = grammars.compile(Constraint.json_schema(schema))
    except ConstraintError:
        return
    finally:
        assert time.process_time() - began < 5
    engine.reset()
    engine.prefill([start([5, 6], sampling=RowSampling(grammar=grammar))])
    for _ in range(20):
        began = time.process_time()
        (token,) = engine.decode()
        assert time.process_time() - began < 1
        if token.unmatched:
            break


@pytest.mark.parametrize(
    ("build", "value"),
    [(Constraint.json_schema, {"enum": ["x" * 2**16]}), (Constraint.regex, "a" * 5000),
     (Constraint.json_schema, {"properties": {str(i): {} for i in range(1001)}}),
     (Constraint.choice, []), (Constraint.choice, ["a", ""]), (Constraint.choice, ["a"] * 1001)],
)  # fmt: skip
def test_constraints_have_bounds(build: Any, value: Any) -> None:
    with pytest.raises(ConstraintError):
        build(value)


def test_the_last_grammars_are_kept_and_failed_ones_are_not() -> None:
    grammars = Grammars(byte_tokenizer(), VOCABULARY, frozenset([END]))
    first = grammars.compile(WORD)
    assert grammars.compile(Constraint.regex(WORD.text, param="elsewhere")) is first
    for number in range(KEPT - 1):
        grammars.compile(Constraint.regex(f"a{number}"))
    assert WORD in grammars
    grammars.compile(CHOICE)
    assert WORD not in grammars and CHOICE in grammars
    grammars.compile(CHOICE).failed = True
    assert CHOICE not in grammars and not grammars.compile(CHOICE).failed


def constrained(grammars: Grammars, constraint: Constraint, **sampling: Any) -> RowStart:
    grammar = grammars.compile(constraint)
    return start([7, 8, 9], sampling=RowSampling(grammar=grammar, **sampling))


def text_of(tokens: list[int]) -> str:
    assert END in tokens, "the answer has an end"
    return str(byte_tokenizer().decode(tokens[: tokens.index(END)]))


def test_each_row_of_a_batch_follows_its_own_grammar(
    grammars: Grammars, engine: TransformersEngine
) -> None:
    """With random weights, hot: without masks nothing of this would come out."""
    for seed in range(4):
        engine.reset()
        hot = {"temperature": 1.5, "seed": seed, "top_logprobs": 0}
        bias = ((END, 30.0),)  # ends as soon as the grammar allows
        starts = [
            constrained(grammars, Constraint.json_schema(PERSON), logit_bias=bias, **hot),
            start([7, 8, 9], sampling=RowSampling(temperature=1.5, seed=seed, top_logprobs=0)),
            constrained(grammars, WORD, logit_bias=bias, **hot),
            constrained(grammars, CHOICE, **hot),
        ]
        rows, _ = serve(engine, starts, joins=[0, 1, 2, 0], tokens=[110, 20, 9, 14])
        person, plain, word, choice = ids(rows)
        jsonschema.validate(json.loads(text_of(person)), PERSON)
        assert matches(grammars, WORD, text_of(word))
        assert text_of(choice) in json.loads(CHOICE.text)
        engine.reset()
        bare = [replace(one, sampling=replace(one.sampling, grammar=None)) for one in starts]
        without, _ = serve(engine, bare, joins=[0, 1, 2, 0], tokens=[110, 20, 9, 14])
        assert ids(without)[1] == plain
        assert [t.logprob for t in without[1]] == [t.logprob for t in rows[1]], "bit for bit"


def test_a_prompt_that_is_read_in_parts_has_a_grammar_too(
    grammars: Grammars, engine: TransformersEngine
) -> None:
    engine.reset()
    engine.prefill([start([5, 6])])
    engine.begin(constrained(grammars, CHOICE))
    while (token := engine.read(1)) is None:
        engine.decode()
    tokens = [token.token, *(engine.decode()[1].token for _ in range(13))]
    assert text_of(tokens) in json.loads(CHOICE.text)


def test_a_row_whose_grammar_fails_says_so_and_its_neighbours_go_on(
    grammars: Grammars, engine: TransformersEngine
) -> None:
    engine.reset()
    item = {"type": "object", "properties": {f"p{i}": {} for i in range(900)}}
    wild = Constraint.json_schema({"type": "array", "items": item})
    (closing,) = byte_tokenizer().encode("]", add_special_tokens=False)
    rows, _ = serve(
        engine,
        [
            constrained(grammars, wild, logit_bias=((closing, -100.0),)),
            constrained(grammars, CHOICE),
        ],
        tokens=14,
    )
    assert any(token.unmatched for token in rows[0])
    assert not any(token.unmatched for token in rows[1])
    assert text_of(ids(rows)[1]) in json.loads(CHOICE.text)
    assert wild not in grammars, "what its lexer has learned is let go"


def test_a_tokenizer_of_an_unknown_kind_is_an_error() -> None:
    from tests.server.tiny_text_service import tokenizer

    with pytest.raises(ValueError):
        Grammars(tokenizer(), 200, frozenset([END]))
    with pytest.raises(ValueError, match="ends an answer"):
        Grammars(byte_tokenizer(), VOCABULARY, frozenset())


def test_refusals_are_kept_too(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Constraint.json_schema({"not": {"type": "string"}}, param="response_format")
    with pytest.raises(ConstraintError) as first:
        grammars.compile(refused)
    assert refused in grammars
    monkeypatch.setattr(grammars, "_compiled", None)  # so that nothing can be compiled any more
    with pytest.raises(ConstraintError) as again:
        grammars.compile(refused)
    assert str(again.value) == str(first.value) and "not" in str(again.value)


def test_a_schema_too_large_says_what_to_change(grammars: Grammars) -> None:
    properties = {f"p{i}": {"type": "integer"} for i in range(999)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    with pytest.raises(ConstraintError, match="fewer properties") as caught:
        grammars.compile(Constraint.json_schema(schema, param="response_format"))
    assert "items" not in str(caught.value)
