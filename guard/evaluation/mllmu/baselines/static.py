"""The static steering vector: the directions of the policy's guards on every prompt, without a gate
(activation addition, Turner et al., arXiv 2308.10248)."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from guard.evaluation.mllmu.contestants import Contestant

NAME = "static vector"


def static(guarded: Contestant) -> Contestant:
    """The policy with thresholds that every prompt exceeds. Where it has several guards, their
    strengths are divided by their number: all of them act at once."""
    count = max(len(guarded.guards), 1)
    guards = [
        replace(guard, threshold=-inf, recheck=None, strength=guard.strength / count)
        for guard in guarded.guards
    ]
    return replace(guarded, name=NAME, guards=guards, notes={"guards": count})
