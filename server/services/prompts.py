"""From messages and texts to prompts of a served language model, and what the model can run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from guard.errors import ContextExceeded, RequestError
from server.errors import InvalidParameter, NoTools
from server.services.interface import SamplingOptions
from server.services.tools.offered import OfferedTools
from server.services.tools.template import ToolFormat
from steering.engines.transformers.tokens import PromptTokenizer, start_of_turn
from steering.prompt import Prompt

if TYPE_CHECKING:
    from steering.engines.transformers.vision.base import VisionFamily

T = TypeVar("T")

AT_ONCE = 16_384
"""Characters of a prompt that the event loop encodes itself, which takes a few milliseconds."""

_ENCODING = ThreadPoolExecutor(2, thread_name_prefix="prompts")


class PromptEncoder:
    """Encodes prompts of one model and checks them at admission.

    `tokenizer` is a fast one of transformers, `vocabulary` the number of token ids that the model
    has, `max_context` the most tokens of prompt and answer together, `vision` the family of a model
    that takes images in the messages of a chat, `tools` how it is told of tools, None where it
    knows none.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocabulary: int,
        max_context: int,
        vision: VisionFamily | None = None,
        tools: ToolFormat | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._tools = tools
        self._vocabulary, self._max_context = vocabulary, max_context
        self._placeholder = None if vision is None else vision.image_token
        self._prompts = _prompts_of(tokenizer, vision)
        self._prompts.prepare()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: OfferedTools | None = None,
        *,
        by_turn: bool = False,
    ) -> Prompt:
        """See `TextService.encode_chat`."""
        if not self.chats:
            raise RequestError(
                "this model has no chat template: it is a base model, for /v1/completions",
                param="model",
            )
        definitions: Sequence[Mapping[str, Any]] = tools.definitions if tools else ()
        beginning = ""
        turn = start_of_turn(messages) if by_turn else None
        if definitions or any(message.keys() & _OF_TOOLS for message in messages):
            form = _require_tools(self._tools, "tools" if definitions else "messages")
            # the turn apart: its calls and results may be text behind this, several in one message
            rest = () if turn is None else form.for_template(messages[turn:], ())[0]
            messages, definitions = form.for_template(messages[:turn], definitions)
            turn = None if turn is None else len(messages)
            messages = [*messages, *rest]
            beginning = tools.beginning(form.family) if tools else ""
        try:
            return self._prompts.chat(messages, definitions, beginning, turn=turn)
        except Exception as error:  # templates are programs: they raise what they like
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            subject = "the model's chat template" if self._placeholder is None else "this model"
            raise RequestError(
                f"{subject} does not take these messages: {reason}", param="messages"
            ) from error

    @property
    def chats(self) -> bool:
        """Whether there is a template for chats."""
        return bool(self.tokenizer.chat_template)

    def text(self, text: str) -> Prompt:
        """See `TextService.encode`."""
        try:
            return self._prompts.text(text)
        except ValueError as error:
            raise RequestError(f"the prompt cannot be encoded: {error}", param="prompt") from None

    def tokens(self, inputs: Sequence[str | tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The token ids of texts whose embeddings are wanted. Raises RequestError and
        ContextExceeded."""
        texts = token_ids(inputs, lambda text: self.text(text).tokens, self._vocabulary)
        for number, ids in enumerate(texts):
            if len(ids) > self._max_context:
                raise ContextExceeded(
                    f"input[{number}] has {len(ids)} tokens; this model takes at most "
                    f"{self._max_context}: send it in parts"
                )
            if self._placeholder is not None:
                self._require_images(Prompt(ids), self._placeholder)
        return texts

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse a prompt that the model cannot run with an answer of `max_tokens`.

        Raises ContextExceeded where both are too long together, and RequestError for token ids that
        the model does not have, for media and positions where it takes text alone, and for
        placeholders without an image.
        """
        if self._placeholder is None:
            require_text(prompt)
        limit = self._max_context
        if len(prompt) + max_tokens > limit:
            raise ContextExceeded(
                f"this model's maximum context length is {limit} tokens, but the prompt has "
                f"{len(prompt)} and max_tokens is {max_tokens}: shorten one of them"
            )
        if not all(0 <= token < self._vocabulary for token in prompt.tokens):
            # an id past the embedding's end raises no error on a GPU: it ends the whole process
            raise InvalidParameter(
                f"token ids must lie in 0..{self._vocabulary - 1}", param="prompt"
            )
        if self._placeholder is not None:
            self._require_images(prompt, self._placeholder)

    def check_options(self, options: SamplingOptions) -> None:
        """Refuse token ids that the model does not have. Raises InvalidParameter."""
        for name, tokens in (
            ("logit_bias", [token for token, _ in options.logit_bias]),
            ("stop_token_ids", options.stop_token_ids),
        ):
            if not all(0 <= token < self._vocabulary for token in tokens):
                raise InvalidParameter(
                    f"token ids in '{name}' must lie in 0..{self._vocabulary - 1}", param=name
                )

    def _require_images(self, prompt: Prompt, placeholder: int) -> None:
        """Refuse placeholders outside of the media, which only token ids of a client can bring."""
        inside = sum(
            prompt.tokens[item.start : item.stop].count(placeholder) for item in prompt.media
        )
        if prompt.tokens.count(placeholder) != inside:
            raise RequestError(
                f"the token id {placeholder} stands for an image, and the prompt has none there: "
                "send images in the messages of /v1/chat/completions",
                param="prompt",
            )


_OF_TOOLS = frozenset({"tool_calls", "tool_call_id"})
"""Members of messages that a template without tools leaves out."""


def _require_tools(form: ToolFormat | None, param: str) -> ToolFormat:
    """Raises NoTools."""
    if form is None:
        raise NoTools(
            "the chat template of this model knows no tools: ask another model (in /v1/models "
            "those that know tools have the name of their parser as 'guard.tools'), or have the "
            "operator set 'tool_parser = \"json\"' for this one, which tells it of tools in its "
            "system prompt",
            param=param,
        )
    return form


class _Prompts(Protocol):
    """Prompts of one model: of text alone, or with images."""

    def prepare(self) -> None: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        beginning: str = "",
        *,
        turn: int | None = None,
    ) -> Prompt: ...

    def text(self, text: str) -> Prompt: ...


class _TextPrompts:
    """Prompts of a model that takes text alone."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokens = PromptTokenizer(tokenizer)

    def prepare(self) -> None:
        self._tokens.prepare()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        beginning: str = "",
        *,
        turn: int | None = None,
    ) -> Prompt:
        tokens = self._tokens.chat(messages, tools=tools, beginning=beginning)
        before = 0
        if turn is not None:
            before = self._tokens.before_turn(messages, turn, tokens, tools=tools)
        return Prompt(tuple(tokens), turn=before)

    def text(self, text: str) -> Prompt:
        return Prompt(tuple(self._tokens.text(text)))


def _prompts_of(tokenizer: Any, vision: VisionFamily | None) -> _Prompts:
    if vision is None:
        return _TextPrompts(tokenizer)
    # imported here, since the proxy runs without torch
    from steering.engines.transformers.vision.prompts import VisionPrompts

    return VisionPrompts(tokenizer, vision)


async def encoded(encode: Callable[[T], Prompt], value: T, size: int) -> Prompt:
    """`encode(value)`, beside the event loop where the prompt has many characters (`size`)."""
    if size <= AT_ONCE:
        return encode(value)
    return await asyncio.get_running_loop().run_in_executor(_ENCODING, encode, value)


def require_fast(tokenizer: Any) -> None:
    """Raise ValueError for a tokenizer of transformers that cannot decode token by token."""
    if not tokenizer.is_fast:
        raise ValueError("the model has no tokenizer.json, without which text cannot be streamed")


def context_length(config: Any, limit: int | None) -> int:
    """Tokens of prompt and answer that a model takes by its transformers configuration, at most
    `limit`."""
    positions = int(getattr(config, "max_position_embeddings", 2048))
    return min(positions, limit or positions)


def require_text(prompt: Prompt) -> None:
    """Refuse media and positions for an engine that takes text alone. Raises RequestError."""
    try:
        prompt.require_text()
    except ValueError as error:
        raise RequestError(str(error), param="prompt") from None


def token_ids(
    inputs: Sequence[str | tuple[int, ...]], encode: Callable[[str], Sequence[int]], vocabulary: int
) -> list[tuple[int, ...]]:
    """The token ids of each input; `vocabulary` is the number of those that the model has.

    Raises InvalidParameter for an input without tokens, and for token ids that the model lacks.
    """
    texts = []
    for number, text in enumerate(inputs):
        ids = tuple(encode(text)) if isinstance(text, str) else text
        if not ids:
            raise InvalidParameter(f"input[{number}] is empty", param="input")
        if not all(0 <= token < vocabulary for token in ids):
            raise InvalidParameter(f"token ids must lie in 0..{vocabulary - 1}", param="input")
        texts.append(ids)
    return texts
