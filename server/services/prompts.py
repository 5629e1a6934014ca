"""From messages and texts to prompts of a served language model, and what the model can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.errors import ContextExceeded, RequestError
from steering.prompt import Prompt


class PromptEncoder:
    """Encodes prompts of one model and checks them at admission.

    `tokenizer` is a fast one of transformers, `vocabulary` the number of token ids that the model
    has, `max_context` the most tokens of prompt and answer together.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, max_context: int) -> None:
        self.tokenizer = tokenizer
        self._vocabulary, self._max_context = vocabulary, max_context

    def chat(self, messages: Sequence[dict[str, Any]]) -> Prompt:
        """See `TextService.encode_chat`."""
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs: they raise what they like
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise RequestError(
                f"the model's chat template does not take these messages: {reason}",
                param="messages",
            ) from error
        return Prompt(
            tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        )

    def text(self, text: str) -> Prompt:
        """See `TextService.encode`."""
        return Prompt(tuple(self.tokenizer(text, verbose=False).input_ids))

    def check(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse a prompt that the model cannot run with an answer of `max_tokens`.

        Raises ContextExceeded where both are too long together, and RequestError for media and
        positions, which no engine here takes, and for token ids that the model does not have.
        """
        try:
            prompt.require_text()
        except ValueError as error:
            raise RequestError(str(error), param="prompt") from None
        limit = self._max_context
        if len(prompt) + max_tokens > limit:
            raise ContextExceeded(
                f"this model's maximum context length is {limit} tokens, but the prompt has "
                f"{len(prompt)} and max_tokens is {max_tokens}: shorten one of them"
            )
        if not all(0 <= token < self._vocabulary for token in prompt.tokens):
            # an id past the embedding's end raises no error on a GPU: it ends the whole process
            raise RequestError(f"token ids must lie in 0..{self._vocabulary - 1}", param="prompt")


def require_fast(tokenizer: Any) -> None:
    """Raise ValueError for a tokenizer of transformers that cannot decode token by token."""
    if not tokenizer.is_fast:
        raise ValueError("the model has no tokenizer.json, without which text cannot be streamed")


def context_length(config: Any, limit: int | None) -> int:
    """Tokens of prompt and answer that a model takes by its transformers configuration, at most
    `limit`."""
    positions = int(getattr(config, "max_position_embeddings", 2048))
    return min(positions, limit or positions)
