"""The interface between HTTP and engines: services run rows and return text or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from guard.config.schema import Config
from guard.verdict import Verdict
from server.services.token_gates import TokenGate
from server.services.tools.offered import OfferedTools
from server.services.tools.parser import CallDelta, CallEnd
from server.services.tools.template import ToolFormat
from steering.constraint import Constraint
from steering.images.textual_inversion import EmbeddingLimits
from steering.prompt import Prompt
from steering.sampling import LogitOptions

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(LogitOptions):
    """Further settings of a row's sampling, by vLLM's names. The defaults change nothing.

    `stop_token_ids` end the row beside the model's end tokens, which do not where `ignore_eos`.
    """

    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


PLAIN_SAMPLING = SamplingOptions()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row is sampled. `temperature` 0 is greedy; `seed` None takes a random one."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """None: no log-probabilities; 0: those of the chosen tokens; n: of the n likeliest, too."""
    options: SamplingOptions = PLAIN_SAMPLING
    constraint: Constraint | None = None
    """What the whole answer matches."""


@dataclass(frozen=True, slots=True)
class TextRowRequest:
    """One row of a batch of text: a prompt and the policy that it runs under.

    `record_id` is the id under which the recorder holds the row's verdict until text screens have
    read its answer; "" where none do. `shown`: special tokens, by id, that are text in the answer.
    `adapter` names the LoRA adapter that the row runs with, `caller` is whose turn its work takes.
    `streamed`: the client reads the answer as it comes. `debug` asks for the scores of each token.
    `config` is the configuration that the request was admitted under, whatever is in force by now;
    None is that of the service.
    """

    request_id: str
    prompt: Prompt
    policy: str
    sampling: SamplingParams
    tenant: str = ""
    record_id: str = ""
    shown: Mapping[int, str] = field(default_factory=dict)
    adapter: str | None = None
    caller: str = ""
    streamed: bool = False
    debug: bool = False
    config: Config | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """The image that an edit starts from: `pixels` uint8 `[height, width, 3]` of the model's size.

    `strength` in (0, 1] is the share of the denoising steps that run; None inverts the image and
    runs all of them.
    """

    pixels: NDArray[np.uint8]
    strength: float | None


@dataclass(frozen=True, slots=True)
class ImageRowRequest:
    """One row of a batch of images: a prompt, the policy and the settings of the sampler.

    `embeddings` are vectors `[vectors, width]` for placeholders in the prompt; no log shows them.
    `source` None starts from noise. `debug` asks for the masks of the pixels that guards have
    changed. `record_id` and `config` are as in TextRowRequest.
    """

    request_id: str
    prompt: str
    policy: str
    seed: int
    steps: int
    guidance: float
    negative_prompt: str = ""
    tenant: str = ""
    record_id: str = ""
    embeddings: Mapping[str, NDArray[np.float32]] = field(
        default_factory=dict, repr=False, compare=False
    )
    source: SourceImage | None = None
    debug: bool = False
    config: Config | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token ids, of which the embeddings are wanted, and the policy of the request.

    `record_id` and `config` are as in TextRowRequest.
    """

    request_id: str
    inputs: Sequence[str | tuple[int, ...]]
    policy: str
    tenant: str = ""
    record_id: str = ""
    config: Config | None = field(default=None, repr=False, compare=False)


AnyRequest = TextRowRequest | ImageRowRequest | EmbeddingRequest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its text, log-probability and the likeliest alternatives."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one row; `tokens` is filled where the request wants log-probabilities, `gates`,
    of tokens that were sent before, where it has `debug`. `said`: the text is the policy's message,
    with which the answer ends, and not of the model.
    """

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    said: bool = False
    gates: tuple[TokenGate, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedText:
    """The last event of a row. `stop` is the stop string that has ended it, if one has."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    verdict: Verdict
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """The image of a row and its verdict: `pixels` uint8 `[height, width, 3]`.

    `masks` has one mask for each guard, uint8 `[height, width]` on the grid of the latents: 255
    where the guard has replaced everything, 0 where nothing. Empty unless the row has `debug`.
    """

    pixels: NDArray[np.uint8]
    verdict: Verdict
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedTexts:
    """`vectors` float32 `[inputs, width]` of length one, and the one verdict of the request."""

    vectors: NDArray[np.float32]
    prompt_tokens: int
    verdict: Verdict


Capability = Literal[
    "chat", "tools", "completions", "structured_output", "embeddings", "images", "image_edits"
]
"""What requests can ask a model for, as `/v1/models` shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The public facts of a served model, whatever it generates. `embedding_width` is that of its
    embeddings, None where it gives none."""

    name: str
    engine: str
    created: int
    policies: tuple[str, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    embedding_width: int | None = None

    def facts(self) -> Mapping[str, Any]:
        """The `guard` object of the model in `/v1/models`."""
        facts: dict[str, Any] = {
            "engine": self.engine,
            "capabilities": list(self.capabilities),
        }
        if self.embedding_width is not None:
            facts["embedding_width"] = self.embedding_width
        return facts


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelInfo(ModelInfo):
    """`sees`: the messages of a chat may have images. `tools`: how the model is told of tools and
    calls them; None where it knows none. `parent`: the model of which this one is an adapter."""

    max_context: int
    capabilities: tuple[Capability, ...] = ("chat", "completions")
    sees: bool = False
    tools: ToolFormat | None = None
    parent: str | None = None

    def facts(self) -> Mapping[str, Any]:
        return {
            **ModelInfo.facts(self),
            "max_context": self.max_context,
            "tools": None if self.tools is None else self.tools.family.name,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo(ModelInfo):
    """A model that gives embeddings alone, of texts of up to `max_context` tokens."""

    max_context: int
    capabilities: tuple[Capability, ...] = ("embeddings",)

    def facts(self) -> Mapping[str, Any]:
        return {**ModelInfo.facts(self), "max_context": self.max_context}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModelInfo(ModelInfo):
    """`steps` and `guidance` are the defaults of a request.

    `distilled` models take the guidance scale as an input, hence have no use for a negative prompt.
    `denoises` False: the model writes its images token by token, without steps and guidance.
    `embeddings` None: requests bring no embeddings of their own.
    """

    width: int
    height: int
    steps: int = 0
    guidance: float = 0.0
    max_steps: int = 0
    capabilities: tuple[Capability, ...] = ("images", "image_edits")
    distilled: bool = False
    denoises: bool = True
    embeddings: EmbeddingLimits | None = None

    @property
    def size(self) -> str:
        """The image size in OpenAI's notation, "512x512"."""
        return f"{self.width}x{self.height}"

    def facts(self) -> Mapping[str, Any]:
        denoising = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "max_steps": self.max_steps,
            "embeddings": self.embeddings
            and {"width": self.embeddings.width, "largest_norm": self.embeddings.norm},
        }
        size = {**ModelInfo.facts(self), "size": self.size}
        return size | denoising if self.denoises else size


Event = TextDelta | CallDelta | CallEnd | FinishedText


class RowEvents(Protocol):
    """The events of one row of text; `FinishedText` is the last one."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...

    def end(self) -> None:
        """No more of the answer is wanted: `FinishedText` follows soon, as behind a stop string."""

    async def aclose(self) -> None:
        """Cancel the row, unless it has ended."""


class ImageRowHandle(Protocol):
    """A submitted row that generates one image."""

    async def image(self) -> GeneratedImage:
        """Wait for the image; to be called once. Raises ContentBlocked where a guard blocks it, and
        GuardFailed where a guard could not be applied."""

    async def aclose(self) -> None:
        """Cancel the row, unless it has ended."""


class Service(Protocol):
    """One served model. All methods are called from the event loop's thread."""

    @property
    def info(self) -> ModelInfo: ...

    def ready(self) -> bool:
        """True while the service takes requests."""

    def queued(self) -> int:
        """Number of rows that wait for a place in the batch."""

    def close(self) -> None:
        """Stop taking requests, end all rows with ServiceStopped and release the model; may be
        called several times."""


class EmbeddingService(Service, Protocol):
    """A served model whose `capabilities` have "embeddings"."""

    async def embed(self, request: EmbeddingRequest) -> EmbeddedTexts:
        """The embeddings of the request's texts. Cancelling it gives up what has not begun.

        Raises RequestError, UnknownPolicy, PolicyUnfit, ContextExceeded, TooManyRequests,
        EngineFailed and ServiceStopped. The verdict of an answered request passes to the `record`
        callable of the service.
        """


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

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: OfferedTools | None = None,
        *,
        by_turn: bool = False,
    ) -> Prompt:
        """The prompt of `messages` in the model's own chat template, generation prompt added, and
        behind it what the choice of `tools` has an answer begin with; `by_turn` marks where the
        last turn of the user begins, for guards that decide on it alone.

        The `content` of a message is a text, or, where the model sees, a list of parts:
        `{"type": "text", "text": str}` and `{"type": "image", "image": uint8 [H, W, 3]}`. Calls of
        tools, and what came of them, are as in OpenAI's chats, with arguments as objects. Raises
        RequestError where the template or the model does not take them.
        """

    def encode(self, text: str) -> Prompt:
        """The prompt of a raw text."""

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        """Compile the constraints of these requests, beside the event loop and the engine.

        To be called before `submit`. Raises RequestError for a constraint that this model cannot
        follow.
        """

    def submit(self, requests: Sequence[TextRowRequest]) -> Sequence[RowEvents]:
        """Queue the rows of one HTTP request, all or none; returns the events of each row.

        Raises RequestError (a prompt with media, for an engine that takes text alone),
        UnknownPolicy, PolicyUnfit, ContextExceeded, TooManyRequests, GuardFailed and ServiceStopped
        at once. The events raise ContentBlocked before the first one where a blocking guard has
        fired on the prompt, and GuardFailed where a guard could not be applied. Closing the events
        (`aclose`) cancels the row. Every row, however it ends, passes exactly one verdict to the
        `record(request, verdict)` callable of the service: the source of audit log and metrics.
        """
