"""The seam between HTTP and whatever runs a model: a service takes prompts and streams tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from guard.verdict import Verdict

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row is sampled. `temperature` 0 is greedy; `seed` None draws one at admission."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """None: no logprobs at all; 0: the chosen token's only; n: the n likeliest beside it."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One row: a prompt, already tokenised, and the policy it runs under."""

    request_id: str
    prompt: tuple[int, ...]
    policy: str
    sampling: SamplingParams
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its text, log-probability and the likeliest alternatives."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one row; `tokens` is filled where logprobs were asked for."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a row."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `/v1/models` tells about a served model."""

    name: str
    engine: str
    created: int
    max_context: int
    policies: tuple[str, ...] = field(default=())


class TokenStream(Protocol):
    """The events of one row, the last one Finished. Closing it cancels the row."""

    def __aiter__(self) -> TokenStream: ...

    async def __anext__(self) -> TextDelta | Finished: ...

    async def aclose(self) -> None: ...


Event = TextDelta | Finished


class RowEvents(Protocol):
    """The events of one row, `Finished` the last of them."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None:
        """Cancel the row unless it has ended."""


class Service(Protocol):
    """One served model. All methods are called from the event loop's thread."""

    info: ModelInfo

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Token ids of `messages` in the model's own chat template, generation prompt added.

        Raises RequestError where the template does not take them.
        """

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a raw prompt."""

    def submit(self, requests: Sequence[GenerationRequest]) -> Sequence[TokenStream]:
        """Queue the rows of one HTTP request, all or none, and return one event stream for each.

        Raises UnknownPolicy, ContextExceeded, TooManyRequests, ServiceStopped at once. The stream
        raises ContentBlocked before its first event where a blocking guard fired on the prompt,
        and GuardFailed where a guard could not be applied. Closing a stream (`aclose`) cancels its
        row. Every row, however it ends, hands exactly one verdict to the `record(request, verdict)`
        callable that the service was built with: audit log and metrics hang there.
        """

    def ready(self) -> bool:
        """True while requests are taken."""

    def queued(self) -> int:
        """Rows waiting for a place in the batch."""

    def close(self) -> None:
        """Stop taking requests, end all rows with ServiceStopped, release the model; any times."""
