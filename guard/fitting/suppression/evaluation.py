"""How often a list fires: on prompts about some of its names, and on innocent ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.artifact import Artifact
from guard.data.bank.bank import templates
from guard.data.bank.names import sharing
from guard.evaluation.shares import Share
from guard.fitting.erasure.profile import Profile
from guard.fitting.erasure.profiling import read_prompts
from guard.fitting.steering.gates import TokenStates
from guard.fitting.suppression.fit import list_scores
from guard.fitting.suppression.strangers import Strangers
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.fitted import FittedGuard
from steering.methods.suppression_list import stack

SHARING = 20
"""Other people who share a part of each name."""


def fired_of(
    chat: ChatModel,
    profile: Profile,
    strangers: Strangers,
    artifact: Artifact,
    names: Sequence[str],
    progress: Stages,
) -> dict[str, Share]:
    """The shares of prompts on which a list fires: `by_name`, in wordings that no fit has;
    `sharing`, about others who share a part of a name; `strangers` and `far`, held-out prompts
    about other people and of the bank."""
    wordings = templates()["evaluation"]
    own = [wording.replace("{t}", name) for name in names for wording in wordings]
    others = [
        wordings[i % len(wordings)].replace("{t}", other)
        for name in names
        for i, other in enumerate(sharing(name, "validation", SHARING))
        if other not in names
    ]
    settings: dict[str, Any] = dict(artifact.meta.settings)
    scored = stack([FittedGuard("list", artifact.tensors, settings)])
    level = float(settings["threshold"])

    def fired(states: TokenStates) -> Share:
        return Share.of([score > level for score in list_scores(scored, states).tolist()])

    layers = profile.about.sense_layers
    return {
        "by_name": fired(read_prompts(chat, own, layers, "trying the name", progress)),
        "sharing": fired(read_prompts(chat, others, layers, "trying others", progress)),
        "strangers": fired(strangers.held_out),
        "far": fired(profile.held_out),
    }
