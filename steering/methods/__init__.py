"""The table of methods: one entry says everything that the product has to know of a method.

A method is one file of maths and one `Method` here, or, in a package of its own, one `Method` as
an entry point of the group `guard.methods`. Nothing else names a method: engines, plans, the
attached use, evaluation and `guard check` ask its entry. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from steering.methods.ranges import PROBABILITY, SCORE, STRENGTH, Range, require_in_range

GROUP = "guard.methods"
"""The entry point group of methods that other packages bring."""

Seam = Literal[
    "hidden", "linear", "embedding", "projection", "guidance", "latent", "output", "text", "pixels"
]
"""Where the guards of a method attach; `steering.hidden` and `steering.images` have one protocol
for each."""

ModelKind = Literal["language", "images", "text", "pixels"]
"""What a model makes; guards of the kinds "text" and "pixels" read the texts and the image
files that any model reads or writes."""

Action = Literal["steer", "refine", "overlay", "perturb", "block"]
"""What a guard does where it fires; one that blocks leaves it to the policy's fallback."""

Part = Literal[
    "model", "encoders", "denoiser", "autoencoder", "pipeline", "sentence encoder", "image encoder"
]
"""The part of a served model whose fingerprint an artifact must carry."""

Decision = Literal["before", "during", "after"]
"""When a guard decides: on the prompt, while the output is made, or on the finished output."""

Gradient = Literal["exact", "straight-through", "none"]
"""How an attacker with the weights differentiates through a guard: through its own computation,
with the identity in place of its change (Athalye et al., arXiv 1802.00420), or not at all."""

KINDS: dict[str, ModelKind] = {
    "hidden": "language",
    "linear": "language",
    "embedding": "images",
    "projection": "images",
    "guidance": "images",
    "latent": "images",
    "attention": "images",
    "output": "images",
    "text": "text",
    "pixels": "pixels",
}
"""The kind of model by the seams of methods and of artifacts."""

SCREENS: frozenset[ModelKind | None] = frozenset({"text", "pixels"})
"""The kinds whose guards are screens: a server or a proxy runs them, without the model."""


@dataclass(frozen=True)
class Method:
    """One entry of the table.

    `stack` makes of fitted guards (`steering.methods.fitted.FittedGuard`, one at least) and a
    device the stacked guards of the seam's protocol; it is a callable, or "module:function" that is
    imported at first use. It raises ValueError for a guard that does not hold, and for guards that
    hold one by one but cannot be stacked. `ranges` bounds settings of artifacts beside those that
    all methods have: threshold, recheck, and strength where the guard changes something itself.
    """

    name: str
    seam: Seam
    stack: str | Callable[..., Any]
    action: Action
    bound_to: Part
    decides: Decision
    gradient: Gradient
    ranges: Mapping[str, Range] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> ModelKind:
        """The kind of model that the method's guards are for."""
        return KINDS[self.seam]

    def require_in_range(self, settings: Mapping[str, Any], name: str) -> None:
        """Raise ValueError for a setting of the guard `name` that is not finite or out of range."""
        ranges: dict[str, Range] = {"threshold": SCORE, "recheck": SCORE}
        if self.action != "block":
            ranges["strength"] = STRENGTH
        require_in_range(settings, ranges | dict(self.ranges), name)

    def stacked(self, guards: Any, device: Any = "cpu") -> Any:
        """The stacked guards; raises as `require_in_range` and `stack` do."""
        for guard in guards:
            self.require_in_range(guard.settings, getattr(guard, "name", ""))
        function = self.stack
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(import_module(module), name)
        return function(guards, device)


_MATHS = "steering.methods"
_LAYER = Range(0, 9999, whole=True)
MOST_NOISE = 1e6
"""The highest noise level that a setting may name, noise over signal."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "steer",
            seam="hidden",
            stack=f"{_MATHS}.steer:stack",
            action="steer",
            bound_to="model",
            decides="during",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "act_layers": _LAYER,
                "pool": Range(1, 4096, whole=True),
                "rest": Range(1, 1e6, whole=True),
                "schedule": Range(-10.0, 10.0),
            },
        ),
        Method(
            "suppression-list",
            seam="hidden",
            stack=f"{_MATHS}.suppression_list:stack",
            action="steer",
            bound_to="model",
            decides="during",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "act_layers": _LAYER,
                "radius": Range(0.0, 1e6, above=True),
                "rest": Range(1, 1e6, whole=True),
                "schedule": Range(-10.0, 10.0),
            },
        ),
        Method(
            "kif",
            seam="hidden",
            stack=f"{_MATHS}.kif:stack",
            action="steer",
            bound_to="model",
            decides="during",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "act_layers": _LAYER,
                "pool": Range(1, 4096, whole=True),
                "bias": SCORE,
                "slope": Range(0.0, 1e6, above=True),
                "middle": SCORE,
                "strength": Range(0.0, 5.0, above=True),
            },
        ),
        Method(
            "ablation",
            seam="hidden",
            stack=f"{_MATHS}.ablation:stack",
            action="steer",
            bound_to="model",
            decides="during",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "act_layers": _LAYER,
                "pool": Range(1, 4096, whole=True),
            },
        ),
        Method(
            "sparse",
            seam="hidden",
            stack=f"{_MATHS}.sparse:stack",
            action="steer",
            bound_to="model",
            decides="during",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "act_layers": _LAYER,
                "pool": Range(1, 4096, whole=True),
            },
        ),
        Method(
            "language-overlay",
            seam="linear",
            stack=f"{_MATHS}.language_overlay:stack",
            action="overlay",
            bound_to="model",
            decides="before",
            gradient="none",
            ranges={
                "sense_layers": _LAYER,
                "pool": Range(1, 4096, whole=True),
            },
        ),
        Method(
            "cgce",
            seam="embedding",
            stack=f"{_MATHS}.cgce:stack",
            action="refine",
            bound_to="encoders",
            decides="before",
            gradient="exact",
            ranges={
                "rate": Range(0.0, 100.0, above=True),
                "target": SCORE,
                "steps": Range(1, 10_000, whole=True),
                "pull": PROBABILITY,
                "share": PROBABILITY,
            },
        ),
        Method(
            "nearest",
            seam="embedding",
            stack=f"{_MATHS}.nearest:stack",
            action="refine",
            bound_to="encoders",
            decides="before",
            gradient="straight-through",
            ranges={
                "bias": SCORE,
            },
        ),
        Method(
            "safree",
            seam="embedding",
            stack=f"{_MATHS}.safree:stack",
            action="refine",
            bound_to="encoders",
            decides="before",
            gradient="straight-through",
            ranges={
                "bias": SCORE,
                "alpha": Range(0.0, 100.0),
                "slope": Range(0.0, 1e6, above=True),
                "middle": SCORE,
                "sense_rank": Range(1, 4096, whole=True),
            },
        ),
        Method(
            "sparse-prompt",
            seam="embedding",
            stack=f"{_MATHS}.sparse_prompt:stack",
            action="refine",
            bound_to="encoders",
            decides="before",
            gradient="exact",
            ranges={
                "bias": SCORE,
            },
        ),
        *(
            Method(
                name,
                seam="projection",
                stack=f"{_MATHS}.gated_overlays:stack",
                action="overlay",
                bound_to="denoiser",
                decides="before",
                gradient="exact",
                ranges={"bias": SCORE, "full_score": SCORE},
            )
            for name in ("uce", "rece", "trce", "realera", "overlay")
        ),
        Method(
            "safe-guidance",
            seam="guidance",
            stack=f"{_MATHS}.safe_guidance:stack_safety",
            action="steer",
            bound_to="encoders",
            decides="before",
            gradient="exact",
            ranges={
                "bias": SCORE,
                "warmup": PROBABILITY,
                "scale": Range(0.0, 1e6, above=True),
                "margin": Range(0.0, 1e3),
                "momentum": PROBABILITY,
                "decay": PROBABILITY,
            },
        ),
        Method(
            "negative-prompt",
            seam="guidance",
            stack=f"{_MATHS}.safe_guidance:stack_negative",
            action="steer",
            bound_to="encoders",
            decides="before",
            gradient="exact",
            ranges={
                "bias": SCORE,
            },
        ),
        Method(
            "contrastive",
            seam="guidance",
            stack=f"{_MATHS}.contrastive:stack",
            action="steer",
            bound_to="encoders",
            decides="before",
            gradient="exact",
            ranges={
                "bias": SCORE,
                "weight": Range(0.0, 100.0, above=True),
                "sigma_low": Range(0.0, MOST_NOISE),
                "sigma_high": Range(0.0, MOST_NOISE),
            },
        ),
        Method(
            "irece",
            seam="latent",
            stack=f"{_MATHS}.irece:stack",
            action="perturb",
            bound_to="pipeline",
            decides="during",
            gradient="straight-through",
        ),
        Method(
            "latents",
            seam="output",
            stack=f"{_MATHS}.latents:stack",
            action="block",
            bound_to="autoencoder",
            decides="after",
            gradient="exact",
        ),
        Method(
            "screen",
            seam="text",
            stack="classifiers.embeddings.heads:stack",
            action="block",
            bound_to="sentence encoder",
            decides="before",
            gradient="none",
            ranges={
                "threshold": PROBABILITY,
                "temperature": Range(1e-3, 1e3),
                "sharpness": Range(0.0, 1e4, above=True),
                "first_stage_cut": SCORE,
            },
        ),
        Method(
            "image-screen",
            seam="pixels",
            stack="classifiers.embeddings.heads:stack",
            action="block",
            bound_to="image encoder",
            decides="after",
            gradient="none",
            ranges={
                "threshold": PROBABILITY,
                "temperature": Range(1e-3, 1e3),
                "sharpness": Range(0.0, 1e4, above=True),
            },
        ),
    )
}
"""Name → entry."""


def method_named(name: str) -> Method:
    """The entry of a method. Raises ValueError naming the methods that there are."""
    if name in METHODS:
        return METHODS[name]
    methods, failures = _installed()
    for method in methods:
        METHODS.setdefault(method.name, method)
    if name not in METHODS:
        known = "; ".join([f"this release has {', '.join(METHODS)}", *failures])
        raise ValueError(f"unknown method {name!r}: {known}")
    return METHODS[name]


@cache
def _installed() -> tuple[Sequence[Method], Sequence[str]]:
    """The methods that other packages bring, and what is wrong with those that do not load."""
    methods, failures = [], []
    for point in entry_points(group=GROUP):
        try:
            methods.append(point.load())
        except Exception as error:  # one broken package must not break the guards of others
            failures.append(f"the entry point {point.name!r} ({point.value}) fails: {error}")
    return methods, failures
