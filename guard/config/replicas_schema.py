"""The section of `config.toml` about what replicas of one service share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from guard.config.section import Name, Section


class ReplicasConfig(Section):
    """`[replicas]`: a store through which servers with the same `name` count limits together and
    share the state of upstreams' breakers; times in seconds.

    `store` is `redis://HOST:PORT/NUMBER`, `rediss://` or `postgresql://USER@HOST/DATABASE`; a URL
    with a password stands in the environment variable `store_env` instead. The store is asked every
    `sync_s`, and has `timeout_s` to answer. When it has not answered for `offline_s`, requests of
    keys with limits get 503 (`unavailable` "refuse"), or each replica counts alone ("local").
    """

    store: str | None = Field(default=None, min_length=1)
    store_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    name: Name = "inference-guard"
    sync_s: float = Field(default=0.1, ge=0.02, le=1)
    # within the 10 s after which the others take a server for dead, and its slots for free
    timeout_s: float = Field(default=1.0, ge=0.05, le=3)
    offline_s: float = Field(default=3.0, ge=2, le=9)
    unavailable: Literal["refuse", "local"] = "refuse"
    breakers: bool = True

    @property
    def is_configured(self) -> bool:
        """Whether there is a store."""
        return self.store is not None or self.store_env is not None
