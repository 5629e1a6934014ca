"""Admission of requests, shared by all endpoints; jobs and responses of the text endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

from fastapi import Request
from starlette.responses import Response

from guard.config.checks import NO_POLICY
from guard.config.schema import Config
from guard.errors import RequestError, UnknownModel
from guard.tenants.keys import KeyRing, Principal
from guard.verdict import gravest
from server.auth import admit, authenticate, choose_policy
from server.errors import InvalidParameter, RequestTimeout, WrongEndpoint
from server.observe.exchange import exchange_of
from server.observe.metrics import Metrics
from server.screening.texts.turns import caller_of
from server.services.interface import (
    Capability,
    EmbeddingService,
    ImageModelInfo,
    ImageService,
    LanguageModelInfo,
    ModelInfo,
    SamplingParams,
    Service,
    TextRowRequest,
    TextService,
)
from server.services.text_jobs import TextJob, Usage, collect, until_disconnect
from server.services.tools.offered import OfferedTools
from server.services.tools.row_calls import RowCalls
from server.wire.body import read_object
from server.wire.replies import JSONReply
from server.wire.schemas.base import ModelRequest, RowSettings, parse_request
from server.wire.streams import EventStream, Reply
from server.wire.uploads import DECODED_AT_ONCE
from steering.prompt import Prompt

R = TypeVar("R", bound=ModelRequest)
S = TypeVar("S", bound=Service)

Reader = Callable[[Request, int], Awaitable[dict[str, Any]]]
"""Reads the body of a request, of at most that many bytes, as one object."""


MANY = 500
"""Messages or prompts that the event loop validates itself: some 20 milliseconds of work."""


@dataclass(frozen=True, slots=True)
class Admission(Generic[R, S]):
    """A request whose key, body, model and policy are valid. `deadline` is on the event loop's
    clock; `config`, `record_id` and `caller` are as in TextRowRequest."""

    body: R
    service: S
    policy: str
    config: Config
    key: Principal | None
    request_id: str
    deadline: float
    record_id: str = ""
    caller: str = ""

    @property
    def tenant(self) -> str:
        return self.key.tenant if self.key else ""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The configuration, services, keys and metrics of one server, and the checks on requests.

    `keys` is None on an open server.
    """

    config: Config
    services: Mapping[str, Service]
    keys: KeyRing | None
    metrics: Metrics
    current: Callable[[], Config]
    """The configuration with what has changed since the start: policies, and erasures' guards."""
    decoding: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(DECODED_AT_ONCE), repr=False, compare=False
    )
    """Held while uploaded images are decoded."""

    def authenticate(self, request: Request) -> Principal | None:
        """See `authenticate`."""
        key = authenticate(self.keys, request.headers)
        exchange_of(request).identify(self.config, self.keys, key)
        return key

    async def count(self, request: Request, key: Principal | None) -> None:
        """See `admit` of `server.auth`."""
        await admit(self.keys, key, exchange_of(request))

    def service(self, model: str) -> Service:
        """The service of `model`. Raises UnknownModel."""
        try:
            return self.services[model]
        except KeyError:
            raise UnknownModel(f"There is no model {model[:80]!r}.", param="model") from None

    def text_service(self, model: str) -> TextService:
        """The service of a language model. Raises UnknownModel and WrongEndpoint."""
        service = self.service(model)
        if not isinstance(service.info, LanguageModelInfo):
            raise _wrong_endpoint(service.info, "generates no text")
        return cast(TextService, service)

    def embedding_service(self, model: str) -> EmbeddingService:
        """The service of a model that gives embeddings. Raises UnknownModel and WrongEndpoint."""
        service = self.service(model)
        if "embeddings" not in service.info.capabilities:
            raise _wrong_endpoint(service.info, "gives no embeddings")
        return cast(EmbeddingService, service)

    def image_service(self, model: str) -> ImageService:
        """The service of an image model. Raises UnknownModel and WrongEndpoint."""
        service = self.service(model)
        if not isinstance(service.info, ImageModelInfo):
            raise _wrong_endpoint(service.info, "generates no images")
        return cast(ImageService, service)

    def editing_service(self, model: str) -> ImageService:
        """The service of an image model that edits images. Raises as `image_service`."""
        service = self.image_service(model)
        if "image_edits" not in service.info.capabilities:
            raise _wrong_endpoint(service.info, "edits no images")
        return service

    async def admit(
        self,
        request: Request,
        schema: type[R],
        service_of: Callable[[str], S],
        read: Reader = read_object,
    ) -> Admission[R, S]:
        """Check everything that can be checked before tokenisation, the cheapest checks first.

        `service_of` is `text_service` or `image_service`; `read` turns the body into an object.
        Raises RequestTimeout for a slow body, and the errors of each check.
        """
        limits = self.config.server
        deadline = asyncio.get_running_loop().time() + limits.request_timeout_s
        key = self.authenticate(request)
        exchange = exchange_of(request)
        await admit(self.keys, key, exchange)
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                raw = await read(request, limits.max_body_bytes)
        except TimeoutError:
            raise RequestTimeout("The request body arrived too slowly.") from None
        body = await _parsed(schema, raw)
        service = service_of(body.model)
        named = body.guard.policy if body.guard else None
        config = exchange.under(self.current())
        policy = choose_policy(config, key, body.model, request.headers, named)
        exchange.apply(config, policy)
        return Admission(
            body=body,
            service=service,
            policy=policy,
            config=config,
            key=key,
            request_id=exchange.request_id,
            deadline=deadline,
            record_id=exchange.record_id,
            caller=caller_of(key, request.scope).turn,
        )

    def require_debug(self, request: Request, admission: Admission[Any, Any]) -> None:
        """Raise InvalidParameter where the policy, or the key, does not let clients know where
        guards act."""
        policy = admission.policy
        if not admission.config.policy(policy).debug:
            remedy = (
                "name another policy"
                if policy == NO_POLICY
                else f"have the operator set 'debug = true' in [policies.{policy}]"
            )
            raise InvalidParameter(
                f"The policy {policy!r} does not show where its guards act: leave 'guard.debug' "
                f"out, or {remedy}.",
                param="guard.debug",
            )
        if exchange_of(request).detail != "full":
            raise InvalidParameter(
                "'guard.debug' says where guards act, and this request is not told: leave it out.",
                param="guard.debug",
            )

    def check_rows(self, prompts: int, choices: int) -> None:
        """Raise RequestError for more rows than the server takes at once."""
        limit = self.config.server.queue_limit
        if prompts * choices > limit:
            raise RequestError(
                f"The request needs {prompts * choices} rows; this server takes at most {limit} at "
                "once: send fewer prompts, or a smaller 'n'.",
                param="n",
            )

    def text_job(
        self,
        admission: Admission[Any, TextService],
        prompts: Sequence[Prompt],
        settings: RowSettings,
        tools: OfferedTools | None = None,
    ) -> TextJob:
        """A job of `settings.n` rows for each prompt; `tools` are those that its answers may call.

        Raises RequestError for an empty prompt, for more rows or tokens than the server allows, and
        for options that do not go with the form or the length of the answers.
        """
        limits = self.config.server
        form = admission.service.info.tools if tools else None
        constraint = settings.constraint
        if form and tools:
            constraint = tools.constraint(form.family, constraint)
        if not all(prompts):
            raise InvalidParameter("The prompt is empty.", param="prompt")
        self.check_rows(len(prompts), settings.n)
        most, name = settings.max_tokens, settings.max_tokens_at
        if most is not None and most > limits.max_tokens_limit and not settings.lowered:
            raise InvalidParameter(
                f"'{name}' is {most}; this server gives at most {limits.max_tokens_limit}.",
                param=name,
            )
        rows = []
        for prompt in prompts:
            room = max(1, admission.service.info.max_context - len(prompt))
            possible = min(limits.max_tokens_limit, room)
            wanted = most or possible
            sampling = SamplingParams(
                max_tokens=min(wanted, possible) if settings.lowered else wanted,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
                stop=settings.stop,
                top_logprobs=settings.top_logprobs,
                options=settings.options,
                constraint=constraint,
            )
            _check_lengths(sampling)
            rows += [(prompt, _nth_choice(sampling, choice)) for choice in range(settings.n)]
        single = len(rows) == 1
        requests = [
            TextRowRequest(
                request_id=admission.request_id if single else f"{admission.request_id}/{index}",
                prompt=prompt,
                policy=admission.policy,
                sampling=sampling,
                tenant=admission.tenant,
                record_id=admission.record_id,
                shown=form.shown if form else {},
                caller=admission.caller,
                streamed=admission.body.stream,
                debug=settings.debug,
                config=admission.config,
            )
            for index, (prompt, sampling) in enumerate(rows)
        ]
        calls_of = partial(RowCalls, form.family, tools) if form and tools else None
        return TextJob(admission.service, requests, settings.n, admission.deadline, calls_of)

    async def answer(
        self,
        request: Request,
        job: TextJob,
        reply: Reply,
        *,
        stream: bool,
        include_usage: bool = False,
    ) -> Response:
        """Run `job` and return its rows in the format of `reply`, as a stream or as one body."""
        exchange = exchange_of(request)
        # the prompts are read, also where the client hangs up
        prompts = job.prompt_tokens
        exchange.spend(prompts)

        def count(usage: Usage) -> None:
            self.metrics.count_tokens(job.service.info.name, usage.prompt, usage.completion)
            exchange.spend(usage.prompt + usage.completion - prompts)

        if stream:
            return EventStream(job, reply, exchange, include_usage=include_usage, on_usage=count)
        rows = await until_disconnect(request.receive, collect(job))
        usage = Usage.of([row.finished for row in rows], job.copies)
        count(usage)
        exchange.outcome = gravest(row.finished.verdict.outcome for row in rows)
        return JSONReply(reply.whole(rows, usage))


_ENDPOINTS: Mapping[Capability, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "images": "/v1/images/generations",
    "embeddings": "/v1/embeddings",
}


def _wrong_endpoint(info: ModelInfo, lacks: str) -> WrongEndpoint:
    """The error for a model that is asked for what it `lacks`, naming where it can be asked."""
    paths = [path for capability, path in _ENDPOINTS.items() if capability in info.capabilities]
    return WrongEndpoint(
        f"The model {info.name!r} {lacks}: use {' or '.join(paths)}, or another model.",
        param="model",
    )


def _check_lengths(sampling: SamplingParams) -> None:
    """Raise InvalidParameter where an answer would have to go on behind its end."""
    least = sampling.options.min_tokens
    for name, is_asked in (("min_tokens", least > 0), ("ignore_eos", sampling.options.ignore_eos)):
        if is_asked and sampling.constraint is not None:
            raise InvalidParameter(
                f"'{name}' does not go with an answer of a given form, nor with a tool that has to "
                "be called: these end where the form does; leave it out.",
                param=name,
            )
    if least > sampling.max_tokens:
        raise InvalidParameter(
            f"'min_tokens' is {least}, and the most tokens are {sampling.max_tokens}.",
            param="min_tokens",
        )


def _nth_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    """The sampling of choice number `choice`: its seed differs from those of the other choices and
    is the same in every run."""
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice + 2**63) % 2**64 - 2**63)


async def _parsed(schema: type[R], raw: dict[str, Any]) -> R:
    """`raw` as a `schema`, beside the event loop where it is long. Raises as `parse_request`."""
    lists = [
        raw[name] for name in ("messages", "prompt", "input") if isinstance(raw.get(name), list)
    ]
    if any(len(items) > MANY for items in lists):
        return await asyncio.to_thread(parse_request, schema, raw)
    return parse_request(schema, raw)
