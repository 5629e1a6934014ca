"""Answers that match a constraint: grammars compiled by llguidance, and the masks of rows.

llguidance refuses the keywords of JSON Schema that it does not know, and bounds the size of a
grammar and the work of one step: both at compile time and while it follows an answer.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from steering.constraint import Constraint, ConstraintError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KEPT = 32
"""Compiled grammars that are kept for each model."""

_LIMITS = LLParserLimits(
    # steps of a batch are some 10 ms, and one hostile pattern must not make them much longer
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    # of 1 to 2 kB each
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
_ONE_LINE: JsonCompileOptions = {
    # no other whitespace: small models write it without end
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # what is not supported is an error
    "lenient": False,
    "coerce_one_of": False,
}


_TOO_LARGE = re.compile(
    r"\d items; max is \d|too (?:big|large|many) .{0,20}limit|schema too large"
    r"|too many (?:expressions|items)|\bfuel\b",
    re.IGNORECASE,
)
"""In llguidance's messages on what passes its bounds."""


class Grammar:
    """A compiled constraint. Rows of one grammar share what its lexer has learned."""

    def __init__(self, matcher: LLMatcher, tokens: int) -> None:
        """`tokens` is the number of bits of a mask."""
        self._matcher = matcher
        self.words = -(-tokens // 32)
        self.failed = False
        """Whether a row could not be followed to its end: the shared lexer is full."""

    def matcher(self) -> LLMatcher:
        """A matcher at the beginning of an answer."""
        return self._matcher.deep_copy()


class Grammars:
    """Compiles constraints for one model, and keeps those compiled or refused last. Thread-safe.

    `tokenizer` is a fast one of transformers; `vocabulary` is the number of logits. Raises
    ValueError for a tokenizer that llguidance cannot read.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        tokens = max(vocabulary, len(tokenizer))
        if not end_tokens:
            raise ValueError("the model has no token that ends an answer")
        text = tokenizer.backend_tokenizer.to_str()
        self._tokenizer = LLTokenizer(text, n_vocab=tokens, eos_token=sorted(end_tokens))
        self._kept: OrderedDict[Constraint, Grammar | str] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, constraint: Constraint) -> bool:
        """Whether `compile` only has to look it up."""
        with self._lock:
            return self._is_of_use(self._kept.get(constraint))

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of `constraint`; takes milliseconds, for large schemas some seconds.

        Raises ConstraintError, which says what is not supported, or too complex.
        """
        with self._lock:
            kept = self._kept.get(constraint)
            if self._is_of_use(kept):
                self._kept.move_to_end(constraint)
        if not self._is_of_use(kept):
            kept = self._keep(constraint, self._compiled(constraint))
        if isinstance(kept, str):
            raise ConstraintError(kept)
        assert kept is not None
        return kept

    @staticmethod
    def _is_of_use(kept: Grammar | str | None) -> bool:
        """Whether the same would come of another try."""
        return isinstance(kept, str) or (kept is not None and not kept.failed)

    def _compiled(self, constraint: Constraint) -> Grammar | str:
        """The grammar, or why there is none."""
        try:
            source = _source(constraint)
        except ConstraintError as error:
            return str(error)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        trial = matcher.deep_copy()
        if not trial.is_error():
            # the first step that has a choice finds most grammars that are too complex
            trial.consume_tokens(self._tokenizer.tokenize_bytes(trial.compute_ff_bytes()))
            trial.compute_bitmask()
        if trial.is_error():
            return _reason(trial.get_error())
        return Grammar(matcher, self._tokenizer.vocab_size)

    def _keep(self, constraint: Constraint, grammar: Grammar | str) -> Grammar | str:
        with self._lock:
            self._kept[constraint] = grammar
            self._kept.move_to_end(constraint)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return grammar


class Matchers:
    """The matchers of those rows that have a grammar; each follows its row's tokens."""

    def __init__(self) -> None:
        self._matchers: dict[int, tuple[Grammar, LLMatcher]] = {}
        self._executor = LLExecutor()

    def add(self, row: int, grammar: Grammar | None) -> None:
        self._matchers.pop(row, None)
        if grammar is not None:
            self._matchers[row] = grammar, grammar.matcher()

    def move(self, source: int, target: int) -> None:
        self._matchers.pop(target, None)
        if source in self._matchers:
            self._matchers[target] = self._matchers.pop(source)

    def remove(self, row: int) -> None:
        self._matchers.pop(row, None)

    def mask(self, rows: NDArray[np.int64], logits: Tensor) -> Tensor:
        """`logits [rows, vocabulary]`, minus infinity where the row's grammar forbids a token."""
        chosen = self._among(rows)
        if not chosen:
            return logits
        vocabulary = logits.shape[-1]
        followed = [self._matchers[rows[i]] for i in chosen]
        words = np.zeros((len(chosen), followed[0][0].words), dtype=np.int32)
        matchers = [(matcher, place) for place, (_, matcher) in enumerate(followed)]
        fill_next_token_bitmask_par(self._executor, matchers, words)
        # a bit for each token, the lowest first, is unpacked where the logits are
        octets = torch.from_numpy(words.view(np.uint8)).to(logits.device)
        bits = 2 ** torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = ((octets[:, :, None] & bits) != 0).flatten(1)[:, :vocabulary]
        if len(chosen) == len(rows):
            return logits.masked_fill(~allowed, -torch.inf)
        at = torch.tensor(chosen, device=logits.device)
        return logits.index_copy(0, at, logits[at].masked_fill_(~allowed, -torch.inf))

    def advance(self, rows: NDArray[np.int64], tokens: Sequence[int]) -> frozenset[int]:
        """Pass the generated `tokens` on; returns the places among `rows` whose answers cannot be
        followed any further, since they are too complex."""
        chosen = self._among(rows)
        if not chosen:
            return frozenset()
        steps = [(self._matchers[rows[i]][1], tokens[i]) for i in chosen]
        followed = self._executor.consume_token_par(steps)
        failed = [i for i, ok in zip(chosen, followed, strict=True) if not ok]
        for i in failed:
            self._matchers[rows[i]][0].failed = True
        return frozenset(failed)

    def _among(self, rows: NDArray[np.int64]) -> list[int]:
        if not self._matchers:
            return []
        return [i for i, row in enumerate(rows.tolist()) if row in self._matchers]


def _source(constraint: Constraint) -> str:
    """The grammar as llguidance takes it."""
    if constraint.kind == "json_schema":
        schema = json.loads(constraint.text)
        if schema is False:
            raise ConstraintError("the schema `false` allows no answer at all")
        options = {} if schema is True else schema
        # llguidance's own options are not the client's to choose
        options = {name: part for name, part in options.items() if name != "x-guidance"}
        return LLMatcher.grammar_from_json_schema(options, overrides=_ONE_LINE)
    if constraint.kind == "regex":
        # digits and the like are those of ASCII, as in JSON Schema
        pattern = regex_to_lark(constraint.text, "dws")
        return LLMatcher.grammar_from_lark(f"start: /{pattern}/")
    if constraint.kind == "choice":
        texts = json.loads(constraint.text)
        # strings of Lark are JSON's
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, texts)))
    return LLMatcher.grammar_from_lark(constraint.text)


def _reason(error: str) -> str:
    """llguidance's message in one line, its keywords as they stand in a schema."""
    if _TOO_LARGE.search(error):
        return (
            "it is too large or too complex: use fewer properties and values, smaller bounds of "
            "repetition, and simpler patterns"
        )
    text = " ".join(error.removesuffix("<non-verbose/>").split())
    text = text.replace("Unimplemented keys:", "unsupported keywords:")
    return text[:300]
