"""What is said of faults in files that people write: unknown keys with the known one they resemble.

Shared by the configuration, concept files and files of prompts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic_core import ErrorDetails

_MISSPELT = 0.75
"""From this likeness on a key of a row, whose further keys are passed over, is a misspelt one."""


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that `name` resembles most, in whatever case; None where it resembles none."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to write in place of an unknown `name`: the one it resembles, or all there are."""
    names = list(dict.fromkeys(known))
    close = closest(name, names)
    if close is not None:
        return f'did you mean "{close}"?'
    return f"there is {', '.join(names)}" if names else "none is configured"


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys that a file may have for a model: names of fields, and their other spellings."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
        keys += [choice for choice in choices if isinstance(choice, str)]
    return keys


def misspelt(row: Mapping[str, Any], model: type[BaseModel]) -> Iterable[str]:
    """A fault for each key of a row that nearly is one of `model`, and would be passed over."""
    keys = keys_of(model)
    for key in row:
        if key in keys:
            continue
        close = closest(key, keys, _MISSPELT)
        if close is not None and close not in row:
            yield f'unknown key "{key}": did you mean "{close}"?'


def told(fault: ErrorDetails, model: type[BaseModel], whole: str = "row") -> str:
    """A fault of pydantic as `key: what to change`; `model` is that of the `whole`, a row or a
    file."""
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        *outer, key = fault["loc"]
        return f"{where}: unknown key: {suggestion(str(key), keys_of(_inner(model, outer)))}"
    if fault["type"] == "missing":
        return f"{where}: is missing: add it"
    return f"{where or whole}: {fault['msg']}"


def _inner(model: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel]:
    """The model of a part of a file."""
    for name in path:
        field = model.model_fields.get(str(name))
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
    return model
