"""Checks of a policy's screens of texts and images: actions that they cannot take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from guard.config.kinds import Kind
from guard.config.parsed import table
from guard.config.toml_lines import KeyPath
from steering.methods import SCREENS

ONLY_TEXT = ("redact", "route", "policy")
"""Actions that only screens of text can take."""

_TEXT = frozenset[Kind | None]({"text", None})
"""Kinds of guards that are screens of text, or whose artifact could not be read."""
_SCREENS = SCREENS | {None}


def screen_problems(
    name: str,
    policy: Mapping[str, Any],
    kinds: Mapping[str, Kind | None],
    patterns: Collection[str],
    fitted_for: Mapping[str, object],
) -> Iterator[tuple[KeyPath, str]]:
    """The faults of `[policies.NAME]` and its `screen`.

    `kinds` are those of all guards, `patterns` the names of guards that are patterns, `fitted_for`
    has the places of guards that say which they are for. Values of the wrong type are ignored.
    """
    entries = policy.get("guards")
    entries = entries if isinstance(entries, list) else []
    guards = [guard for guard in entries if isinstance(guard, str)]
    screen = table(policy, "screen")
    actions, looks = table(screen, "actions"), table(screen, "looks")
    default = policy.get("action", "steer")
    inside = [guard for guard in guards if kinds.get(guard, "text") not in _SCREENS]
    if default in ONLY_TEXT and inside:
        yield (
            ("policies", name, "action"),
            f'"{default}" is for screens of text, and not all guards of the policy are: set it '
            "for these in [policies.NAME.screen], actions",
        )
    for key, of_guards in (("actions", actions), ("looks", looks)):
        for guard in of_guards:
            path = ("policies", name, "screen", key, guard)
            if guard not in guards:
                yield path, "is no guard of this policy: add it there, or leave it out here"
            elif guard in inside:
                yield path, "is no screen of texts or images: leave it out here"
    for guard in guards:
        action = actions.get(guard, default)
        if kinds.get(guard) == "pixels" and action in ONLY_TEXT:
            path = ("policies", name, "screen", "actions", guard)
            at = path if guard in actions else ("policies", name, "action")
            yield at, f'{guard} reads images, for which "{action}" is not: use block, flag, observe'
    if screen.get("ocr") is True and not any(kinds.get(g, "text") in _TEXT for g in guards):
        yield (
            ("policies", name, "screen", "ocr"),
            "has the policy's screens of text read images, and it has none: add one",
        )
    taken = {guard: actions.get(guard, default) for guard in guards if kinds.get(guard) == "text"}
    for guard, action in taken.items():
        path = ("policies", name, "screen", "actions", guard)
        at = path if guard in actions else ("policies", name, "action")
        if action == "redact" and guard not in patterns:
            yield at, f"{guard} does not know positions in a text: only patterns can redact"
        if action == "route" and not {"upstream", "model"} & screen.keys():
            yield at, 'needs a destination: add upstream or model to the policy\'s "screen"'
        places = looks.get(guard) or screen.get("look") or fitted_for.get(guard)
        if action in {"route", "policy"} and places == ["response"]:
            yield at, f'"{action}" is too late for answers, and {guard} reads only these'
        if action == "policy" and "upstream_policy" not in screen:
            yield at, 'needs a policy: add upstream_policy to the policy\'s "screen"'
    changes = sorted({action for action in taken.values() if action in ONLY_TEXT})
    if screen.get("race") is True and changes:
        yield (
            ("policies", name, "screen", "race"),
            f'"{changes[0]}" changes the request, which has been sent by then: leave it out',
        )
    if screen.get("restore") is True and "redact" not in taken.values():
        yield ("policies", name, "screen", "restore"), 'is for the action "redact": leave it out'
