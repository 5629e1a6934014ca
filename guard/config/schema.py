"""The configuration file: its sections as types, and reading it with all problems at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
)

from guard.config.adapter_schema import AdapterConfig
from guard.config.artifact_paths import ArtifactPaths
from guard.config.checks import DEFAULT_MAX_STEPS, NO_POLICY, cross_check, schema_problem
from guard.config.kinds import KINDS, Engine, Kind
from guard.config.parsed import Problem
from guard.config.pattern_checks import model_path
from guard.config.policy_schema import LivePoliciesConfig, Names, PolicyConfig
from guard.config.proxy_schema import ProxyConfig, UpstreamConfig
from guard.config.replicas_schema import ReplicasConfig
from guard.config.section import Name, Section
from guard.config.tenants_schema import OidcConfig, TenantsConfig
from guard.config.toml_lines import KeyPath, key_lines, line_of
from guard.errors import ConfigError, UnknownPolicy
from guard.verdict import VerdictDetail

MAX_CONFIG_BYTES = 2**24
Quantization = Literal["int8", "nf4"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""What the transformers engine quantises weights to while it loads them."""

# Types are strict, but TOML has arrays and strings in place of tuples and paths.
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^\s/?#@*]+)$")]
FilePath = Annotated[Path, Field(strict=False)]
EntityName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]


class ServerConfig(Section):
    """`[server]`. Sizes are in bytes, times in seconds; without `audit_log` there is no log. The
    Ed25519 key in the file `audit_key` signs its lines, which are chained then.

    Pages of `cors_origins` ("https://app.example.com", or "*" for all) may call from a browser.
    After each silence of `keep_alive_s` a stream of events gets a comment. `max_images` is the most
    that one request generates, `max_input_images` that it shows to a model. `embeddings` lets
    requests of no key contain embeddings. `verdict` is how much of it clients are told, unless
    their key says otherwise. `response_store` is the most responses of `/v1/responses` that are
    kept in memory, so that requests may go on from them. `admin_hash` is the SHA-256 of the key for
    live changes. With CUDA graphs vLLM has room for `guard_room` guards at once, 0 for twice as
    many as at its start.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    default_policy: Name = NO_POLICY
    queue_limit: int = Field(default=64, ge=1, le=100_000)
    max_batch: int = Field(default=16, ge=1, le=1024)
    max_prefill_tokens: int = Field(default=256, ge=16, le=1_048_576)
    max_body_bytes: int = Field(default=1_048_576, ge=1, le=2**30)
    max_tokens_limit: int = Field(default=2048, ge=1)
    max_images: int = Field(
        default=10, ge=1, le=1000, validation_alias=AliasChoices("max_images", "max_pictures")
    )
    max_input_images: int = Field(default=16, ge=0, le=1000)
    response_store: int = Field(default=0, ge=0, le=100_000)
    embeddings: bool = False
    verdict: VerdictDetail = "full"
    audit_log: FilePath | None = None
    audit_key: FilePath | None = None
    traces: bool = False
    admin_hash: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    request_timeout_s: float = Field(default=300.0, gt=0)
    cors_origins: Annotated[tuple[Origin, ...], Field(strict=False)] = ()
    keep_alive_s: float = Field(default=15.0, gt=0)
    guard_room: int = Field(default=0, ge=0, le=65_536)


class ModelConfig(Section):
    """One of `[[models]]`.

    `default_policy` overrides the server's. `max_context` is for language models; None is the
    model's limit. `steps` and `guidance_scale` are the defaults of requests for images (None: those
    of the pipeline), `max_steps` their limit. `engine_options` are arguments of vLLM's engine.
    `device_map` "auto" lets accelerate choose the device. `quantization` packs weights while they
    are loaded, to 8 bits or to 4 (NF4); guards are bound to them with `guard rebind`. `pooling`:
    the embedding of a text is the mean of its tokens' states (None, too), or the state of its last
    token. The engine "onnxruntime" is for sentence encoders, which give embeddings.
    `tool_parser` names the form in which a language model calls tools; None finds it in the chat
    template. Each of `adapters` is served under a name of its own.
    """

    name: Name
    source: str = Field(min_length=1)
    engine: Engine = "transformers"
    dtype: Dtype = "float32"
    device: str = Field(default="auto", min_length=1)
    default_policy: Name | None = None
    max_context: int | None = Field(default=None, ge=1)
    device_map: Literal["auto"] | None = None
    quantization: Quantization | None = None
    pooling: Literal["mean", "last"] | None = None
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    max_steps: int = Field(default=DEFAULT_MAX_STEPS, ge=1, le=1000)
    engine_options: dict[str, bool | int | float | str] = {}
    tool_parser: Literal["hermes", "llama3", "mistral", "json"] | None = None
    adapters: Annotated[tuple[AdapterConfig, ...], Field(strict=False, max_length=64)] = ()

    @property
    def kind(self) -> Kind:
        """What the model makes."""
        return KINDS[self.engine]


class GuardConfig(Section):
    """One of `[[guards]]`; threshold, strength and recheck None keep the fitted values.

    `recheck` False decides on the prompt alone, a number is the threshold of generated tokens.

    `artifact` is a file, a URL that fsspec knows ("s3://bucket/x.safetensors"), or "sha256:DIGEST"
    of an artifact in the cache (12 digits or more). In a configuration that was read it is the
    file's path. `digest` ("sha256:" and 64 digits) is what the artifact must have. One in `shadow`
    observes, whatever the action of its policies is.
    """

    name: Name
    artifact: FilePath
    digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    threshold: float | None = None
    strength: float | None = Field(default=None, gt=0, le=10)
    recheck: bool | float | None = None
    shadow: bool = False


class PatternsConfig(Section):
    """One of `[[patterns]]`: a guard that is a list of words and regular expressions.

    `source` is the name of a shipped list, or a TOML file ("lists/names.toml"). "unreadable" is
    what is encoded, as long as a request, and read by no decoder. "entities" are names that a
    `model` finds, an installed pipeline of spaCy or a folder: those of `entities`, as Presidio
    calls them. `language` is the pipeline's where None.
    """

    name: Name
    source: str = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1)
    entities: Annotated[tuple[EntityName, ...], Field(strict=False, max_length=64)] = ()
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$")


class KeyConfig(Section):
    """One of `[[keys]]`: `hash` is the SHA-256 of an API key; the key itself is not stored.

    Requests with the key may use its default policy and `policies`, no others. `default_policy`
    or `verdict` None is the server's. `embeddings` lets its requests contain embeddings.
    """

    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    tenant: Name
    default_policy: Name | None = None
    policies: Names = ()
    embeddings: bool = False
    verdict: VerdictDetail | None = None
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)


class ErasuresConfig(Section):
    """`[erasures]`: guards that are made from names while the server runs, and where they are kept.

    `queue_limit` erasures may wait for the one that is being fitted. None as `folder` turns all of
    it off.
    """

    folder: FilePath | None = None
    queue_limit: int = Field(default=8, ge=0, le=1000)


_NOTHING: Final = PolicyConfig()
"""The policy without guards."""


class Config(Section):
    """A valid configuration. Relative paths are relative to the file's folder."""

    server: ServerConfig = ServerConfig()
    models: Annotated[tuple[ModelConfig, ...], Field(strict=False)] = ()
    guards: Annotated[tuple[GuardConfig, ...], Field(strict=False)] = ()
    patterns: Annotated[tuple[PatternsConfig, ...], Field(strict=False)] = ()
    policies: dict[Name, PolicyConfig] = {}
    keys: Annotated[tuple[KeyConfig, ...], Field(strict=False)] = ()
    tenants: TenantsConfig = TenantsConfig()
    oidc: OidcConfig = OidcConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    erasures: ErasuresConfig = ErasuresConfig()
    live_policies: LivePoliciesConfig = LivePoliciesConfig()
    proxy: ProxyConfig = ProxyConfig()
    upstreams: Annotated[tuple[UpstreamConfig, ...], Field(strict=False)] = ()
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The absolute path of its file; None if it was not read from a file."""
        return self._path

    @property
    def policy_names(self) -> tuple[str, ...]:
        """Every policy that requests may name: "none", then the configured ones."""
        return (NO_POLICY, *self.policies)

    @property
    def default_policies(self) -> dict[str, str | None]:
        """Every model that requests may name, adapters among them, and the default policy that it
        has of its own, or of the model that it is an adapter of."""
        policies: dict[str, str | None] = {}
        for model in self.models:
            policies[model.name] = model.default_policy
            for adapter in model.adapters:
                policies[adapter.name] = adapter.default_policy or model.default_policy
        return policies

    def policy(self, name: str) -> PolicyConfig:
        """The policy of that name; "none" has no guards. Raises UnknownPolicy."""
        if name == NO_POLICY:
            return _NOTHING
        try:
            return self.policies[name]
        except KeyError:
            known = ", ".join(self.policy_names)
            raise UnknownPolicy(f"no policy {name!r}: there is {known}", param="policy") from None

    def delegates(self, policy: str) -> bool:
        """Whether an upstream's plugin applies its own policy to every request under this one."""
        screen = self.policy(policy).screen
        is_conditional = self.policy(policy).action == "policy" or "policy" in (
            screen.actions.values()
        )
        has_plugin = any(upstream.plugin for upstream in self.upstreams)
        return has_plugin and screen.upstream_policy is not None and not is_conditional

    def guards_of(self, policy: str) -> tuple[GuardConfig, ...]:
        """The guards of a policy that are artifacts, in order. Raises UnknownPolicy."""
        by_name = {guard.name: guard for guard in self.guards}
        return tuple(by_name[name] for name in self.policy(policy).guards if name in by_name)


def load_config(path: Path | str) -> Config:
    """Read a configuration file and check it as a whole, including the artifacts.

    Raises ConfigError with every problem as "line N: section.key: what is wrong and what to do";
    indices start at 0.
    """
    path = Path(path)
    return valid(*read_toml(path), path)


def valid(data: dict[str, Any], lines: Mapping[KeyPath, int], path: Path) -> Config:
    """The configuration of a file that was read. Raises ConfigError, as `load_config`."""
    config, problems = checked(data, path)
    if config is None:
        places = {(line_of(lines, place), dotted(place), reason) for place, reason in problems}
        raise ConfigError([f"line {line}: {at}: {reason}" for line, at, reason in sorted(places)])
    return config


def read_toml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The values of a TOML file, and the line of each. Raises ConfigError."""
    text = _read(path)
    try:
        return tomllib.loads(text), key_lines(text)
    except RecursionError:
        raise ConfigError(["line 1: syntax: arrays are nested too deeply"]) from None
    except ValueError as error:
        raise ConfigError([_syntax_problem(str(error), text)]) from None


def checked(data: dict[str, Any], path: Path) -> tuple[Config | None, list[Problem]]:
    """The configuration of parsed TOML, as if the file `path` had it, or else all its faults."""
    folder = path.absolute().parent
    problems: list[Problem] = []
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems = [schema_problem(fault, _section_type(fault["loc"])) for fault in error.errors()]
    paths = ArtifactPaths(folder)
    problems += cross_check(data, folder, paths)
    if config is None or problems:
        return None, problems
    artifacts = [
        paths.of(guard["artifact"], guard.get("digest")) for guard in data.get("guards", ())
    ]
    config = _absolute(config, folder, artifacts)
    config._path = path.absolute()
    return config, []


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"{path}: cannot be read: {reason}: check the path"]) from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_CONFIG_BYTES} bytes: not a configuration"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"line {line}: encoding: not UTF-8: save the file as UTF-8"]) from None


def _syntax_problem(message: str, text: str) -> str:
    position = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = text.count("\n") + 1 if position else 1
    if position and position[1]:
        line = int(position[1])
    reason = message[: position.start()] if position else message
    return f"line {line}: syntax: {reason[:1].lower()}{reason[1:]}: not TOML"


def _section_type(path: tuple[str | int, ...]) -> type[BaseModel]:
    """The model with the key at the end of `path`."""
    section: type[BaseModel] = Config
    for key in path[:-1]:
        if (field := section.model_fields.get(str(key))) is not None:
            kinds = (field.annotation, *get_args(field.annotation))
            section = next((kind for kind in kinds if _is_section(kind)), section)
    return section


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def dotted(path: tuple[str | int, ...]) -> str:
    """A place in the configuration as a text, "models[0].name"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _absolute(config: Config, folder: Path, artifacts: Sequence[Path]) -> Config:
    """`artifacts`: those of the guards, in order."""
    guards = tuple(
        guard.model_copy(update={"artifact": path})
        for guard, path in zip(config.guards, artifacts, strict=True)
    )
    patterns = tuple(_absolute_patterns(entry, folder) for entry in config.patterns)
    models = tuple(_absolute_model(model, folder) for model in config.models)
    server = config.server
    files = {"audit_log": server.audit_log, "audit_key": server.audit_key}
    paths = {name: folder / path for name, path in files.items() if path is not None}
    server = server.model_copy(update=paths)
    erasures = config.erasures
    if erasures.folder is not None:
        erasures = erasures.model_copy(update={"folder": folder / erasures.folder})
    update: dict[str, Any] = {
        "guards": guards,
        "patterns": patterns,
        "models": models,
        "server": server,
    }
    update["erasures"] = erasures
    for name in ("tenants", "live_policies"):
        section = getattr(config, name)
        if section.database is not None and "://" not in section.database:
            file = str(folder / section.database)
            update[name] = section.model_copy(update={"database": file})
    return config.model_copy(update=update)


def _absolute_patterns(entry: PatternsConfig, folder: Path) -> PatternsConfig:
    if entry.source.endswith(".toml"):
        return entry.model_copy(update={"source": str(folder / entry.source)})
    if entry.model is not None:
        return entry.model_copy(update={"model": model_path(entry.model, folder)})
    return entry


def _absolute_model(model: ModelConfig, folder: Path) -> ModelConfig:
    update: dict[str, Any] = {
        "adapters": tuple(
            adapter.model_copy(update={"source": folder / adapter.source})
            for adapter in model.adapters
        )
    }
    if model.source.startswith(("./", "../")):
        update["source"] = str(folder / model.source)
    return model.model_copy(update=update)
