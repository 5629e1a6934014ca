"""Who sends a request, what it may do, and under which policy: for the server and the proxy."""

from __future__ import annotations

from starlette.datastructures import Headers

from guard.config.schema import Config
from guard.errors import (
    EmbeddingsForbidden,
    PolicyForbidden,
    RequestError,
    RoleForbidden,
    Unauthorized,
    UnknownPolicy,
)
from guard.tenants.covering import at_least, covers
from guard.tenants.keys import KeyRing, Principal
from guard.tenants.levels import Role
from server.observe.exchange import Exchange

POLICY_HEADER = "X-Guard-Policy"
KEY_HEADERS = ("x-api-key", "api-key")
"""Headers with an API key, beside `Authorization`."""


_ASKING: tuple[Role, ...] = ("tenant",)
READERS: tuple[Role, ...] = ("admin", "auditor")
"""Roles that read what the administrator reads."""
ADMINS: tuple[Role, ...] = ("admin",)


def authenticate(
    keys: KeyRing | None, headers: Headers, roles: tuple[Role, ...] = _ASKING
) -> Principal | None:
    """Whose key or token a request has; None on a server without keys, which is open to all.

    It is where clients of OpenAI (`Authorization: Bearer`), Anthropic (`x-api-key`) and Azure
    (`api-key`) put it. Raises Unauthorized for a missing or unknown key, and for two that differ;
    RoleForbidden for one of another role than `roles`.
    """
    if keys is None:
        return None
    given = _keys_in(headers)
    if not given:
        raise Unauthorized(
            'No API key; send it as "Authorization: Bearer KEY", "x-api-key: KEY" or '
            '"api-key: KEY".'
        )
    if len({token for _, token in given}) > 1:
        names = " and ".join(dict.fromkeys(name for name, _ in given))
        raise Unauthorized(f"The request has API keys that differ, in {names}; send one.")
    key = keys.find(given[0][1])
    if key is None:
        raise Unauthorized("Unknown API key.")
    if key.role not in roles:
        raise RoleForbidden(
            f"This needs a key of the role {' or '.join(map(repr, roles))}; the role of this one "
            f"is {key.role!r}."
        )
    return key


def reads_all(admins: KeyRing | None, headers: Headers) -> bool:
    """Whether a request has the key of an administrator or an auditor, one of `admins`."""
    try:
        return authenticate(admins, headers, READERS) is not None
    except (Unauthorized, RoleForbidden):
        return False


async def admit(keys: KeyRing | None, key: Principal | None, exchange: Exchange) -> None:
    """Count the request against the limits of its key, once. Raises TooManyRequests, and
    LimitsUnavailable where limits are shared and their store does not answer."""
    if keys is not None and key is not None and exchange.lease is None:
        exchange.lease = await keys.admit(key)


def _keys_in(headers: Headers) -> list[tuple[str, str]]:
    """Each API key in the headers, with the name of its header."""
    given = [
        ("Authorization", token.strip())
        for scheme, _, token in (v.partition(" ") for v in headers.getlist("authorization"))
        if scheme.lower() == "bearer"
    ]
    given += [(name, value.strip()) for name in KEY_HEADERS for value in headers.getlist(name)]
    return [(name, token) for name, token in given if token]


def default_policy(config: Config, key: Principal | None, model: str | None = None) -> str:
    """The policy of a request to `model` that names none: the key's default, else the model's, else
    the server's. Where that does less than the policies that the key requires, one of these.
    `model` None stands for a model without a default. Raises GuardFailed where none can be.
    """
    of_model = config.default_policies.get(model) if model is not None else None
    named = (key.default_policy if key else None) or of_model or config.server.default_policy
    return at_least(config, named, key.required) if key and key.required else named


def allowed_policies(config: Config, key: Principal | None, model: str | None = None) -> list[str]:
    """Policies that a request with `key` to `model` may name, in the configuration's order."""
    if key is None:
        return list(config.policy_names)
    allowed = {default_policy(config, key, model), *key.policies}
    return [
        name
        for name in config.policy_names
        if name in allowed and all(covers(config, name, floor) for floor in key.required)
    ]


def choose_policy(
    config: Config, key: Principal | None, model: str, headers: Headers, in_body: str | None
) -> str:
    """The policy of one request: the one in its header or body, else the default.

    Raises RequestError where header and body differ, UnknownPolicy and PolicyForbidden.
    """
    names = set(headers.getlist(POLICY_HEADER))
    if in_body is not None:
        names.add(in_body)
    if not names:
        return default_policy(config, key, model)
    if len(names) > 1:
        raise RequestError(
            f"The request names two policies; give {POLICY_HEADER} or 'guard.policy', not both.",
            param="guard.policy",
        )
    name = names.pop()
    if name not in config.policy_names:
        raise UnknownPolicy(f"There is no policy {name[:80]!r}.", param="guard.policy")
    if name not in allowed_policies(config, key, model):
        raise PolicyForbidden(
            f"This API key may not use the policy {name!r}.", param="guard.policy"
        )
    return name


def require_embeddings(config: Config, key: Principal | None) -> None:
    """Raise EmbeddingsForbidden where the request may not bring its own embeddings."""
    if key.embeddings if key else config.server.embeddings:
        return
    of_key = "in its [[keys]], or with `guard keys set`"
    subject, place = ("This API key", of_key) if key else ("This server", "in [server]")
    raise EmbeddingsForbidden(
        f"{subject} takes no embeddings: leave them out, or have the operator set 'embeddings = "
        f"true' {place}.",
        param="embeddings",
    )
