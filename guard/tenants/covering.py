"""Whether one policy does at least what another does: what a level requires, no level weakens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guard.config.policy_schema import OF_METHODS, Action, PolicyConfig, ScreenConfig
from guard.config.schema import Config
from guard.errors import GuardFailed, UnknownPolicy

_STRICTNESS: Mapping[Action, int] = {"observe": 0, "flag": 1, "block": 3}
"""Of actions that can be compared; the others only with themselves, and with these."""
_MORE = ("turns", "hold_back_chars", "ocr")
"""Settings of screens of which more reads more."""
_LESS = ("race", "restore", "first_stage")
"""Settings of screens of which less reads more, or lets less out."""
_SAME = ("upstream", "model", "upstream_policy")
"""Settings of screens without an order."""


def at_least(config: Config, policy: str, required: Sequence[str]) -> str:
    """`policy`, or the first of the `required` that does what all of them do.

    Raises GuardFailed where none does, or one of them is not in the configuration.
    """
    try:
        for name in (policy, *required):
            if all(covers(config, name, floor) for floor in required):
                return name
    except UnknownPolicy as error:
        raise GuardFailed(f"A policy that this key requires is missing here: {error}") from None
    raise GuardFailed(
        f"This key requires the policies {', '.join(required)}, and none of them does what all "
        "do: have the operator add one with the guards of all, and require that one."
    )


def covers(config: Config, policy: str, floor: str) -> bool:
    """Whether `policy` has every guard of `floor`, each as strict, and reads all that it reads.

    Raises UnknownPolicy.
    """
    if policy == floor:
        return True
    least, own = config.policy(floor), config.policy(policy)
    return (
        set(least.guards) <= set(own.guards)
        and all(_is_as_strict(own, least, guard) for guard in least.guards)
        and all(_fires_as_early(config, own, least, guard) for guard in least.guards)
        and not (least.on_error == "closed" and own.on_error == "open")
        and not (least.scope == "conversation" and own.scope == "turn")
        and not (least.fallback == "block" and own.fallback == "replace")
        and own.debug <= least.debug
        and own.rewind in {least.rewind, True}
        and _reads_as_much(own.screen, least.screen, least.guards)
    )


def _is_as_strict(own: PolicyConfig, least: PolicyConfig, guard: str) -> bool:
    wanted, given = _action(least, guard), _action(own, guard)
    if given == wanted:
        return True
    # what changes the text or the image lies between a mark on it and a refusal
    return _STRICTNESS.get(given, 2) > _STRICTNESS.get(wanted, 2)


def _fires_as_early(config: Config, own: PolicyConfig, least: PolicyConfig, guard: str) -> bool:
    of_guard = next((each.threshold for each in config.guards if each.name == guard), None)
    given, wanted = (each.thresholds.get(guard, of_guard) for each in (own, least))
    # None is the threshold of the fit, which nothing here knows
    return given == wanted or (given is not None and wanted is not None and given <= wanted)


def _action(policy: PolicyConfig, guard: str) -> Action:
    action: Action = policy.screen.actions.get(guard) or policy.actions.get(guard) or policy.action
    return "steer" if action in OF_METHODS else action


def _reads_as_much(own: ScreenConfig, least: ScreenConfig, guards: Sequence[str]) -> bool:
    return (
        all(getattr(own, name) >= getattr(least, name) for name in _MORE)
        and all(getattr(own, name) <= getattr(least, name) for name in _LESS)
        and all(getattr(least, name) in {None, getattr(own, name)} for name in _SAME)
        and own.hold_back_ms in {None, least.hold_back_ms}
        and set(own.unscreened) <= set(least.unscreened)
        and all(_looks_as_wide(own, least, guard) for guard in guards)
    )


def _looks_as_wide(own: ScreenConfig, least: ScreenConfig, guard: str) -> bool:
    wanted = least.looks.get(guard) or least.look
    given = own.looks.get(guard) or own.look
    if wanted is None or given is None:
        return wanted == given
    return set(wanted) <= set(given)
