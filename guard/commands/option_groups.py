"""Options that several commands have in common, each told once, as fields of a dataclass.

A command takes such a dataclass as one parameter; `grouped` shows typer its fields in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass spread out into options: those of its
    fields that must be given come first, the others last, as in the commands' help.

    Fields are annotated as options of a command are. Raises ValueError for a name that stands in
    two places.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    required, own, others = list[Parameter](), list[Parameter](), list[Parameter]()
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            own.append(
                parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            )
            continue
        group = groups[parameter.name]
        of_fields = get_type_hints(group, include_extras=True)
        for field in fields(group):
            is_required = field.default is MISSING
            default = Parameter.empty if is_required else field.default
            option = Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=default,
                annotation=of_fields[field.name],
            )
            (required if is_required else others).append(option)

    @wraps(command)
    def spread(**options: Any) -> None:
        for name, group in groups.items():
            taken = {field.name: options.pop(field.name) for field in fields(group)}
            options[name] = group(**taken)
        command(**options)

    spread.__signature__ = inspect.Signature([*required, *own, *others])  # type: ignore[attr-defined]
    return spread
