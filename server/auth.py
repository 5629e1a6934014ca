"""Who asks, and under which policy their rows run."""

from __future__ import annotations

from starlette.datastructures import Headers

from guard.config.keys import KeyRing
from guard.config.schema import Config, KeyConfig
from guard.errors import (
    EmbeddingsForbidden,
    PolicyForbidden,
    RequestError,
    Unauthorized,
    UnknownPolicy,
)

POLICY_HEADER = "X-Guard-Policy"


def authenticate(keys: KeyRing | None, headers: Headers) -> KeyConfig | None:
    """The settings of the caller's key; None on a server without keys, which is open to all.

    Raises Unauthorized where there is no key or an unknown one.
    """
    if keys is None:
        return None
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized('No API key; send it as "Authorization: Bearer KEY".')
    key = keys.find(token.strip())
    if key is None:
        raise Unauthorized("Unknown API key.")
    return key


def default_policy(config: Config, key: KeyConfig | None, model: str | None = None) -> str:
    """The policy of a request to `model` that asks for none: the key's, the model's, the server's.

    `model` None is one that has no default of its own.
    """
    own = next((each.default_policy for each in config.models if each.name == model), None)
    return (key.default_policy if key else None) or own or config.server.default_policy


def allowed_policies(config: Config, key: KeyConfig | None, model: str | None = None) -> list[str]:
    """Policies that the caller may ask `model` for, in the order of the configuration."""
    if key is None:
        return list(config.policy_names)
    own = {default_policy(config, key, model), *key.policies}
    return [name for name in config.policy_names if name in own]


def choose_policy(
    config: Config, key: KeyConfig | None, model: str, headers: Headers, in_body: str | None
) -> str:
    """The policy of one request: header or body, else the default.

    Raises RequestError where header and body differ, UnknownPolicy and PolicyForbidden.
    """
    asked = set(headers.getlist(POLICY_HEADER))
    if in_body is not None:
        asked.add(in_body)
    if not asked:
        return default_policy(config, key, model)
    if len(asked) > 1:
        raise RequestError(
            f"The request names two policies; give {POLICY_HEADER} or 'guard.policy', not both.",
            param="guard.policy",
        )
    name = asked.pop()
    if name not in config.policy_names:
        raise UnknownPolicy(f"There is no policy {name[:80]!r}.", param="guard.policy")
    if name not in allowed_policies(config, key, model):
        raise PolicyForbidden(
            f"This API key may not ask for the policy {name!r}.", param="guard.policy"
        )
    return name


def require_embeddings(config: Config, key: KeyConfig | None) -> None:
    """Raise EmbeddingsForbidden where a request may not bring embeddings of its own."""
    if key.embeddings if key else config.server.embeddings:
        return
    who, where = ("This API key", "its [[keys]]") if key else ("This server", "[server]")
    raise EmbeddingsForbidden(
        f"{who} takes no embeddings: leave them out, or have the operator set 'embeddings = true' "
        f"in {where}.",
        param="embeddings",
    )
