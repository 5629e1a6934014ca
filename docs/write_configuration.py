"""Write docs/configuration.md from the schema; `--check` says whether it is stale."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from guard.config.schema import Config

TARGET = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

Written by `make docs` from the schema in `guard/config/schema.py`.

One TOML file configures the server, the proxy and the vLLM plugin. The repository's
[`config.toml`](../config.toml) is a commented example. `guard check FILE` reports every problem
of a file with its line, and prints the meaning of a file without problems. Unknown keys are errors.
Relative paths start at the file's own folder. A *name* has letters, digits and `. _ : / -`, at most
128 of them.

The same file can be read from Python:

```python
from guard.config.schema import load_config

config = load_config("config.toml")
print(config.policy_names, config.server.port)
```
"""
MEANINGS = Path(__file__).with_name("site") / "configuration.toml"
"""One sentence for each key, by section."""

_TYPES = {
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "string": "text",
    "object": "table",
}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


def text() -> str:
    """The whole page."""
    schema = Config.model_json_schema()
    meanings = tomllib.loads(MEANINGS.read_text(encoding="utf-8"))
    return HEAD + "".join(
        _section(heading, model, meanings[name], schema) for heading, name, model in _sections()
    )


def _sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Heading, name and model of every section."""
    for name, field in Config.model_fields.items():
        kind = get_origin(field.annotation)
        heading = {tuple: f"[[{name}]]", dict: f"[{name}.NAME]"}.get(kind, f"[{name}]")
        model = _model(field.annotation)
        yield heading, name, model
        for inner, part in model.model_fields.items():
            if inspect.isclass(part.annotation) and issubclass(part.annotation, BaseModel):
                yield f"[{name}.NAME.{inner}]", f"{name}.{inner}", part.annotation
            elif _is_array_of_tables(part.annotation):
                yield f"[[{name}.{inner}]]", f"{name}.{inner}", _model(part.annotation)


def _is_array_of_tables(annotation: Any) -> bool:
    item = next(iter(get_args(annotation)), None)
    return get_origin(annotation) is tuple and inspect.isclass(item) and issubclass(item, BaseModel)


def _model(annotation: Any) -> type[BaseModel]:
    kinds = [kind for kind in (annotation, *get_args(annotation)) if inspect.isclass(kind)]
    return next(kind for kind in kinds if issubclass(kind, BaseModel))


def _section(
    heading: str, model: type[BaseModel], meanings: dict[str, str], schema: dict[str, Any]
) -> str:
    if unequal := model.model_fields.keys() ^ meanings.keys() - {"_"}:
        sys.exit(f"{MEANINGS}: {heading}: not the keys of the schema: {', '.join(unequal)}")
    properties = schema["$defs"][model.__name__]
    lines = [f"\n## `{heading}`\n", meanings["_"], ""]
    lines += ["| key | type | default | limits | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        shape = _unwrapped(properties["properties"][name], schema)
        needed = name in properties.get("required", ())
        meaning = meanings[name]
        if isinstance(field.validation_alias, AliasChoices):
            older = ", ".join(f"`{alias}`" for alias in field.validation_alias.choices[1:])
            meaning += f" The older name {older} is accepted too."
        cells = (
            f"`{name}`",
            _type(shape, schema),
            "required" if needed else _default(field.get_default(call_default_factory=True)),
            _limits(shape),
            meaning,
        )
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def _unwrapped(shape: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The shape itself, behind references and "or null"."""
    if "$ref" in shape:
        shape = schema["$defs"][shape["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in shape:
        kinds = [each for each in shape["anyOf"] if each.get("type") != "null"]
        if len(kinds) == 1:
            return _unwrapped(kinds[0], schema)
    return shape


def _type(shape: dict[str, Any], schema: dict[str, Any]) -> str:
    if "enum" in shape:
        return ", ".join(f'`"{each}"`' for each in shape["enum"])
    if shape.get("format") == "path":
        return "path"
    if shape.get("pattern") == _NAME:
        return "name"
    if shape.get("type") == "array":
        return f"list of {_type(_unwrapped(shape['items'], schema), schema)}"
    if "anyOf" in shape:
        kinds = [each for each in shape["anyOf"] if each.get("type") != "null"]
        return " or ".join(_type(each, schema) for each in kinds)
    return _TYPES.get(shape.get("type", ""), "value")


def _default(value: Any) -> str:
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "all of these" if len(value) > 3 else f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _limits(shape: dict[str, Any]) -> str:
    limits = []
    for key, word in (("minimum", "from"), ("exclusiveMinimum", "over"), ("maximum", "to")):
        if key in shape:
            limits.append(f"{word} {shape[key]:,.10g}")
    if "maxLength" in shape:
        limits.append(f"at most {shape['maxLength']:,} characters")
    elif shape.get("minLength") or shape.get("minItems"):
        limits.append("not empty")
    pattern = shape.get("pattern")
    if pattern and pattern != _NAME:
        limits.append(f"`{pattern}`")
    return " ".join(limits)


def main() -> None:
    """Write the page, or exit with 1 where `--check` finds it stale."""
    fresh = text()
    if "--check" not in sys.argv:
        TARGET.write_text(fresh, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != fresh:
        sys.exit("docs/configuration.md is stale: run `make docs`")


if __name__ == "__main__":
    main()
