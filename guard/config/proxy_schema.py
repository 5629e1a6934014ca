"""The sections of `config.toml` that only `guard proxy` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from guard.config.section import Name, Section


class ProxyConfig(Section):
    """`[proxy]`: times in seconds, sizes in bytes.

    `default_policy` is the proxy's own, in place of the server's, whose guards may be for models.
    `first_byte_timeout_s` is for the head of an answer, `chunk_timeout_s` for the time between two
    chunks, `total_timeout_s` for the whole answer. At most `max_requests` are sent to upstreams at
    the same time and `queue_limit` wait; further ones are refused. After a stop signal answers may
    continue for `drain_timeout_s`.
    """

    default_policy: Name | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    first_byte_timeout_s: float = Field(default=600.0, gt=0)
    chunk_timeout_s: float = Field(default=600.0, gt=0)
    total_timeout_s: float = Field(default=1800.0, gt=0)
    drain_timeout_s: int = Field(default=30, ge=0)
    max_requests: int = Field(default=2048, ge=1, le=100_000)
    queue_limit: int = Field(default=512, ge=0, le=100_000)
    max_body_bytes: int = Field(default=32 * 2**20, ge=1, le=2**30)
    max_response_bytes: int = Field(default=32 * 2**20, ge=1, le=2**30)


class UpstreamConfig(Section):
    """One of `[[upstreams]]`: an OpenAI-compatible server, or a server of MCP.

    `url` is what OpenAI's clients call the base URL: a client's `/v1/models` is asked as
    `URL/models`, and as `URL/v1/models` where the URL has no path. With `mcp` it is the URL of an
    MCP server (Streamable HTTP), which gets the requests for that path ("/mcp/files") and no other.

    `key_env` is the environment variable with its credential, which is sent in the header
    `key_header` ("authorization": as a bearer token). A request is sent to one of the upstreams
    with its model in `models` (empty: any), in proportion to `weight`; one of weight 0 gets only
    requests that a policy routes there. `health` is a path that is requested every
    `health_every_s`; without it only failed requests count. After `failures` in a row the upstream
    is not used for `cooldown_s`. `plugin`: it is a vLLM with this project's plugin.
    """

    name: Name
    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    models: Annotated[tuple[str, ...], Field(strict=False)] = ()
    weight: float = Field(default=1.0, ge=0, le=1e6)
    health: str | None = Field(default=None, pattern=r"^/[^\s]*$")
    health_every_s: float = Field(default=5.0, gt=0)
    failures: int = Field(default=5, ge=1, le=1000)
    cooldown_s: float = Field(default=10.0, gt=0)
    plugin: bool = False
    mcp: str | None = Field(default=None, pattern=r"^/mcp(/[A-Za-z0-9._-]*[A-Za-z0-9_-])*$")
