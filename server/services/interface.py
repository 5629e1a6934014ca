"""The seam between HTTP and whatever runs a model: services take prompts, give text or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from guard.verdict import Verdict
from steering.images.textual_inversion import EmbeddingLimits
from steering.prompt import Prompt

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
class TextRowRequest:
    """One row: a prompt, already tokenised, and the policy it runs under.

    `joined`: what the recorder knows it by where others look at its answer too.
    """

    request_id: str
    prompt: Prompt
    policy: str
    sampling: SamplingParams
    tenant: str = ""
    joined: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """An image to start from: `pixels` uint8 `[height, width, 3]` of the model's size.

    `strength` in (0, 1] is the share of the steps that are taken from it; None inverts it.
    """

    pixels: NDArray[np.uint8]
    strength: float | None


@dataclass(frozen=True, slots=True)
class ImageRowRequest:
    """One row: the prompt of an image, how it is drawn, and from what: None is noise.

    `embeddings` are vectors `[vectors, width]` for placeholders in the prompt; no log shows them.
    `debug`: tell where guards have written. `joined` is as in TextRowRequest.
    """

    request_id: str
    prompt: str
    policy: str
    seed: int
    steps: int
    guidance: float
    negative_prompt: str = ""
    tenant: str = ""
    joined: str = ""
    embeddings: Mapping[str, NDArray[np.float32]] = field(
        default_factory=dict, repr=False, compare=False
    )
    source: SourceImage | None = None
    debug: bool = False


AnyRequest = TextRowRequest | ImageRowRequest


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
class FinishedText:
    """The last event of a row."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """The end of a row that drew an image: `pixels` uint8 `[height, width, 3]`.

    `masks` has, by guard, where it has written: uint8 `[height, width]` on the latents' grid, 255
    where all was. Only for a row that asked for it.
    """

    pixels: NDArray[np.uint8]
    verdict: Verdict
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is told of every served model."""

    name: str
    engine: str
    created: int
    policies: tuple[str, ...] = ()

    def facts(self) -> Mapping[str, Any]:
        """The `guard` object of the model in `/v1/models`."""
        return {"engine": self.engine}


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelInfo(ModelInfo):
    max_context: int

    def facts(self) -> Mapping[str, Any]:
        return {"engine": self.engine, "max_context": self.max_context}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModelInfo(ModelInfo):
    """`steps` and `guidance` are those of a request that asks for none.

    `distilled` models have guidance as an input, and so no use for a negative prompt. `embeddings`
    None: a request can bring none of its own.
    """

    width: int
    height: int
    steps: int
    guidance: float
    max_steps: int
    distilled: bool = False
    embeddings: EmbeddingLimits | None = None

    @property
    def size(self) -> str:
        """As OpenAI writes it."""
        return f"{self.width}x{self.height}"

    def facts(self) -> Mapping[str, Any]:
        return {
            "engine": self.engine,
            "size": self.size,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "max_steps": self.max_steps,
            "embeddings": self.embeddings
            and {
                "width": self.embeddings.width,
                "largest_norm": self.embeddings.norm,
            },
        }


class TokenStream(Protocol):
    """The events of one row, the last one Finished. Closing it cancels the row."""

    def __aiter__(self) -> TokenStream: ...

    async def __anext__(self) -> TextDelta | FinishedText: ...

    async def aclose(self) -> None: ...


Event = TextDelta | FinishedText


class RowEvents(Protocol):
    """The events of one row, `FinishedText` the last of them."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None:
        """Cancel the row unless it has ended."""


class ImageRowHandle(Protocol):
    """A row that draws one image."""

    async def drawn(self) -> GeneratedImage:
        """The image when it is there, once.

        Raises ContentBlocked where the policy lets no image out, and GuardFailed where a guard
        could not be applied.
        """

    async def aclose(self) -> None:
        """Cancel the row unless it has ended."""


class Service(Protocol):
    """One served model. All methods are called from the event loop's thread."""

    @property
    def info(self) -> ModelInfo: ...

    def ready(self) -> bool:
        """True while requests are taken."""

    def queued(self) -> int:
        """Rows waiting for a place in the batch."""

    def close(self) -> None:
        """Stop taking requests, end all rows with ServiceStopped, release the model; any times."""


class ImageService(Service, Protocol):
    """A served image model."""

    @property
    def info(self) -> ImageModelInfo: ...

    def submit(self, requests: Sequence[ImageRowRequest]) -> Sequence[ImageRowHandle]:
        """Queue the rows of one HTTP request, all or none, as `TextService.submit` does."""


class TextService(Service, Protocol):
    """A served language model."""

    @property
    def info(self) -> LanguageModelInfo: ...

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> Prompt:
        """The prompt of `messages` in the model's own chat template, generation prompt added.

        Raises RequestError where the template does not take them.
        """

    def encode(self, text: str) -> Prompt:
        """The prompt of a raw text."""

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[TokenStream]:
        """Queue the rows of one HTTP request, all or none, and return one event stream for each.

        Raises UnknownPolicy, PolicyUnfit, ContextExceeded, TooManyRequests, GuardFailed and
        ServiceStopped at once. The stream raises ContentBlocked before its first event where a
        blocking guard fired on the prompt, and GuardFailed where a guard could not be applied.
        Closing a stream (`aclose`) cancels its row. Every row, however it ends, hands exactly one
        verdict to the `record(request, verdict)` callable that the service was built with: audit
        log and metrics hang there.
        """
