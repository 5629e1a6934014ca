"""Checks of the keys of a policy that are for guards of language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guard.config.kinds import Kind
from guard.config.toml_lines import KeyPath
from steering.methods import SCREENS, method_named

_KEYS = ("actions", "scope", "rewind")

_ENGINES = 'serve the model with engine = "transformers", or leave it out'


def language_problems(
    name: str, policy: Mapping[str, Any], kinds: Mapping[str, Kind | None]
) -> Iterator[tuple[KeyPath, str]]:
    """The faults of `[policies.NAME]`; `kinds` are those of all guards, None where the artifact
    could not be read. Values of the wrong type are ignored."""
    guards = _names(policy)
    known = all(kinds.get(guard) is not None for guard in guards)
    inside = [guard for guard in guards if kinds.get(guard) == "language"]
    action = policy.get("action", "steer")
    if guards and known and not inside:
        if action == "say":
            yield ("policies", name, "action"), f'"say" {_FOR_LANGUAGE}: choose another action'
        for key in _KEYS:
            if key in policy:
                yield ("policies", name, key), f"{_FOR_LANGUAGE}: leave it out"
        return
    others = [g for g in guards if kinds.get(g) not in SCREENS | {"language", None}]
    if action == "say" and others:
        yield (
            ("policies", name, "action"),
            f'"say" is for guards of language models, and {others[0]} is none: choose another '
            'action, and set "say" for these in [policies.NAME], actions',
        )
    for guard in _actions(policy):
        path = ("policies", name, "actions", guard)
        if guard not in guards:
            yield path, "is no guard of this policy: add it there, or leave it out here"
        elif kinds.get(guard) in SCREENS:
            yield path, 'is a screen: set its action in "screen", actions'
        elif guard in others:
            yield path, "is no guard of a language model: leave it out here"
    if _says(action, _actions(policy)) and "message" not in policy:
        yield ("policies", name, "message"), 'is what the action "say" says: add it'


_FOR_LANGUAGE = "is for guards of language models, of which the policy has none"


def of_transformers(
    action: object, actions: Mapping[str, object], *, rewind: object, scope: object
) -> str | None:
    """Which of these keys of a policy only the engine transformers knows, in words; None where it
    is none of them. Values of the wrong type are ignored."""
    if _says(action, actions):
        return 'the action "say"'
    if actions:
        return "actions of single guards"
    if rewind is True:
        return "rewind = true"
    return 'scope = "turn"' if scope == "turn" else None


def overlays_linears(method: str) -> bool:
    """Whether guards of a method act on linear layers, which the engine transformers alone runs
    with overlays."""
    try:
        return method_named(method).seam == "linear"
    except ValueError:
        return False  # said where the guard is loaded


def unsupported(policy: Mapping[str, Any], methods: Mapping[str, str]) -> str | None:
    """What is wrong with a policy for vLLM, whose guards have these methods; None for nothing."""
    overlays = [name for name in _names(policy) if overlays_linears(methods.get(name, ""))]
    if overlays:
        return f"has {overlays[0]}, which overlays linear layers, and vLLM does not: {_ENGINES}"
    rewind, scope = policy.get("rewind"), policy.get("scope")
    words = of_transformers(policy.get("action"), _actions(policy), rewind=rewind, scope=scope)
    return None if words is None else f"has {words}, which vLLM does not know: {_ENGINES}"


def _says(action: object, actions: Mapping[str, object]) -> bool:
    return action == "say" or "say" in actions.values()


def _names(policy: Mapping[str, Any]) -> list[str]:
    guards = policy.get("guards")
    return [guard for guard in guards if isinstance(guard, str)] if isinstance(guards, list) else []


def _actions(policy: Mapping[str, Any]) -> Mapping[str, Any]:
    actions = policy.get("actions")
    return actions if isinstance(actions, dict) else {}
