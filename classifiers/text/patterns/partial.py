"""Partial matches: the suffixes of a text with which a match may begin that goes on after it.

The text is read backwards from its end, with the set of the states of a nondeterministic automaton
from which the rest of a match could be read: all states at the end, fewer with every character,
none after a word or two of ordinary prose. A set of states is an integer, one bit a state. Every
set that was met is kept with those before it, so that a character mostly costs one look into a
dictionary; nothing is tried twice. Assertions (`^`, `\\b`) are taken for granted: a suffix may be
named that begins no match, none that does is missed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from classifiers.text.patterns.expressions import full_match_set
from classifiers.text.patterns.syntax import (
    Alternation,
    Assertion,
    CharacterClass,
    Concatenation,
    Node,
    Repetition,
    ValueGroup,
    context_width,
    has_value,
    parse_regex,
    width,
)

MAX_STATES: Final = 30_000
"""States of all expressions together; of expressions beyond that the width alone is known."""
_MAX_KEPT: Final = 50_000
"""Steps from a set of states by a character that are kept."""
_ANY_BYTE: Final = r"\C"
_ANY_CHARACTER: Final = "(?s:.)"


class Suffix(NamedTuple):
    """text[start:] is the longest suffix with which a match may begin; text[read:] was read."""

    start: int
    read: int


class PartialMatcher:
    """Finds the partial matches of RE2 expressions at the end of a text.

    They are `raw` as those of a list. A match is the group `value`, or the whole where there is
    none; it begins with its context where the context before it may be longer than one character.
    To be used in any threads.
    """

    def __init__(self, patterns: Sequence[str], *, raw: bool) -> None:
        program = _Program()
        self._widest = 0.0
        for pattern in patterns:
            tree = parse_regex(pattern)
            if len(program.reads) + _size(tree) > MAX_STATES or _ANY_BYTE in pattern:
                self._widest = max(self._widest, width(tree))
            else:
                program.add(tree)
        readers = program.readers()
        self._classes = full_match_set([*readers, _ANY_CHARACTER], raw=raw)
        self._reading = [*readers.values(), 0]
        self._lock = threading.Lock()
        self._by_classes: dict[tuple[int, ...], int] = {}
        self._readers: list[int] = []
        self._jumping = program.jumping()
        self._jump_targets = sum(1 << target for target in self._jumping)
        self._begins = sum(1 << state for state in program.begins)
        self._none = _States(self, 0, is_begin=False)
        live = sum(1 << state for state in program.live)
        self._under_way = self._with_jumps(live | sum(self._reading))
        self._clear()

    def longest_suffix(self, text: str) -> Suffix:
        """Takes time linear in the characters that are read."""
        start = read = len(text)
        states, none = self._at_end, self._none
        for char in reversed(text):
            states = states[char]
            if states is none:
                break
            read -= 1
            if states.is_begin:
                start = read
        if self._widest:
            unknown = len(text) - min(self._widest, len(text))
            start, read = min(start, int(unknown)), min(read, int(unknown))
        return Suffix(start, read)

    def before(self, states: _States, char: str) -> _States:
        """The states before `char`, where `states` are those after it."""
        if self._kept >= _MAX_KEPT:
            self._clear()
        self._kept += 1
        kind = self._kinds.get(char)
        if kind is None:
            kind = self._kinds[char] = self._kind(char)
        before = states.by_kind.get(kind)
        if before is None:
            readers = self._readers[kind]
            before = states.by_kind[kind] = self._set(self._with_jumps(states.bits >> 1 & readers))
        return before

    def _kind(self, char: str) -> int:
        # Characters of the same classes have the same states before them.
        classes = tuple(self._classes.Match(char.encode()) or ())
        with self._lock:
            kind = self._by_classes.get(classes)
            if kind is None:
                # RE2 was short of memory where even the last class does not match
                known = classes or range(len(self._reading))
                self._readers.append(sum(self._reading[index] for index in known))
                kind = self._by_classes[classes] = len(self._readers) - 1
            return kind

    def _with_jumps(self, bits: int) -> int:
        targets = bits & self._jump_targets
        while targets:
            target = targets.bit_length() - 1
            bits |= self._jumping[target]
            targets ^= 1 << target
        return bits

    def _clear(self) -> None:
        self._kept = 0
        self._kinds: dict[str, int] = {}
        self._none.clear()
        self._sets = {0: self._none}
        self._at_end = self._set(self._under_way)

    def _set(self, bits: int) -> _States:
        states = self._sets.get(bits)
        if states is None:
            states = _States(self, bits, is_begin=bool(bits & self._begins))
            self._sets[bits] = states
        return states


class _States(dict[str, "_States"]):
    """A set of states, with the sets before the characters that were met."""

    __slots__ = ("bits", "by_kind", "is_begin", "matcher")

    def __init__(self, matcher: PartialMatcher, bits: int, *, is_begin: bool) -> None:
        super().__init__()
        self.matcher, self.bits, self.is_begin = matcher, bits, is_begin
        self.by_kind: dict[int, _States] = {}

    def __missing__(self, char: str) -> _States:
        before = self.matcher.before(self, char)
        self[char] = before
        return before


class _Program:
    """The states of several expressions.

    State i reads a character of the class `reads[i]` and goes on to state i + 1; `jumps` lead from
    state to state without reading. Matches begin in the states `begins`. At the end of a text
    that goes on a match is under way in the states that read, and in those that are `live`: it
    depends on the next character, or ends there and may turn out longer.
    """

    def __init__(self) -> None:
        self.reads: list[str | None] = []
        self.jumps: list[tuple[int, int]] = []
        self.begins: set[int] = set()
        self.live: set[int] = set()

    def add(self, tree: Node) -> None:
        """Add an expression."""
        start = self._state()
        # Where a match is found whose context holds other matches of the expression, these are not
        # found: nothing is decided before that.
        always_value = has_value(tree)
        value_begins = always_value and (context_width(tree) or 0.0) <= 1
        if not value_begins:
            self.begins.add(start)
        self._emit(tree, value_begins=value_begins)
        if not always_value:
            self.live.add(len(self.reads) - 1)

    def readers(self) -> dict[str, int]:
        """The set of the states that read each class."""
        masks: dict[str, int] = {}
        for state, source in enumerate(self.reads):
            if source is not None:
                masks[source] = masks.get(source, 0) | 1 << state
        return masks

    def jumping(self) -> dict[int, int]:
        """The set of states from which jumps lead to a state, by that state."""
        sources: dict[int, list[int]] = {}
        for source, target in self.jumps:
            sources.setdefault(target, []).append(source)
        closed = {}
        for target in sources:
            reached: set[int] = set()
            waiting = [target]
            while waiting:
                for source in sources.get(waiting.pop(), ()):
                    if source not in reached:
                        reached.add(source)
                        waiting.append(source)
            closed[target] = sum(1 << source for source in reached)
        return closed

    def _state(self) -> int:
        self.reads.append(None)
        return len(self.reads) - 1

    def _jump(self, source: int) -> int:
        # To a new last state.
        state = self._state()
        self.jumps.append((source, state))
        return state

    def _emit(self, node: Node, *, value_begins: bool) -> None:
        # Adds the states of `node`, from the state that is the last one to a new last one.
        last = len(self.reads) - 1
        match node:
            case CharacterClass(source):
                self.reads[last] = source
                self._state()
            case Assertion():
                self.live.add(last)
                self._jump(last)
            case Concatenation(parts):
                for part in parts:
                    self._emit(part, value_begins=value_begins)
            case ValueGroup(part):
                state = self._jump(last)
                if value_begins:
                    self.begins.add(state)
                self._emit(part, value_begins=value_begins)
                self.live.add(len(self.reads) - 1)
            case Alternation(parts):
                ends = []
                for part in parts:
                    self._jump(last)
                    self._emit(part, value_begins=value_begins)
                    ends.append(len(self.reads) - 1)
                end = self._state()
                self.jumps += [(branch_end, end) for branch_end in ends]
            case Repetition(part, least, most):
                for _ in range(least):
                    self._emit(part, value_begins=value_begins)
                if most == math.inf:
                    self._loop(part, value_begins=value_begins)
                else:
                    self._options(part, int(most) - least, value_begins=value_begins)

    def _loop(self, part: Node, *, value_begins: bool) -> None:
        start = self._jump(len(self.reads) - 1)
        self._emit(part, value_begins=value_begins)
        self.jumps.append((len(self.reads) - 1, start))
        self._jump(start)  # what follows is behind a state of its own, which does not loop

    def _options(self, part: Node, count: int, *, value_begins: bool) -> None:
        exits = []
        for _ in range(count):
            last = len(self.reads) - 1
            # a part that begins with a loop would lead back to before the exit
            exits.append(last if isinstance(part, CharacterClass) else self._jump(last))
            self._emit(part, value_begins=value_begins)
        if exits:
            end = self._jump(len(self.reads) - 1)
            self.jumps += [(state, end) for state in exits]


def _size(node: Node) -> float:
    """At least as many states as the node has."""
    match node:
        case CharacterClass() | Assertion():
            return 1.0
        case ValueGroup(part):
            return 1 + _size(part)
        case Concatenation(parts) | Alternation(parts):
            return 2 + sum(1 + _size(part) for part in parts)
        case Repetition(part, least, most):
            times = least + 1 if most == math.inf else most
            return 2 + times * (1 + _size(part))
