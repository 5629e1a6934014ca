"""The states of a model where a name ends: there it has read all of the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.models.chat import ChatModel
from guard.reporting.progress import Stages

_PROBE = "Quillon Vasbrook"


@dataclass(frozen=True)
class Asked:
    """A prompt about a name: the wording, `{}` for the name."""

    wording: str
    name: str

    @property
    def text(self) -> str:
        """The prompt."""
        return self.wording.replace("{}", self.name)


def name_states(
    chat: ChatModel, asked: Sequence[Asked], layers: Sequence[int], stage: str, progress: Stages
) -> Tensor:
    """The residual stream `[prompts, layers, width]`, float32, after `layers` at the last token of
    each name."""
    behind = {each.wording: _tokens_behind(chat, each.wording) for each in asked}
    prompts = [chat.prompt(each.text) for each in asked]
    found = torch.empty(len(asked), len(layers), chat.width)
    for i, states in chat.states(prompts, layers, progress(stage, len(prompts))):
        found[i] = states[len(states) - 1 - behind[asked[i].wording]]
    return found


def _tokens_behind(chat: ChatModel, wording: str) -> int:
    """The number of tokens behind the name in prompts of a wording."""
    tokens = chat.prompt(wording.replace("{}", _PROBE)).tokens
    probe = _plain(_PROBE)
    end = next(i for i in range(len(tokens)) if probe in _plain(chat.text(tokens[: i + 1])))
    return len(tokens) - 1 - end


def _plain(text: str) -> str:
    return "".join(text.casefold().split())
