"""Prompts as token ids of a served language model, and what it has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.errors import ContextExceeded, RequestError


class PromptEncoder:
    """`tokenizer` is a fast one of transformers; `vocabulary` the number of token ids that the
    model takes, `max_context` how many tokens of prompt and answer."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, max_context: int) -> None:
        self.tokenizer = tokenizer
        self._vocabulary, self._max_context = vocabulary, max_context

    def chat(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
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
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def text(self, text: str) -> tuple[int, ...]:
        """See `TextService.encode`."""
        return tuple(self.tokenizer(text, verbose=False).input_ids)

    def require_room(self, prompt: Sequence[int], asked: int) -> None:
        """Raise ContextExceeded where `prompt` and the tokens asked for are too many, RequestError
        for token ids that the model does not have."""
        limit = self._max_context
        if len(prompt) + asked > limit:
            raise ContextExceeded(
                f"this model's maximum context length is {limit} tokens, but "
                f"{len(prompt)} in the prompt and {asked} in max_tokens were asked for: "
                "shorten one of them"
            )
        if not all(0 <= token < self._vocabulary for token in prompt):
            # past the embedding's end a GPU does not raise: it takes the whole process down
            raise RequestError(f"token ids must lie in 0..{self._vocabulary - 1}", param="prompt")
