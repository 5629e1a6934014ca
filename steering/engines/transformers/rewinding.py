"""Going back in an answer: where a guard fires on a generated token, its row goes on, steered, from
the end of the last sentence before that token.

Steering from the very token on would break the sentence in which the topic came up. The tokens
after the sentence's end are withdrawn: whoever sends an answer to a client holds them back until no
guard can withdraw them any more.

An answer that has been steered before ends there: directions that lead to the beginning of a
refusal lead to the same beginning once more. So does one that cannot go back as far as its last
sentence, since a client has read more. An answer ends, too, before a sentence that it has said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from steering.engines.transformers.row_tokens import RowToken
from steering.hidden.rows import Reading
from steering.prompt import Prompt

HELD_BACK = 64
"""The most tokens that are withdrawn at once: an answer whose sentence is longer ends there."""

_TAIL = 32
"""Characters before a place that say whether a sentence ends there."""

_END = re.compile(r"[.!?…][\"'”’)\]*_]*\s*$")
_END_WITHOUT_SPACE = re.compile(r"[。！？][”’」』）]*\s*$")
_NO_END = re.compile(
    # initials and list numbers, abbreviations of titles, three dots that trail off
    r"(?:(?:^|[\s(.])(?:[A-Za-z]|\d{1,3}|Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|Mt|vs|etc|e\.g|i\.e|No)\.|\.\.\.)\s*$"
)


Rewinds = Literal["never", "steered", "always"]
"""Which answers can go back as far as their last sentence's end: none; those whose text a client
does not wait for, since they are sent whole, and those that are steered from their prompt on; all
of them, for which streams are held back sentence by sentence."""

Step = Literal["push", "back", "block", "say"]
"""What becomes of an answer at a token of it: it goes on with it, goes back, is blocked, or ends
with the policy's message."""


class AnswerPolicy(Protocol):
    """What a policy does with answers, beside what its guards do inside of a forward."""

    @property
    def rewinds(self) -> Rewinds:
        """Which answers go back where a guard that acts fires on them."""

    @property
    def by_turn(self) -> bool:
        """Whether guards decide on the last turn of the user alone."""

    @property
    def message(self) -> str:
        """What is said in place of an answer, or of the rest of one."""

    @property
    def may_end(self) -> bool:
        """Whether a guard that fires may end the answer."""

    @property
    def says_later(self) -> bool:
        """Whether a guard that fires on the answer may end it with the message."""

    def ending(self, readings: Mapping[str, Reading]) -> Literal["block", "say"] | None:
        """How guards that have fired end the answer; None where it goes on."""


def step_of(
    policy: AnswerPolicy, token: RowToken, readings: Callable[[], Mapping[str, Reading]]
) -> Step:
    """What becomes of an answer at this token of it; `readings` are those of the row's guards."""
    end = policy.ending(readings()) if token.flags.fired and policy.may_end else None
    if end is None and token.flags.started and policy.rewinds != "never":
        return "back"
    return end or "push"


class Sentences:
    """Finds the ends of sentences between generated tokens. `tokenizer` is a fast one of
    transformers."""

    def __init__(self, tokenizer: Any) -> None:
        def decode(token: int) -> str:
            return str(tokenizer.decode([token], skip_special_tokens=True))

        self.text_of: Callable[[int], str] = lru_cache(maxsize=16_384)(decode)
        """The text of one token."""

    def ends(self, before: str, after: str) -> bool:
        """Whether a sentence ends between the texts `before` and `after`."""
        if _END_WITHOUT_SPACE.search(before):
            return True
        if not _END.search(before) or _NO_END.search(before):
            return False
        return before[-1].isspace() or after[:1].isspace()


@dataclass(frozen=True)
class Back:
    """How a row goes back: the tokens that are withdrawn, that which has just been generated among
    them, and the `last` one before them, which is read again.

    `stuck`: it has been steered before, or its last sentence has been sent in part, so that its
    answer had better end.
    """

    withdrawn: tuple[int, ...]
    last: int
    stuck: bool


class HeldAnswer:
    """The answer of one row that goes back: tokens that may still be withdrawn are held back."""

    @classmethod
    def under(
        cls, policy: AnswerPolicy, sentences: Sentences, prompt: Prompt, *, streamed: bool = False
    ) -> HeldAnswer | None:
        """That of a row under `policy`, whose client may read a `streamed` answer as it comes; None
        where none of its tokens is ever withdrawn."""
        if policy.rewinds == "never" and not policy.says_later:
            return None
        at_once = streamed and policy.rewinds == "steered" and not policy.says_later
        return cls(sentences, prompt, most=1 if at_once else HELD_BACK)

    def __init__(self, sentences: Sentences, prompt: Prompt, *, most: int = HELD_BACK) -> None:
        """`most` tokens are held back at once while no guard acts; HELD_BACK from then on."""
        self._sentences, self._most = sentences, most
        self._before = prompt.tokens[-1]
        self._tokens: list[int] = []
        self._held: list[RowToken] = []
        """The last of them, which have not been released."""
        self._end = 0
        """How many tokens the sentences have that have ended."""
        self._tail = ""
        self._sentence = ""
        self._said: set[str] = set()
        """The sentences that have ended."""
        self._is_steered = False
        self.repeats = False
        """Whether the answer, which a guard that acts has fired on, has begun to repeat a sentence,
        which has been withdrawn: it had better end."""

    def __len__(self) -> int:
        """The number of tokens that are not withdrawn."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """Those that are not withdrawn."""
        return self._tokens

    def push(self, token: RowToken) -> Sequence[RowToken]:
        """Add a generated token; returns those that will not be withdrawn any more."""
        text = self._sentences.text_of(token.token)
        self._is_steered = self._is_steered or token.flags.steered
        if self._tokens and self._sentences.ends(self._tail, text):
            self._end_sentence()
            if self.repeats:
                return ()
        self._tokens.append(token.token)
        self._held.append(token)
        self._tail = (self._tail + text)[-_TAIL:]
        self._sentence += text
        most = HELD_BACK if self._is_steered else self._most
        settled = max(self._end, len(self) - most)
        return self._release(len(self._held) - (len(self) - settled))

    def go_back(self, token: RowToken) -> Back:
        """A guard has fired on the last token, which has led to `token`: withdraw what is behind
        the last sentence."""
        end = self._end
        withdrawn = (*self._withdraw(), token.token)
        last = self._tokens[-1] if self._tokens else self._before
        stuck, self._is_steered = self._is_steered or len(self) > end, True
        return Back(withdrawn, last, stuck)

    def _end_sentence(self) -> None:
        sentence = " ".join(self._sentence.lower().split())
        self.repeats = self._is_steered and sentence in self._said
        if self.repeats:
            self._withdraw()
            return
        self._end, self._sentence = len(self), ""
        self._said.add(sentence)

    def _withdraw(self) -> Sequence[int]:
        """Withdraw what is behind the last sentence; returns its tokens."""
        kept = max(self._end, len(self) - len(self._held))
        withdrawn = self._tokens[kept:]
        del self._held[len(self._held) - len(withdrawn) :]
        del self._tokens[kept:]
        self._end, self._sentence = kept, ""
        self._tail = "".join(map(self._sentences.text_of, self._tokens[-_TAIL:]))[-_TAIL:]
        return withdrawn

    @property
    def joint(self) -> str:
        """What stands between the tokens that are left and a sentence behind them."""
        if not self._tail or self._tail[-1].isspace():
            return ""
        return " " if self._sentences.ends(self._tail, " ") else "… "

    def rest(self) -> Sequence[RowToken]:
        """The tokens that are left when the answer ends."""
        return self._release(len(self._held))

    def _release(self, count: int) -> Sequence[RowToken]:
        settled = self._held[:count]
        del self._held[:count]
        return settled
