"""Checks of one policy and of its shadow, on the parsed TOML."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guard.config.kinds import Kind
from guard.config.language_checks import language_problems
from guard.config.parsed import Problem, repeated, short, strings, table, unknown
from guard.config.policy_schema import OF_ACTING
from guard.config.screen_checks import screen_problems
from guard.config.tenants_checks import database_problems
from guard.config.toml_lines import KeyPath
from steering.methods import SCREENS, method_named

_READING = ("look", "turns", "ocr", "first_stage", "unscreened")
"""Settings of screens that say what is read, of which a shadow has no others."""


@dataclass(frozen=True)
class KnownGuards:
    """What a policy may name. `kinds` and `methods` are those of guards whose artifact could be
    read, `patterns` the names of lists of patterns, `fitted_for` has the places of guards that say
    which they are for, and `upstreams` are those that serve models."""

    names: Sequence[str]
    kinds: Mapping[str, Kind | None]
    methods: Mapping[str, str]
    patterns: Collection[str]
    fitted_for: Mapping[str, object]
    upstreams: Sequence[str]
    may_be_empty: bool = False
    has_plugin: bool = False
    are_replayed: bool = False


def policy_problems(name: str, policy: Mapping[str, Any], known: KnownGuards) -> Iterator[Problem]:
    """The faults of `[policies.NAME]`, and of its shadow."""
    yield from _problems(name, policy, known)
    if policy.get("keep_text") is True and not known.are_replayed:
        yield (
            ("policies", name, "keep_text"),
            "is for `guard policy replay`: add [live_policies], or leave it out",
        )
    if not isinstance(shadow := policy.get("shadow"), dict):
        return
    root = ("policies", name)
    for path, reason in _problems(name, shadow, replace(known, may_be_empty=False)):
        yield (*root, "shadow", *path[len(root) :]), reason
    yield from _other_readings((*root, "shadow"), policy, shadow)
    yield from _other_kinds((*root, "shadow", "guards"), policy, shadow, known)


def live_policies_problems(
    settings: Mapping[str, Any], models: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    """What is wrong with `[live_policies]`."""
    yield from database_problems("live_policies", settings)
    if settings and not {"database", "database_env"} & settings.keys():
        yield ("live_policies",), "needs a place for the versions: add a database"
    if settings and any(model.get("engine") == "vllm" for model in models):
        yield (
            ("live_policies",),
            'is not for engine = "vllm", whose workers read the policies of the file: leave it out',
        )


def _problems(name: str, policy: Mapping[str, Any], known: KnownGuards) -> Iterator[Problem]:
    path = ("policies", name, "guards")
    yield from unknown("guard", strings(policy, path), known.names)
    yield from repeated(strings(policy, path))
    if not (policy.get("guards", []) == [] and known.may_be_empty):
        yield from _empty(name, policy, delegates=known.has_plugin)
    yield from _fallback(name, policy)
    yield from language_problems(name, policy, known.kinds)
    yield from screen_problems(name, policy, known.kinds, known.patterns, known.fitted_for)
    yield from _thresholds(name, policy, known)
    screen = table(policy, "screen")
    upstream: KeyPath = ("policies", name, "screen", "upstream")
    yield from unknown("upstream", strings(screen, upstream), known.upstreams)
    if policy.get("keep_text") is True and not any(
        known.kinds.get(guard, "text") in SCREENS for _, guard in strings(policy, path)
    ):
        yield (
            ("policies", name, "keep_text"),
            "keeps the texts that screens read, and the policy has none: leave it out",
        )


def _empty(name: str, policy: Mapping[str, Any], *, delegates: bool) -> Iterator[Problem]:
    """A policy without guards, unless an upstream's plugin applies one in its place."""
    guards = policy.get("guards", [])
    upstream_policy = table(policy, "screen").get("upstream_policy")
    if guards == [] and name != "none" and not (delegates and upstream_policy is not None):
        yield (
            ("policies", name, "guards"),
            'names no guard, so that everything would pass: name guards, or use "none"',
        )


def _fallback(name: str, policy: Mapping[str, Any]) -> Iterator[Problem]:
    replaces = policy.get("fallback") == "replace"
    if replaces and "replacement" not in policy:
        yield (
            ("policies", name, "fallback"),
            'needs the prompt of the other image: add replacement = "..."',
        )
    if "replacement" in policy and not replaces:
        yield ("policies", name, "replacement"), 'is for fallback = "replace": add that too'


def _thresholds(name: str, policy: Mapping[str, Any], known: KnownGuards) -> Iterator[Problem]:
    guards = [guard for _, guard in strings(policy, ("policies", name, "guards"))]
    for guard, threshold in table(policy, "thresholds").items():
        path = ("policies", name, "thresholds", guard)
        if guard not in guards:
            yield path, "is no guard of this policy: add it there, or leave it out here"
        elif guard in known.patterns:
            yield path, "is a list of patterns, which match or do not: leave it out"
        elif guard in known.methods and isinstance(threshold, int | float):
            try:
                method_named(known.methods[guard]).require_in_range({"threshold": threshold}, guard)
            except ValueError as error:
                yield path, str(error)


def _other_kinds(
    path: KeyPath, policy: Mapping[str, Any], shadow: Mapping[str, Any], known: KnownGuards
) -> Iterator[Problem]:
    """Screens of a shadow whose policy reads nothing of that kind: requests would be read, and some
    refused, for the shadow."""
    own = {known.kinds.get(guard) for _, guard in strings(policy, ("policies", "guards"))}
    for place, guard in strings(shadow, path):
        kind = known.kinds.get(guard)
        if kind in SCREENS and kind not in own:
            what = "texts" if kind == "text" else "images"
            yield place, f"reads {what}, which no screen of the policy does: add one that observes"


def _other_readings(
    path: KeyPath, policy: Mapping[str, Any], shadow: Mapping[str, Any]
) -> Iterator[Problem]:
    """Where a shadow would have to read anything else than its policy does, or act."""
    own, screen = table(policy, "screen"), table(shadow, "screen")
    same = "decides on what the policy reads: say there what that says"
    for key in _READING:
        if screen.get(key) != own.get(key):
            yield (*path, "screen", key), f"{same} ({short(own.get(key))})"
    own_looks, looks = table(own, "looks"), table(screen, "looks")
    shared = {guard for _, guard in strings(policy, ("policies", "guards"))}
    for guard in sorted(shared & (looks.keys() | own_looks.keys())):
        if looks.get(guard) != own_looks.get(guard):
            yield (*path, "screen", "looks", guard), f"{same} ({short(own_looks.get(guard))})"
    if shadow.get("scope", "conversation") != policy.get("scope", "conversation"):
        yield (*path, "scope"), f"{same} ({short(policy.get('scope', 'conversation'))})"
    for key in (*OF_ACTING, "shadow"):
        if key in shadow:
            yield (*path, key), "is for a policy that acts: leave it out of a shadow"
