"""`/guard/v1/policies/NAME`: for administrators; auditors may read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.config.policy_schema import OF_ACTING
from guard.config.schema import Config
from guard.errors import InvalidPolicy
from guard.policies.recorded import MOST
from guard.policies.versions import (
    MAX_WHY,
    Act,
    Difference,
    Settings,
    Version,
    difference,
)
from guard.tenants.keys import KeyRing
from server.auth import ADMINS, READERS, authenticate
from server.errors import InvalidParameter
from server.openapi.operation import JSON, LISTING, READING, Operation, Query
from server.policies.replaying import Replays
from server.policies.service import LivePolicies
from server.wire.body import read_object
from server.wire.queries import whole_number
from server.wire.replies import JSONReply
from server.wire.schemas.answers.policies import (
    PolicyDiff,
    PolicyInForce,
    PolicyReplay,
    PolicyScores,
    PolicyVersion,
    PolicyVersionPage,
)
from server.wire.schemas.base import Part, parse_request
from server.wire.schemas.policies import (
    PolicyBody,
    PolicyDraft,
    PromotionBody,
    ReplayBody,
    RollbackBody,
    ShadowBody,
)

PAGE, MOST_OF_PAGE = 100, 1000
_MOST_VERSIONS = 2**31 - 1
_RESERVED = frozenset({"versions", "diff", "rollback", "shadow", "promote", "replay", "scores"})
"""Parts of paths, which no policy's name may have here."""
B = TypeVar("B", bound=Part)


def _number(name: str, description: str, most: int = _MOST_VERSIONS) -> Query:
    schema = {"type": "integer", "minimum": 1, "maximum": most}
    return Query(name=name, schema=schema, description=description)


_READ = Operation(answers={JSON: PolicyInForce}, errors=LISTING | {403, 404}, admin=True)
_VERSION = replace(_READ, answers={JSON: PolicyVersion}, errors=_READ.errors | {400, 503})
_VERSIONS = replace(
    _VERSION,
    answers={JSON: PolicyVersionPage},
    queries=(
        _number("limit", "How many.", MOST_OF_PAGE),
        _number("before", "A number: the versions before it."),
    ),
)
_DIFF = replace(
    _VERSION,
    answers={JSON: PolicyDiff},
    queries=(
        _number("from", "A version; left out, the one before the other."),
        _number("to", "A version; left out, the one in force."),
    ),
)
_DRAFT = replace(_DIFF, body=PolicyDraft, queries=(), errors=_DIFF.errors | READING)
_WHY = Query(name="why", schema={"type": "string", "maxLength": MAX_WHY}, description="Why.")
_CHANGE = replace(_VERSION, errors=_VERSION.errors | READING | {409})
_PUT = replace(_CHANGE, body=PolicyBody, also=(201,))
_DELETE = replace(_CHANGE, queries=(_WHY,))
_ROLLBACK = replace(_CHANGE, body=RollbackBody)
_SHADOW = replace(_CHANGE, body=ShadowBody)
_PROMOTE = replace(_CHANGE, body=PromotionBody)
_REPLAY = replace(_CHANGE, body=ReplayBody, answers={JSON: PolicyReplay})
_SCORES = replace(
    _VERSION,
    answers={JSON: PolicyScores},
    queries=(_number("last", "Of how many requests.", MOST),),
    errors=_VERSION.errors | {409},
)


@dataclass(frozen=True, slots=True)
class Administration:
    """What the routes change and ask, and the keys that may."""

    policies: LivePolicies
    replays: Replays
    admins: KeyRing


def policies_router(config: Config, administration: Administration) -> APIRouter:
    """The routes. What is changed is in force here when the answer leaves, and on other servers of
    the same database within `live_policies.refresh_s`."""
    router = APIRouter(prefix="/guard/v1/policies")
    policies, replays = administration.policies, administration.replays
    store, live = policies.store, policies.live

    def reading(request: Request) -> None:
        authenticate(administration.admins, request.headers, READERS)

    def changing(request: Request) -> str:
        principal = authenticate(administration.admins, request.headers, ADMINS)
        return principal.tenant if principal is not None else ""

    async def read_body(request: Request, schema: type[B]) -> B:
        limits = config.server
        raw = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
        return parse_request(schema, raw)

    async def change(
        policy: str,
        act: Act,
        settings: Settings | None,
        *,
        by: str,
        why: str,
        expected: int | None = None,
    ) -> Response:
        made = policies.change(policy, act, settings, by=by, why=why, expected=expected)
        # to its end, also where the client hangs up
        version = await asyncio.shield(asyncio.ensure_future(made))
        is_new = act == "put" and version.number == 1
        return JSONReply(version.as_dict(current=True), status_code=201 if is_new else 200)

    async def change_from(
        version: Version, act: Act, settings: Settings, *, by: str, why: str
    ) -> Response:
        """As `change`, with settings that were made of those of `version`: where others change the
        policy at the same time, what they have changed must not be undone."""
        policy, expected = version.change.policy, version.number
        return await change(policy, act, settings, by=by, why=why, expected=expected)

    def told(version: Version) -> dict[str, Any]:
        return version.as_dict(current=policies.is_current(version))

    async def settings_at(policy: str, number: int | None) -> Settings | None:
        if number is None:
            return None
        return (await asyncio.to_thread(store.version, policy, number)).settings

    @router.get("/{policy:path}/versions", openapi_extra=_VERSIONS.as_extra())
    async def list_policy_versions(request: Request, policy: str) -> Response:
        """The versions of a policy."""
        reading(request)
        limit = _integer(request, "limit", MOST_OF_PAGE) or PAGE
        before = _integer(request, "before")
        found = await asyncio.to_thread(
            lambda: store.versions(policy, limit=limit + 1, before=before)
        )
        if not found and before is None:
            policies.current(policy)
        data = [told(version) for version in found[:limit]]
        return JSONReply({"object": "list", "data": data, "has_more": len(found) > limit})

    @router.get("/{policy:path}/versions/{version}", openapi_extra=_VERSION.as_extra())
    async def retrieve_policy_version(request: Request, policy: str, version: str) -> Response:
        """One version of a policy."""
        reading(request)
        number = whole_number("version", version, _MOST_VERSIONS)
        return JSONReply(told(await asyncio.to_thread(store.version, policy, number)))

    @router.get("/{policy:path}/diff", openapi_extra=_DIFF.as_extra())
    async def compare_policy_versions(request: Request, policy: str) -> Response:
        """What differs between two versions of a policy."""
        reading(request)
        to = _integer(request, "to") or policies.current(policy).number
        start = _integer(request, "from") or (to - 1 or None)
        before, after = await settings_at(policy, start), await settings_at(policy, to)
        found = difference(before, after, live.config)
        return JSONReply(_diff(policy, found, start, to))

    @router.post("/{policy:path}/diff", openapi_extra=_DRAFT.as_extra())
    async def compare_policy_draft(request: Request, policy: str) -> Response:
        """What would differ under other settings, which are checked, and not put in force."""
        reading(request)
        body = await read_body(request, PolicyDraft)
        before = policies.current(policy)
        draft = await asyncio.to_thread(policies.require_possible, policy, body.settings)
        found = difference(before.settings, draft, live.config)
        return JSONReply(_diff(policy, found, before.number, None))

    @router.post("/{policy:path}/rollback", openapi_extra=_ROLLBACK.as_extra())
    async def roll_policy_back(request: Request, policy: str) -> Response:
        """Put the settings of an earlier version in force again, as a new version."""
        by = changing(request)
        body = await read_body(request, RollbackBody)
        settings = await settings_at(policy, body.to)
        if settings is None:
            raise InvalidPolicy(
                f"In version {body.to} the policy was removed: delete it instead.", param="to"
            )
        return await change(
            policy, "rollback", settings, by=by, why=body.why, expected=body.version
        )

    @router.put("/{policy:path}/shadow", openapi_extra=_SHADOW.as_extra())
    async def set_policy_shadow(request: Request, policy: str) -> Response:
        """Let other settings judge the policy's requests beside it, and do nothing."""
        by = changing(request)
        body = await read_body(request, ShadowBody)
        version = policies.current(policy)
        settings = {**_settings(version), "shadow": body.settings}
        return await change_from(version, "shadow", settings, by=by, why=body.why)

    @router.delete("/{policy:path}/shadow", openapi_extra=_DELETE.as_extra())
    async def remove_policy_shadow(request: Request, policy: str) -> Response:
        """Take the shadow of a policy away."""
        by = changing(request)
        version = policies.current(policy)
        _shadow(version)
        settings = _settings(version)
        del settings["shadow"]
        return await change_from(version, "shadow", settings, by=by, why=_why(request))

    @router.post("/{policy:path}/shadow/promote", openapi_extra=_PROMOTE.as_extra())
    async def promote_policy_shadow(request: Request, policy: str) -> Response:
        """Put the settings of the shadow in force."""
        by = changing(request)
        body = await read_body(request, PromotionBody)
        version = policies.current(policy)
        settings = {**_kept(version), **_shadow(version)}
        return await change_from(version, "promote", settings, by=by, why=body.why)

    @router.post("/{policy:path}/replay", openapi_extra=_REPLAY.as_extra())
    async def replay_policy(request: Request, policy: str) -> Response:
        """Which of the last requests would be decided otherwise under other settings."""
        reading(request)
        body = await read_body(request, ReplayBody)
        version = policies.current(policy) if body.shadow else None
        settings: Settings | None = body.settings
        if version is not None:
            settings = {**_kept(version), **_shadow(version)}
        elif body.version is not None:
            settings = await settings_at(policy, body.version)
        if settings is None:
            raise InvalidPolicy(
                f"In version {body.version} the policy was removed.", param="version"
            )
        tried = live.overlay(await asyncio.to_thread(policies.tried, policy, settings))
        result = await replays.run(
            *(policy, live.config, tried),
            store=store,
            last=body.last,
            show=body.show,
            every_policy=body.every_policy,
        )
        return JSONReply(result.as_dict())

    @router.get("/{policy:path}/scores", openapi_extra=_SCORES.as_extra())
    async def list_policy_scores(request: Request, policy: str) -> Response:
        """The scores of the policy's guards on its last requests, the newest first."""
        reading(request)
        policies.current(policy)
        last = _integer(request, "last", MOST) or 1000
        return JSONReply(await replays.scores(live.config, last, policy))

    @router.get("/{policy:path}", openapi_extra=_READ.as_extra())
    async def retrieve_policy(request: Request, policy: str) -> Response:
        """A policy as it is in force."""
        reading(request)
        version = policies.current(policy)
        shadow = _settings(version).get("shadow")
        return JSONReply(version.as_dict(current=True) | {"shadow": shadow})

    @router.put("/{policy:path}", openapi_extra=_PUT.as_extra())
    async def put_policy(request: Request, policy: str) -> Response:
        """Change a policy, or make one: new requests follow, running ones end as they began."""
        by = changing(request)
        body = await read_body(request, PolicyBody)
        if not _RESERVED.isdisjoint(policy.split("/")):
            raise InvalidPolicy(
                "No part of a policy's name may be a word of this interface: "
                f"{', '.join(sorted(_RESERVED))}."
            )
        return await change(
            policy, "put", body.settings, by=by, why=body.why, expected=body.version
        )

    @router.delete("/{policy:path}", openapi_extra=_DELETE.as_extra())
    async def delete_policy(request: Request, policy: str) -> Response:
        """Remove a policy that nothing names any more."""
        by = changing(request)
        return await change(policy, "delete", None, by=by, why=_why(request))

    return router


def _settings(version: Version) -> dict[str, Any]:
    return dict(version.settings or {})


def _shadow(version: Version) -> Mapping[str, Any]:
    shadow: Mapping[str, Any] | None = _settings(version).get("shadow")
    if shadow is None:
        raise InvalidPolicy(f"The policy {version.change.policy!r} has no shadow.")
    return shadow


def _kept(version: Version) -> dict[str, Any]:
    """The settings that a shadow does not have, as it acts on nothing."""
    kept = {*OF_ACTING, "message"}
    return {name: value for name, value in _settings(version).items() if name in kept}


def _diff(policy: str, found: Difference, start: int | None, end: int | None) -> dict[str, Any]:
    facts = {"object": "policy.diff", "policy": policy, "from": start, "to": end}
    return {**facts, "changes": list(found.changes), "weaker": found.weaker}


def _why(request: Request) -> str:
    why = request.query_params.get("why") or ""
    if len(why) > MAX_WHY:
        raise InvalidParameter(f"'why' has at most {MAX_WHY} characters.", param="why")
    return why


def _integer(request: Request, name: str, most: int = _MOST_VERSIONS) -> int | None:
    given = request.query_params.get(name)
    return None if given is None else whole_number(name, given, most)
