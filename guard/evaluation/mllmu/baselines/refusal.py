"""The refusal prompt: a system message that lists who must not be spoken of (Thaker et al., arXiv
2403.03329, for language models; a baseline of MLLMU-Bench as "prompting")."""

from __future__ import annotations

from collections.abc import Sequence

from guard.evaluation.mllmu.contestants import Contestant
from guard.evaluation.mllmu.wordings import REFUSAL
from guard.models.chat import TransformersChat

NAME = "refusal prompt"


def refusal(chat: TransformersChat, names: Sequence[str]) -> Contestant:
    """The bare model behind a system message that lists these names."""
    return Contestant(
        NAME, chat, system=REFUSAL.format(", ".join(names)), notes={"names": len(names)}
    )
