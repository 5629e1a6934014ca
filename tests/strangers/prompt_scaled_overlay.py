"""An overlay whose strength follows the prompt, as in SPM (arXiv 2312.16145)."""

from steering.images.embedding import Refinement
from steering.images.projection import Overlay
from steering.methods import Method
from steering.methods.prompt_score import stacked_gate


class ScaledOverlays:
    """One rank-one overlay a guard; a prompt that scores 0.5 is overlaid with half the strength."""

    def __init__(self, guards, device):
        self.names = [guard.name for guard in guards]
        self._score = stacked_gate(guards, device)
        self.overlays = [self._overlay(guard) for guard in guards]

    def _overlay(self, guard):
        layers = [key.removeprefix("up.") for key in guard.tensors if key.startswith("up.")]
        return Overlay(
            groups={layer: [layer] for layer in layers},
            reads={layer: guard.tensor("down", layer, 2, 4) for layer in layers},
            writes={layer: guard.tensor("up", layer, 2) for layer in layers},
        )

    def sense(self, text):
        return self._score(text)

    def act(self, text, due, threshold, strength):
        return Refinement.none(text, strength, scale=self._score(text).clamp(0, 1))


METHOD = Method(
    "prompt-scaled-overlay",
    seam="projection",
    stack=ScaledOverlays,
    action="overlay",
    bound_to="encoders",
    decides="before",
    gradient="exact",
)
