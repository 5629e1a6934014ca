"""What an answer of a language model must match: a JSON schema, a pattern, one of some texts.

A value without a model, a tokenizer or torch: the same constraint is compiled once for each model
that follows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_SCHEMA = 2**16
"""Characters of a schema as compact JSON, at most."""
MAX_MEMBERS = 1000
"""Members of an object inside of a schema: the grammar of optional properties is quadratic."""
MAX_PATTERN = 4096
"""Characters of a regular expression."""
MAX_CHOICES = 1000


class ConstraintError(ValueError):
    """A constraint that cannot be followed: invalid, too large, or with unsupported parts."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The language of the answers that are allowed. Build one with the class methods.

    `text` is, by `kind`: a JSON schema, a regular expression (the syntax of Rust's `regex`), a JSON
    list of texts, a grammar in llguidance's dialect of Lark. For errors: `param` is its place in
    the request, `parts` are constraints that it was made of, one of which may be at fault,
    and `owner` is what it is a part of, in words.
    """

    kind: Literal["json_schema", "regex", "choice", "lark"]
    text: str
    param: str | None = field(default=None, compare=False)
    parts: tuple[Constraint, ...] = field(default=(), compare=False)
    owner: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """`param` and `owner`, in the words of an error."""
        return f"'{self.param}'" + (f" of {self.owner}" if self.owner else "")

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool, *, param: str | None = None
    ) -> Constraint:
        """A JSON value that a schema (draft 2020-12) allows, in one line.

        Properties come in the order of the schema. Raises ConstraintError for a schema that is too
        large; what of JSON Schema is supported is known when it is compiled.
        """
        text = json.dumps(schema, separators=(",", ":"))
        if len(text) > MAX_SCHEMA:
            raise ConstraintError(
                f"the schema has {len(text)} characters as compact JSON; the most is {MAX_SCHEMA}"
            )
        _require_few_members(schema)
        return cls("json_schema", text, param)

    @classmethod
    def json_object(cls, *, param: str | None = None) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param=param)

    @classmethod
    def regex(cls, pattern: str, *, param: str | None = None) -> Constraint:
        """A text that the whole of `pattern` matches. Raises ConstraintError."""
        if len(pattern) > MAX_PATTERN:
            raise ConstraintError(
                f"the pattern has {len(pattern)} characters; the most is {MAX_PATTERN}"
            )
        return cls("regex", pattern, param)

    @classmethod
    def choice(cls, texts: Sequence[str], *, param: str | None = None) -> Constraint:
        """One of `texts`, none of them empty. Raises ConstraintError."""
        if not texts or not all(texts):
            raise ConstraintError("give one choice at least, and no empty one")
        text = json.dumps([*texts])
        if len(texts) > MAX_CHOICES or len(text) > MAX_SCHEMA:
            raise ConstraintError(
                f"give at most {MAX_CHOICES} choices, of {MAX_SCHEMA} characters together"
            )
        return cls("choice", text, param)

    @classmethod
    def lark(cls, grammar: str, *, param: str | None = None) -> Constraint:
        """A text of a grammar: never one that a client has written."""
        return cls("lark", grammar, param)


def _require_few_members(schema: Any) -> None:
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            if len(part) > MAX_MEMBERS:
                raise ConstraintError(
                    f"an object of the schema has {len(part)} members; the most is {MAX_MEMBERS}"
                )
            left += part.values()
        elif isinstance(part, list):
            left += part
