"""The scores that guards give the tokens of one row, for a client that asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steering.prompt import Prompt

if TYPE_CHECKING:  # the proxy, which reads the types of events, has no torch
    from steering.engines.transformers.row_tokens import RowToken
    from steering.hidden.table import TokenScores


@dataclass(frozen=True, slots=True)
class TokenGate:
    """The score of each guard for one token that the model has read, by the guard's name.

    `position` is n for the n-th token of the answer; 0 for a token of the prompt, whose `text` is
    given. A guard passes over some tokens, the first one of a prompt among them.
    """

    position: int
    scores: Mapping[str, float]
    text: str = ""


class TokenGates:
    """Collects the scores of tokens, and hands them out once the tokens have been sent.

    A token is scored in the forward behind the one that generated it, and may have been withdrawn
    by then: what a client does not read, it is not told of. `tokenizer` names the prompt's tokens.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:
        self._prompt, self._tokenizer = prompt, tokenizer
        self._generated = 0
        """Tokens of the answer that have not been withdrawn, sent or not."""
        self._told = 0
        """The position of the last token of the answer whose scores were handed out."""
        self._of_prompt: tuple[TokenGate, ...] = ()
        self._found: dict[int, TokenScores] = {}

    def read(self, token: RowToken) -> None:
        """Take what was read to generate this token."""
        if token.gates:
            if self._generated:
                # one that was told is read again where the answer goes back to it
                if self._generated > self._told:
                    self._found[self._generated] = token.gates[-1]
            elif len(token.gates) >= len(self._prompt):
                # else the answer has gone back to its beginning: the prompt was told
                self._of_prompt = self._named(token.gates)
        self._generated += 1

    def go_back(self, withdrawn: int) -> None:
        """The last tokens are withdrawn, and with them their scores: others take their places."""
        self._generated -= withdrawn
        self._found = {at: scores for at, scores in self._found.items() if at <= self._generated}

    def take(self, sent: int) -> tuple[TokenGate, ...]:
        """What is known of the prompt and the first `sent` tokens, each told once."""
        if not (self._found or self._of_prompt):
            return ()
        settled = sorted(position for position in self._found if position <= sent)
        self._told = max([self._told, *settled])
        prompt, self._of_prompt = self._of_prompt, ()
        gates = [TokenGate(position, self._found.pop(position)) for position in settled]
        return (*prompt, *gates)

    def _named(self, scores: tuple[TokenScores, ...]) -> tuple[TokenGate, ...]:
        tokens = self._prompt.tokens
        return tuple(
            TokenGate(0, found, str(self._tokenizer.decode([token])))
            for token, found in zip(tokens, scores[-len(tokens) :], strict=True)
        )
