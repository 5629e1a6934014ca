"""Checks of a configuration: faults of single keys, and faults between sections.

The checks between sections run on the parsed TOML, so that they work also when some keys are
invalid. They ignore values of the wrong type, which the schema reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from guard.artifact import Artifact
from guard.config.adapter_checks import adapter_problems, adapters_of
from guard.config.artifact_paths import ArtifactPaths, url_problems
from guard.config.kinds import KINDS, Kind, kind_of
from guard.config.language_checks import unsupported
from guard.config.parsed import Problem, short, strings, table, tables, unknown
from guard.config.pattern_checks import pattern_problems
from guard.config.policy_checks import KnownGuards, live_policies_problems, policy_problems
from guard.config.replicas_checks import replicas_problems
from guard.config.setting_checks import setting_problems
from guard.config.tenants_checks import tenants_problems
from guard.data.faults import suggestion
from guard.errors import ArtifactError
from steering.methods import SCREENS

NO_POLICY = "none"
DEFAULT_MAX_STEPS = 100

_PATTERNS = {
    "url": "should be http://HOST or https://HOST, with a path or without, no user and no query",
    "cors_origins": 'should be "*", or an origin such as "https://app.example.com"',
    "mcp": 'should be a path such as "/mcp/files", of letters, digits and . _ -',
    "health": 'should be a path, such as "/health"',
    "issuer": "should be a URL such as https://login.example.com, without user and query",
    "jwks_url": "should be a URL such as https://login.example.com/keys, without user and query",
    "database_env": "should be the name of an environment variable, never the URL itself",
    "key_env": "should be the name of an environment variable, never the key itself",
    "entities": 'should be a name in capitals, such as "PERSON", of at most 32 characters',
    "language": 'should be a code of two or three small letters, such as "en"',
    "hash": 'should be "sha256:" and the 64 hex digits of the key\'s SHA-256, never the key itself',
    "": "should be a name of letters, digits and . _ : / -, at most 128 long",
}


def schema_problem(fault: ErrorDetails, section: type[BaseModel]) -> Problem:
    """The problem of a pydantic fault; `section` is the model with the faulty key."""
    path = tuple(part for part in fault["loc"] if part != "[key]")
    key = str(path[-1]) if path else ""
    secret = key in {"hash", "admin_hash", "url", "key_env", "database", "database_env"}
    if fault["type"] == "extra_forbidden":
        return path, f"unknown key: {suggestion(key, section.model_fields)}"
    if fault["type"] == "missing":
        return path, "is missing: add it"
    if fault["type"] == "string_pattern_mismatch":
        named = next((part for part in reversed(path) if isinstance(part, str)), "")
        reason = _PATTERNS.get(named.removeprefix("admin_"), _PATTERNS[""])
    else:
        message = fault["msg"].removeprefix("Input ")
        reason = message[0].lower() + message[1:]
    # An API key in place of its hash must not be printed or logged.
    return path, reason if secret else f"{reason}, is {short(fault['input'])}"


def cross_check(data: Mapping[str, Any], folder: Path, paths: ArtifactPaths) -> Iterator[Problem]:
    """The faults between sections of the parsed TOML; paths are relative to `folder`, and `paths`
    finds artifacts."""
    models = list(tables(data, "models"))
    guards = list(tables(data, "guards"))
    keys = list(tables(data, "keys"))
    policies = {k: v for k, v in table(data, "policies").items() if isinstance(v, dict)}
    yield from _duplicates("models", models, "name")
    yield from _duplicates("guards", guards, "name")
    yield from _duplicates("keys", keys, "hash")
    lists, upstreams = list(tables(data, "patterns")), list(tables(data, "upstreams"))
    yield from _duplicates("upstreams", upstreams, "name")
    yield from _duplicates("upstreams", upstreams, "mcp")
    for index, upstream_entry in upstreams:
        for name in _OF_MODELS if "mcp" in upstream_entry else ():
            if name in upstream_entry:
                yield ("upstreams", index, name), "is not for a server of MCP: leave it out"
    yield from _duplicates("patterns", lists, "name")
    if NO_POLICY in policies:
        yield (
            ("policies", NO_POLICY),
            f'"{NO_POLICY}" is reserved for the policy without guards: choose another name',
        )
    server = table(data, "server")
    if "audit_key" in server and "audit_log" not in server:
        yield ("server", "audit_key"), "signs the audit log: add 'audit_log', or leave it out"
    has_erasures = "folder" in table(data, "erasures")
    guard_names = [
        guard["name"] for _, guard in [*guards, *lists] if isinstance(guard.get("name"), str)
    ]
    known = [NO_POLICY, *policies]
    tenants = table(data, "tenants")
    yield from tenants_problems(tenants, table(data, "oidc"))
    yield from replicas_problems(table(data, "replicas"))
    if has_erasures and not ("admin_hash" in server or {"database", "database_env"} & {*tenants}):
        yield (
            ("erasures", "folder"),
            "needs the administrator, who alone may erase: add admin_hash to [server]",
        )
    for section in ("server", "proxy"):
        names_policy = strings(table(data, section), (section, "default_policy"))
        yield from unknown("policy", names_policy, known)
    if (keys or tenants) and server.get("embeddings") is True:
        yield (
            ("server", "embeddings"),
            "is for a server without keys: set it in the [[keys]] that may, and not here",
        )
    for index, key in keys:
        for name in ("default_policy", "policies"):
            yield from unknown("policy", strings(key, ("keys", index, name)), known)
    kinds: dict[str, Kind | None] = {str(entry.get("name")): "text" for _, entry in lists}
    fitted_for: dict[str, object] = {}
    methods: dict[str, str] = {}
    for index, guard in guards:
        if isinstance(reference := guard.get("artifact"), str):
            if faults := [*url_problems(index, guard)]:
                yield from faults
                continue
            pinned = guard.get("digest")
            try:
                path = paths.of(reference, pinned if isinstance(pinned, str) else None)
                meta = Artifact.load(path).meta
            except ArtifactError as error:
                yield ("guards", index, "artifact"), str(error)
                continue
            kind = kind_of(meta)
            yield from setting_problems(index, guard, meta)
            if str(guard.get("name")) in {str(entry.get("name")) for _, entry in lists}:
                yield ("guards", index, "name"), "is also a name in [[patterns]]: change one"
            kinds[str(guard.get("name"))] = kind
            methods[str(guard.get("name"))] = meta.method
            fitted_for[str(guard.get("name"))] = meta.settings.get("look")
            if kind != "language" and "recheck" in guard:
                yield ("guards", index, "recheck"), "is for guards of language models: leave it out"
            if kind in SCREENS and "strength" in guard:
                yield ("guards", index, "strength"), "is not for screens: leave it out"
    for index, entry in lists:
        yield from pattern_problems(index, entry, folder)
    # no model is behind a server of MCP
    names = [
        entry["name"]
        for _, entry in upstreams
        if isinstance(entry.get("name"), str) and "mcp" not in entry
    ]
    known_guards = KnownGuards(
        names=guard_names,
        kinds=kinds,
        methods=methods,
        patterns={str(entry.get("name")) for _, entry in lists},
        fitted_for=fitted_for,
        upstreams=names,
        # a policy may be there for erasures alone
        may_be_empty=has_erasures,
        has_plugin=any(entry.get("plugin") is True for _, entry in upstreams),
        are_replayed="live_policies" in data,
    )
    for name, policy in policies.items():
        yield from policy_problems(name, policy, known_guards)
    yield from live_policies_problems(table(data, "live_policies"), [m for _, m in models])
    for index, model in models:
        yield from unknown("policy", strings(model, ("models", index, "default_policy")), known)
        yield from _unfit(index, model, policies, kinds)
        yield from _unknown_to_vllm(index, model, server, policies, methods)
        for place, adapter in adapters_of(index, model):
            yield from unknown("policy", strings(adapter, (*place, "default_policy")), known)
    default = server.get("default_policy", NO_POLICY)
    yield from adapter_problems(models, default, policies, kinds, folder)


_OF_MODELS = ("models", "weight", "plugin")
"""Keys of upstreams that serve models."""


_MODELS: Mapping[Kind, str] = {
    "language": "language models",
    "images": "models of images",
    "text": "sentence encoders",
}
_KEYS: Mapping[str, tuple[Kind, ...]] = {
    "max_context": ("language",),
    "tool_parser": ("language",),
    "pooling": ("language",),
    "device_map": ("language",),
    "quantization": ("language",),
    "dtype": ("language", "images"),
    "device": ("language", "images"),
    "steps": ("images",),
    "guidance_scale": ("images",),
    "max_steps": ("images",),
}
"""Keys of `[[models]]` that are not for models of all kinds."""


def _unfit(
    index: int,
    model: Mapping[str, Any],
    policies: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, Kind | None],
) -> Iterator[Problem]:
    """Keys and policies of a model that are for models of another kind."""
    engine = model.get("engine", "transformers")
    kind = next((kind for known, kind in KINDS.items() if known == engine), None)
    if kind is None:
        return
    for key, takers in _KEYS.items():
        if kind not in takers and key in model:
            named = " and ".join(_MODELS[taker] for taker in takers)
            yield ("models", index, key), f"is for {named}: leave it out"
    if engine != "vllm" and "engine_options" in model:
        yield ("models", index, "engine_options"), 'is for engine = "vllm": leave it out'
    if engine == "vllm":
        for key in ("device_map", "quantization", "pooling"):
            if key in model:
                yield (
                    ("models", index, key),
                    "is not for vLLM, which has engine_options: leave it out",
                )
    if "device_map" in model and model.get("device", "auto") != "auto":
        yield ("models", index, "device_map"), "chooses the device: leave 'device' out"
    if engine != "transformers" and str(model.get("source")).endswith(".gguf"):
        yield (
            ("models", index, "source"),
            'is a GGUF file, which engine = "transformers" alone reads',
        )
    steps, max_steps = model.get("steps"), model.get("max_steps", DEFAULT_MAX_STEPS)
    if isinstance(steps, int) and isinstance(max_steps, int) and steps > max_steps:
        yield ("models", index, "steps"), f"is more than max_steps, {max_steps}: lower it"
    name = model.get("default_policy")
    policy = policies.get(name, {}) if isinstance(name, str) else {}
    guards = [text for _, text in strings(policy, ("policies", str(name), "guards"))]
    if guards and all(kinds.get(guard, kind) not in SCREENS | {kind, None} for guard in guards):
        others = {kinds[guard] for guard in guards} - {kind, None}
        named = " and ".join(text for other, text in _MODELS.items() if other in others)
        yield (
            ("models", index, "default_policy"),
            f"all guards of {short(name)} are for {named}: choose another policy",
        )


def _unknown_to_vllm(
    index: int,
    model: Mapping[str, Any],
    server: Mapping[str, Any],
    policies: Mapping[str, Mapping[str, Any]],
    methods: Mapping[str, str],
) -> Iterator[Problem]:
    """A default policy that asks for what a model's engine does not know."""
    name = model.get("default_policy", server.get("default_policy"))
    if model.get("engine") != "vllm" or not isinstance(name, str):
        return
    if reason := unsupported(policies.get(name, {}), methods):
        yield ("models", index, "engine"), f"the default policy {short(name)} {reason}"


def _duplicates(
    section: str, items: list[tuple[int, Mapping[str, Any]]], key: str
) -> Iterator[Problem]:
    first_index: dict[str, int] = {}
    for index, item in items:
        value = item.get(key)
        if not isinstance(value, str):
            continue
        first = first_index.setdefault(value, index)
        if first != index:
            yield (section, index, key), f"is the same as in {section}[{first}]: change one"
