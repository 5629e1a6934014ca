"""`guard check`: checks a configuration and prints what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.artifact import Artifact
from guard.commands.configuration.proxy_check import (
    describe_policy,
    describe_upstream,
    tables_of,
    warnings_of,
)
from guard.commands.configuration.soundness import findings
from guard.commands.tables import add_row, new_table
from guard.config.checks import NO_POLICY
from guard.config.kinds import kind_of
from guard.config.pattern_checks import ENTITIES
from guard.config.policy_schema import OF_METHODS, PolicyConfig, TextAction
from guard.config.schema import Config, GuardConfig, ModelConfig, PatternsConfig, load_config
from guard.errors import ConfigError, ModelError
from guard.models.sources import resolve_source
from steering.methods import SCREENS

app = typer.Typer(add_completion=False)

_OF_DATABASE = "keys of the database"
_TUNABLE = ("threshold", "strength", "recheck")
"""The settings of a guard that the configuration may replace."""


@app.command(epilog="Example: guard check config.toml")
def check(
    config: Annotated[Path, typer.Argument(help="The configuration file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check a configuration as a whole and print what it means.

    Finds what a server would find: guards that do not load, sources of models that are not there,
    policies that could not act. Warns of what it cannot look up here.
    """
    try:
        settings = load_config(config)
        meaning, found = describe(settings), findings(settings)
        warnings = list(dict.fromkeys([*meaning["warnings"], *found.warnings]))
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "problems": error.problems}, indent=2))
        raise
    if as_json:
        facts = {"ok": not found.problems, "problems": found.problems}
        print(json.dumps(facts | meaning | {"warnings": warnings}, indent=2))
    else:
        console = Console()
        for table in _tables(meaning):
            console.print(table)
        for warning in warnings:
            typer.echo(f"warning: {warning}", err=True)
    if found.problems:
        raise ConfigError(found.problems)
    if not as_json:
        console.print(f"{config} is valid.", markup=False, highlight=False, soft_wrap=True)


def describe(config: Config) -> dict[str, Any]:
    """The meaning of a configuration, JSON-ready: server, models, policies with guards, keys, and
    warnings.

    Raises ArtifactError if an artifact was removed since the configuration was read.
    """
    guards = {guard.name: _guard(guard) for guard in config.guards}
    guards |= {patterns.name: _patterns(patterns) for patterns in config.patterns}
    meaning = {
        "server": config.server.model_dump(mode="json"),
        "erasures": config.erasures.model_dump(mode="json"),
        "models": [_model(config, model, guards) for model in config.models],
        "guards": list(guards.values()),
        "policies": {name: _policy(config, name, guards) for name in config.policy_names},
        "proxy": config.proxy.model_dump(mode="json"),
        "upstreams": [describe_upstream(upstream) for upstream in config.upstreams],
        "tenants": config.tenants.is_configured,
        "keys": [
            {
                "key": key.hash[:15],
                "tenant": key.tenant,
                "default_policy": key.default_policy or config.server.default_policy,
                "policies": _allowed(config, index),
                "embeddings": key.embeddings,
                "requests_per_minute": key.requests_per_minute,
            }
            for index, key in enumerate(config.keys)
        ],
    }
    return meaning | {"warnings": [*warnings_of(config)]}


def _model(
    config: Config, model: ModelConfig, guards: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    policies = [
        name
        for name in config.policy_names
        if not (named := config.policy(name).guards)
        or any(guards[guard]["kind"] in SCREENS | {model.kind, None} for guard in named)
    ]
    default = model.default_policy or config.server.default_policy
    return model.model_dump(mode="json") | {
        "kind": model.kind,
        "resolved": _resolved(model.source),
        "default_policy": {
            "value": default,
            "from": "model" if model.default_policy else "server",
            "fits": default in policies,
        },
        "policies": policies,
    }


def _resolved(source: str) -> str:
    try:
        return resolve_source(source)
    except ModelError as error:
        return f"not found: {error}"


def _policy(config: Config, name: str, guards: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    policy = config.policy(name)
    return {
        "action": policy.action,
        "actions": dict(policy.actions),
        "scope": policy.scope,
        "rewind": policy.rewind,
        "on_error": policy.on_error,
        "fallback": policy.fallback,
        "replacement": policy.replacement,
        "debug": policy.debug,
        "message": policy.message,
        "keep_text": policy.keep_text,
        "guards": [_under(policy, guards[guard]) for guard in policy.guards],
        "shadow": _shadow(policy.shadow, guards),
        "notes": _notes([guards[guard] for guard in policy.guards]),
        "screen": policy.screen.model_dump(mode="json"),
        "asked_for_by": _tenants(config, name),
        "in_proxy": describe_policy(config, name, guards),
    }


def _under(policy: PolicyConfig, guard: Mapping[str, Any]) -> dict[str, Any]:
    """A guard with the threshold that a policy gives it."""
    threshold = policy.thresholds.get(guard["name"])
    own = {} if threshold is None else {"threshold": {"value": threshold, "from": "policy"}}
    return {**guard, **own}


def _shadow(
    shadow: PolicyConfig | None, guards: Mapping[str, dict[str, Any]]
) -> dict[str, Any] | None:
    if shadow is None:
        return None
    named = [_under(shadow, guards[guard]) for guard in shadow.guards]
    return {"action": shadow.action, "actions": dict(shadow.actions), "guards": named}


def _notes(guards: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is worth knowing of guards that are carried together."""
    notes = []
    for reader, writer in permutations(guards, 2):
        sense, act = _layers(reader, "sense_layers"), _layers(writer, "act_layers")
        if sense and act and max(sense) > min(act):
            notes.append(
                f"{reader['name']} senses up to layer {max(sense)}, and {writer['name']} acts from "
                f"layer {min(act)} on: where {writer['name']} acts, the score of {reader['name']} "
                "is of the changed states"
            )
    return notes


def _layers(guard: Mapping[str, Any], key: str) -> list[int]:
    """The layers of a setting; none where it is no list of them."""
    layers = guard["settings"].get(key)
    return [n for n in layers if isinstance(n, int)] if isinstance(layers, list) else []


def _guard(guard: GuardConfig) -> dict[str, Any]:
    artifact = Artifact.load(guard.artifact)
    meta = artifact.meta
    return {
        "name": guard.name,
        "concept": meta.concept,
        "method": meta.method,
        "kind": kind_of(meta),
        "artifact": artifact.short_digest,
        "shadow": guard.shadow,
        "fits_model": meta.model.model_dump(mode="json"),
        **{key: _setting(getattr(guard, key), meta.settings.get(key)) for key in _TUNABLE},
        "settings": {key: value for key, value in meta.settings.items() if key not in _TUNABLE},
    }


def _patterns(patterns: PatternsConfig) -> dict[str, Any]:
    nothing = {"value": None, "from": "artifact"}
    return {
        "name": patterns.name,
        "concept": f"patterns/{patterns.name}",
        "method": "entities" if patterns.source == ENTITIES else "patterns",
        "kind": "text",
        "artifact": None,
        "shadow": False,
        "fits_model": None,
        **dict.fromkeys(_TUNABLE, nothing),
        "settings": patterns.model_dump(mode="json", exclude={"name"}, exclude_defaults=True),
    }


def _setting(configured: float | None, fitted: Any) -> dict[str, Any]:
    if configured is None:
        return {"value": fitted, "from": "artifact"}
    return {"value": configured, "from": "config"}


def _allowed(config: Config, index: int) -> list[str]:
    key = config.keys[index]
    default = key.default_policy or config.server.default_policy
    return [name for name in config.policy_names if name in {default, *key.policies}]


def _tenants(config: Config, policy: str) -> list[str]:
    others = [_OF_DATABASE] if config.tenants.is_configured else []
    if not config.keys:
        return others or ["anyone"]
    return [
        f"{key.tenant} ({key.hash[:15]})"
        for index, key in enumerate(config.keys)
        if policy in _allowed(config, index)
    ] + others


def _tables(meaning: dict[str, Any]) -> list[Table]:
    server = new_table("Server", "setting", "value")
    for name, value in meaning["server"].items():
        add_row(server, name, value)
    if meaning["erasures"]["folder"] is not None:
        for name, value in meaning["erasures"].items():
            add_row(server, f"erasures: {name}", value)
    columns = ("name", "engine", "source", "resolved", "dtype", "device")
    models = new_table("Models", *columns, "limits", "default policy", "policies")
    for model in meaning["models"]:
        default = model["default_policy"]
        default_policy = f"{default['value']} ({default['from']})"
        if not default["fits"]:
            default_policy += ": has no guard for it, so requests must name another policy"
        facts = (_limits(model), default_policy, ", ".join(model["policies"]))
        add_row(models, *(model[column] for column in columns), *facts)
    guards = new_table("Guards", "guard", "for", "concept", "method", "method's settings")
    for guard in meaning["guards"]:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in guard["settings"].items())
        facts = tuple(guard[key] for key in ("name", "kind", "concept", "method"))
        add_row(guards, *facts, settings or None)
    tables = [server, models, guards]
    for name, policy in meaning["policies"].items():
        tenants = ", ".join(policy["asked_for_by"]) or "no key"
        title = f"Policy {name}: {policy['action']}, on error {policy['on_error']}, for {tenants}"
        if any(guard["kind"] == "images" for guard in policy["guards"]):
            replacement = json.dumps(policy["replacement"], ensure_ascii=False)
            instead = f" by {replacement}" if policy["replacement"] else ""
            title += f", fallback {policy['fallback']}{instead}"
            title += ", returns masks of what guards have written" if policy["debug"] else ""
        if any(guard["kind"] in SCREENS for guard in policy["guards"]):
            title += f"; {_screening(policy)}"
        if any(guard["kind"] == "language" for guard in policy["guards"]):
            title += f"; {_answering(policy)}"
        if policy["message"]:
            title += f"; message {json.dumps(policy['message'], ensure_ascii=False)}"
        if policy["keep_text"]:
            title += "; keeps the texts of its last requests in memory"
        if (shadow := policy["shadow"]) is not None:
            names = ", ".join(guard["name"] for guard in shadow["guards"])
            title += f"; in shadow: {shadow['action']} by {names}"
        if name == NO_POLICY:
            title = f"Policy {name}: no guards, for {tenants}"
        table = new_table(title, "guard", "concept", "method", *_TUNABLE, "fits model")
        for guard in policy["guards"]:
            fits = guard["fits_model"] or {"name": "any model with text"}
            tuned = (_origin(guard[key]) for key in _TUNABLE)
            fitted_on = fits["name"]
            if "fingerprint" in fits:
                fitted_on += f" ({fits['fingerprint'][:12]})"
            called = (
                f"{guard['name']} (in shadow: only observes)" if guard["shadow"] else guard["name"]
            )
            add_row(table, called, guard["concept"], guard["method"], *tuned, fitted_on)
        table.caption = Text("\n".join(policy["notes"])) if policy["notes"] else None
        tables.append(table)
    tables += tables_of(meaning)
    key_columns = ("key", "tenant", "default policy", "policies", "embeddings")
    keys = new_table("Keys", *key_columns, "requests per minute")
    for key in meaning["keys"]:
        allowed = ", ".join(key["policies"])
        rate = key["requests_per_minute"] or "unlimited"
        embeddings = _may(key["embeddings"])
        add_row(keys, key["key"], key["tenant"], key["default_policy"], allowed, embeddings, rate)
    if meaning["tenants"]:
        add_row(keys, _OF_DATABASE, "their team", *["guard keys list"] * 2, None, None)
    elif not meaning["keys"]:
        server_settings = meaning["server"]
        embeddings = _may(server_settings["embeddings"])
        default = server_settings["default_policy"]
        add_row(keys, "none", "anyone", default, "any", embeddings, "unlimited")
    return [*tables, keys]


def _screening(policy: dict[str, Any]) -> str:
    """The screens of a policy, in words."""
    screen = policy["screen"]
    default = policy["action"] if policy["action"] in get_args(TextAction) else "block"
    names = [guard["name"] for guard in policy["guards"] if guard["kind"] in SCREENS]
    actions = ", ".join(f"{name}: {screen['actions'].get(name, default)}" for name in names)
    # without one, each screen reads the places that it was fitted for
    places = ", ".join(screen["look"]) if screen["look"] else "what each screen is for"
    text = f"reads {places} ({actions})"
    text += f", holds {screen['hold_back_chars']} characters of a stream back"
    text += ", reads the text in images" if screen["ocr"] else ""
    unread = ", ".join(screen["unscreened"])
    return text + (f", lets {unread} pass unread" if unread else "")


def _answering(policy: dict[str, Any]) -> str:
    """What the guards of language models in a policy do with chats and answers, in words."""
    text = f"guards decide on the {_SCOPES[policy['scope']]}"
    if policy["actions"]:
        text += f" ({', '.join(f'{name}: {action}' for name, action in policy['actions'].items())})"
    return text + (_REWINDS[policy["rewind"]] if _steers(policy) else "")


def _steers(policy: dict[str, Any]) -> bool:
    """Whether a guard of language models in a policy steers answers, which others end or leave."""
    return any(
        policy["actions"].get(guard["name"], policy["action"]) in OF_METHODS
        for guard in policy["guards"]
        if guard["kind"] == "language" and not guard["shadow"]
    )


_REWINDS = {
    None: ", whole and steered answers go back to their last sentence's end (transformers)",
    True: ", answers go back to their last sentence's end",
    False: ", answers never go back",
}
_SCOPES = {"conversation": "whole conversation", "turn": "user's last turn"}


def _may(allowed: bool) -> str:
    return "yes" if allowed else "no"


def _limits(model: dict[str, Any]) -> str:
    def value_or_default(value: object) -> object:
        return "the model's default" if value is None else value

    if model["kind"] == "language":
        return f"context: {value_or_default(model['max_context'])}"
    steps, guidance = value_or_default(model["steps"]), value_or_default(model["guidance_scale"])
    return f"steps: {steps}, at most {model['max_steps']}; guidance scale: {guidance}"


def _short(value: Any) -> str:
    if type(value) is float:
        return f"{value:.4g}"
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _origin(setting: dict[str, Any]) -> str:
    value = setting["value"]
    if value is None:
        return "-"
    text = f"{value:.4g}" if type(value) is float else str(value)
    return f"{text} ({setting['from']})"
