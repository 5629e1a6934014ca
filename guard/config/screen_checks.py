"""What is wrong with how a policy screens text: actions that its guards cannot take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from guard.config.kinds import Kind
from guard.config.toml_lines import KeyPath
from guard.errors import ArtifactError

ONLY_TEXT = ("redact", "route", "policy")
"""Actions that only screens of text can take."""


def unreadable(source: str, folder: Path) -> str | None:
    """Why the list of patterns `source`, a shipped name or a file in `folder`, cannot be used."""
    try:
        # imported where it is wanted: it takes libraries that only screens of text need
        from guard.config.pattern_lists import read_patterns
    except ImportError as error:
        return f"needs {error.name}: pip install 'inference-guard[proxy]'"
    try:
        read_patterns(str(folder / source) if source.endswith(".toml") else source)
    except ArtifactError as error:
        return error.message
    return None


def screen_problems(
    name: str,
    policy: Mapping[str, Any],
    kinds: Mapping[str, Kind | None],
    patterns: Collection[str],
) -> Iterator[tuple[KeyPath, str]]:
    """Faults of `[policies.NAME]` and its `screen`; `kinds` of guards and the names of those that
    are `patterns` are known, what has the wrong type is passed over."""
    given = policy.get("guards")
    guards = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
    screen = policy.get("screen")
    screen = screen if isinstance(screen, dict) else {}
    actions = screen.get("actions")
    actions = actions if isinstance(actions, dict) else {}
    own = policy.get("action", "steer")
    if own in ONLY_TEXT and any(kinds.get(each, "text") not in {"text", None} for each in guards):
        yield (
            ("policies", name, "action"),
            f'"{own}" is for screens of text, and not all of its guards are: give it to those '
            "that are in [policies.NAME.screen], actions",
        )
    looks = screen.get("looks")
    looks = looks if isinstance(looks, dict) else {}
    for table, own_guards in (("actions", actions), ("looks", looks)):
        for guard in own_guards:
            place = ("policies", name, "screen", table, guard)
            if guard not in guards:
                yield place, "is no guard of this policy: add it there, or leave it out here"
            elif kinds.get(guard, "text") not in {"text", None}:
                yield place, "is no screen of text: leave it out here"
    done = {guard: actions.get(guard, own) for guard in guards if kinds.get(guard) == "text"}
    for guard, action in done.items():
        at: KeyPath = ("policies", name, "screen", "actions", guard)
        at = at if guard in actions else ("policies", name, "action")
        if action == "redact" and guard not in patterns:
            yield at, f"{guard} tells that something is there, not where: only patterns redact"
        if action == "route" and not {"upstream", "model"} & screen.keys():
            yield at, 'needs to know where to: add upstream or model to the policy\'s "screen"'
        if action in {"route", "policy"} and looks.get(guard, screen.get("look")) == ["response"]:
            yield at, f'"{action}" comes too late for answers, and {guard} looks at nothing else'
        if action == "policy" and "upstream_policy" not in screen:
            yield at, 'needs to know which: add upstream_policy to the policy\'s "screen"'
    changes = sorted({each for each in done.values() if each in ONLY_TEXT})
    if screen.get("race") is True and changes:
        yield (
            ("policies", name, "screen", "race"),
            f'"{changes[0]}" changes the request, which has been sent by then: leave it out',
        )
    if screen.get("restore") is True and "redact" not in done.values():
        yield ("policies", name, "screen", "restore"), 'is for the action "redact": leave it out'
