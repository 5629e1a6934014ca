"""Policies resolved for a model that gives embeddings alone: it carries no guards itself."""

from __future__ import annotations

from typing import Any, NoReturn

from guard.artifact import Artifact
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.base import LoadedGuard, Plan
from guard.plans.selection import PolicyPlans, resolve, select_guards
from guard.verdict import Done, GuardVerdict


class EncoderPlan(Plan[Any]):
    """A policy for one encoder of texts: its screens, which the server runs."""

    def _guard_verdict(self, guard: LoadedGuard, reading: Any, done: Done) -> GuardVerdict:
        raise NotImplementedError("an encoder carries no guards")


def encoder_plans(config: Config, name: str) -> PolicyPlans[EncoderPlan]:
    """Every policy of `config` for the encoder `name`."""

    def load(setting: GuardConfig, artifact: Artifact) -> NoReturn:
        raise ValueError("its seams are of no model that is known")

    selection = select_guards(config, "text", name, load)

    def resolved(policy: str, settings: PolicyConfig) -> EncoderPlan:
        return resolve(EncoderPlan, policy, settings, {}, selection)

    return PolicyPlans(config, resolved, selection)
