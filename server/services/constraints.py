"""Constraints of requests, compiled for one model beside the engine and the event loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from guard.errors import RequestError
from server.errors import InvalidParameter, TooComplex, UnsupportedParameter
from server.screening.texts.turns import FairWorker
from server.services.interface import TextRowRequest
from steering.constraint import Constraint, ConstraintError
from steering.engines.transformers.sampling.grammars import Grammar, Grammars

logger = logging.getLogger(__name__)

QUEUED = 8
"""New constraints of one caller that wait to be compiled, roughly."""


class ConstraintCompiler:
    """The constraints that one model follows; none where its tokenizer is of an unknown kind."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self._grammars: Grammars | None = None
        # a schema that takes seconds delays other new ones alone, and those of its caller most
        self._compiling: FairWorker[Constraint, Grammar] = FairWorker(
            lambda constraints: [self._compile(constraint) for constraint in constraints],
            "grammars",
            most_items=1,
            most_cost=1,
            limit=QUEUED,
            done="compiled",
        )
        try:
            self._grammars = Grammars(tokenizer, vocabulary, end_tokens)
        except ValueError as error:
            logger.warning("no structured output: the tokenizer cannot be read: %s", error)

    async def prepare(self, requests: Sequence[TextRowRequest]) -> None:
        """See `TextService.prepare`."""
        callers = {request.sampling.constraint: request.caller for request in requests}
        for constraint, caller in callers.items():
            if constraint is None:
                continue
            if constraint in self._known(constraint):
                self._compile(constraint)  # which may have been refused
            else:
                await self._compiling.run(caller, [constraint], [1])

    def grammar(self, request: TextRowRequest) -> Grammar | None:
        """The grammar of a request that was prepared."""
        constraint = request.sampling.constraint
        return None if constraint is None else self._compile(constraint)

    def _compile(self, constraint: Constraint) -> Grammar:
        try:
            return self._known(constraint).compile(constraint)
        except ConstraintError as error:
            for part in constraint.parts:
                self._compile(part)  # raises where this one is at fault
            place, param = constraint.place, constraint.param
            raise InvalidParameter(f"Invalid {place}: {error}.", param=param) from None

    def _known(self, constraint: Constraint) -> Grammars:
        if self._grammars is None:
            raise UnsupportedParameter(
                f"'{constraint.param}' is not supported for this model, whose tokenizer is of a "
                "kind that no grammar can be compiled for; leave it out.",
                param=constraint.param,
            )
        return self._grammars


def refuse_constraints(requests: Sequence[TextRowRequest]) -> None:
    """Raise UnsupportedParameter where a request has a constraint, for engines without them."""
    for request in requests:
        if (constraint := request.sampling.constraint) is not None:
            raise UnsupportedParameter(
                f"'{constraint.param}' is not supported with this model's engine; leave it out.",
                param=constraint.param,
            )


def unmatched(request: TextRowRequest) -> RequestError:
    """The error of a row whose answer its grammar could not follow."""
    constraint = request.sampling.constraint
    param = None if constraint is None else constraint.param
    return TooComplex(
        f"The answer could not be followed to its end under '{param}': its patterns or its "
        "optional members are too many, or too complex: make them simpler.",
        param=param,
    )
