"""The record of an erasure: all that is known of it, in one JSON file of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from guard import __version__
from guard.artifact import FittedModel
from guard.certificate import (
    ID,
    Asked,
    Certificate,
    Fired,
    Gate,
    Listed,
    State,
    Step,
    policies_of,
)

Live = Literal["shadow", "in force"]
"""The states in which requests carry the guards."""
LIVE: tuple[Live, ...] = get_args(Live)
UNFINISHED: tuple[State, ...] = ("collecting", "fitting")
ENDED: tuple[State, ...] = ("withdrawn", "failed")


class FittedGate(BaseModel):
    """A guard, and the file of its artifact in the erasure's folder of artifacts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Gate
    file: str = Field(pattern=r"^[\w.-]+\.safetensors$")


class Record(BaseModel):
    """The states from the first to the current one, and what came of the fit.

    `reason` says why it failed; `attempts` are fits that were begun and are not over, which a
    server has not stopped but left behind. The fields below are empty until it is fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=ID)]
    asked: Asked
    history: tuple[Step, ...] = Field(min_length=1)
    reason: str = ""
    attempts: int = 0
    model: FittedModel | None = None
    gates: tuple[FittedGate, ...] = ()
    listed: Listed | None = None
    judgement: str = ""
    figures: dict[str, str] = {}
    fired: dict[Live, Fired] = {}

    @property
    def state(self) -> State:
        return self.history[-1].state

    @property
    def created(self) -> str:
        return self.history[0].time

    @property
    def guards(self) -> tuple[str, ...]:
        """The names of its guards, while requests carry them."""
        return tuple(each.gate.guard for each in self.gates) if self.state in LIVE else ()

    def entering(self, state: State, reason: str = "") -> Record:
        """The record in another state, from now on."""
        history = (*self.history, Step(state=state, time=now()))
        return self.model_copy(update={"history": history, "reason": reason})

    def certificate(self, fired: Mapping[Live, Fired]) -> Certificate:
        """A certificate of what the record says now."""
        return Certificate(
            erasure=self.id,
            issued=now(),
            program=__version__,
            asked=self.asked,
            model=self.model,
            state=self.state,
            reason=self.reason,
            history=self.history,
            policies=policies_of(self.asked.policies, self.history),
            guards=tuple(each.gate for each in self.gates),
            listed=self.listed,
            judgement=self.judgement,
            figures=self.figures,
            fired={**fired},
        ).signed()


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
