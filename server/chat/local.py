"""A server of the chat's own: one model on a free port of this machine, for its key alone."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guard.config.schema import Config, KeyConfig, ModelConfig, load_config
from guard.config.tenants_schema import TenantsConfig
from guard.errors import ConfigError, GuardError
from guard.models.sources import resolve_source
from server.chat.client import ChatClient
from server.lifecycle.listening import bind, url_of

_STOP_S = 15.0


def config_for(model: str, path: Path | None) -> tuple[Config, str]:
    """The configuration that serves `model` alone, and the model's name in it.

    `model` is one of the file's, else an added model, a directory or a hub name, which has no
    guards. `path` None is `config.toml`, where there is one. Raises ConfigError and ModelError.
    """
    given = path or Path("config.toml")
    if path is None and not given.exists():
        return _without_guards(model)
    settings = load_config(given)
    chosen = [
        entry
        for entry in settings.models
        if model in {entry.name, *(adapter.name for adapter in entry.adapters)}
    ]
    if not chosen:
        if path is None:
            return _without_guards(model)
        known = ", ".join(settings.default_policies) or "none"
        raise ConfigError([f"{given}: there is no model {model!r}: there is {known}"])
    if chosen[0].kind != "language":
        raise ConfigError([f"{given}: the model {model!r} generates images: chat with another one"])
    if settings.erasures.folder is not None:
        raise ConfigError(
            [
                f"{given}: it has [erasures], whose guards only one server can hold: start `guard "
                "serve`, and chat with it by --url"
            ]
        )
    return settings.model_copy(update={"models": tuple(chosen)}), model


def _without_guards(source: str) -> tuple[Config, str]:
    resolve_source(source)  # fails before torch is imported
    return Config(models=(ModelConfig(name="model", source=source),)), "model"


@contextmanager
def local_server(config: Config) -> Iterator[ChatClient]:
    """A client of a server that runs until the end. No audit log is written.

    Raises GuardError where the model cannot be loaded.
    """
    # imported here: it needs torch, and a chat with a running server none
    from server.lifecycle.run import run_server

    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    own = KeyConfig(hash=f"sha256:{digest}", tenant="chat", policies=config.policy_names)
    server = config.server.model_copy(update={"audit_log": None, "admin_hash": None})
    config = config.model_copy(
        update={"keys": (own,), "server": server, "tenants": TenantsConfig()}
    )
    listener = bind("127.0.0.1", 0)
    ready, stop = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            run_server(config, listener, lambda _models: ready.set(), stop=stop)
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        ready.wait()
        if failures:
            raise failures[0] if isinstance(failures[0], GuardError) else _failed(failures[0])
        client = ChatClient(url_of(listener), key, trust_env=False)
        try:
            yield client
        finally:
            client.close()
    finally:
        stop.set()
        thread.join(_STOP_S)
        listener.close()


def _failed(error: BaseException) -> GuardError:
    return GuardError(f"the model's server did not start: {type(error).__name__}: {error}")
