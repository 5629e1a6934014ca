"""Policies resolved against one language model: its guards, stacked, and verdicts from readings.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from guard.artifact import Artifact
from guard.config.language_checks import of_transformers, overlays_linears
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.config.setting_checks import DECIDES_ON_PROMPT
from guard.errors import ArtifactError
from guard.plans.base import LoadedGuard, Plan, finite
from guard.plans.selection import GuardSelection, PolicyPlans, resolve, select_guards
from guard.verdict import Done, GuardVerdict
from steering.engines.transformers.adapters.seam import require_fit
from steering.engines.transformers.adapters.weights import linear_shapes
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.rewinding import Rewinds
from steering.fingerprint import fingerprint, quantisation_of
from steering.hidden.bank import HiddenBank, HiddenGuards
from steering.hidden.overlays import LinearOverlay
from steering.hidden.rows import Reading
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard, stacks
from steering.methods.suppression_list import entry_of
from steering.offloaded import execution_device

SAID_LATER = "I can't say anything about that."
"""Ends an answer that cannot be steered away from a topic, where the policy has no message."""


@dataclass(frozen=True)
class LanguagePlan(Plan[Reading]):
    """A policy for one language model.

    `rewinds`: which answers in which a guard fires go back to the end of their last sentence.
    `message` is what is said in place of an answer, or of the rest of one. `by_turn`: guards decide
    on the last turn of the user and on what follows it.
    """

    rewinds: Rewinds = "never"
    message: str = SAID_LATER
    by_turn: bool = False

    @property
    def may_end(self) -> bool:
        """Whether a guard that fires may end the answer."""
        return any(self.action_of(guard) in {"block", "say"} for guard in self.guards)

    @property
    def says_later(self) -> bool:
        """Whether a guard that fires on an answer may end it with the message."""
        return any(
            guard.recheck is not None and self.action_of(guard) == "say" for guard in self.guards
        )

    def ending(self, readings: Mapping[str, Reading]) -> Literal["block", "say"] | None:
        """How guards that have fired end the answer; None where it goes on."""
        if self.blocks(readings):
            return "block"
        return "say" if self.has_fired(readings, "say") else None

    def done(self, guard: LoadedGuard, reading: Reading) -> Done:
        return "say" if reading.stuck else super().done(guard, reading)

    def without_sentences(self) -> LanguagePlan:
        """The plan for a model whose answers have no sentences to go back to: broken where it asks
        for that."""
        if self.rewinds == "always":
            return self.failed(
                "the model writes images, which cannot go back to the end of a sentence: leave "
                "`rewind` out of the policy"
            )
        return replace(self, rewinds="never")

    def outside(self, where: str) -> LanguagePlan:
        """The plan for `where`, which does not run the batching engine: broken where it asks for
        what that alone does."""
        scope = "turn" if self.by_turn else "conversation"
        rewind = self.rewinds == "always"
        words = of_transformers(self.action, self.actions, rewind=rewind, scope=scope)
        if any(overlays_linears(guard.method.name) for guard in self.guards):
            words = "overlays of linear layers"
        if words is None or not self.guards:
            return self
        return self.failed(
            f"{where} does not know {words}: leave it out of the policy, or run the model with "
            '`guard serve` and engine = "transformers"'
        )

    def _guard_verdict(self, guard: LoadedGuard, reading: Reading, done: Done) -> GuardVerdict:
        return GuardVerdict(
            guard=guard.name,
            concept=_concept(guard, reading),
            method=guard.method.name,
            score=finite(reading.score),
            threshold=reading.threshold,
            fired=reading.fired,
            action=done,
            position=reading.position,
            steps=reading.rewinds,
            error=None if reading.valid else "the guard met NaN in the model's activations",
        )


def _concept(guard: LoadedGuard, reading: Reading) -> str:
    """The guard's concept, or the entry of a list that has fired."""
    number = entry_of(reading.score) if guard.entries and reading.fired else len(guard.entries)
    if number >= len(guard.entries):
        return guard.concept
    return f"{guard.concept}/{guard.entries[number]}"


@dataclass(frozen=True)
class ServedModel:
    """The properties of a language model that guards depend on, whatever engine runs it."""

    fingerprint: str
    depth: int
    width: int
    device: str
    quantisation: str = ""
    """How its weights are quantised, in words; empty for plain ones."""
    linears: Callable[[], Mapping[str, tuple[int, int]]] | None = None
    """Gives the linear layers in its decoder layers by path, (out, in); None where the engine runs
    no overlays of them."""

    @classmethod
    def of(cls, model: Any) -> ServedModel:
        """A transformers model. Raises UnknownArchitecture and UnreadableWeights."""
        return cls(
            fingerprint=fingerprint(model),
            depth=len(decoder_layers(model)),
            width=model.config.get_text_config().hidden_size,
            device=str(execution_device(model)),
            quantisation=str(quantisation_of(model) or ""),
            linears=partial(linear_shapes, model),
        )

    def remedy(self, artifact: Artifact, path: object, model: str = "--model ...") -> str:
        """What to do about an artifact, in the file `path`, that was fitted on another model;
        `model` are the options of `guard rebind` that name this one."""
        fitted = artifact.meta.model
        if (fitted.layers, fitted.width) != (self.depth, self.width):
            return "fit it on that model"
        what = f"is quantised ({self.quantisation})" if self.quantisation else "has other weights"
        return f"it {what}; run `guard rebind {path} {model}` for it, or fit it on that model"


class LanguagePlans(PolicyPlans[LanguagePlan]):
    """The guards that fit one model, stacked, and every policy resolved against them.

    A guard that does not fit stays out of the bank and breaks the policies that name it: `broken`
    says why. `digests` are those of the artifacts of the others.
    """

    def __init__(self, config: Config, model: nn.Module | ServedModel, *, name: str) -> None:
        self.model = name
        served = model if isinstance(model, ServedModel) else ServedModel.of(model)
        self.served = served

        def load(setting: GuardConfig, artifact: Artifact) -> tuple[LoadedGuard, MethodGuard]:
            remedy = served.remedy(artifact, setting.artifact, _named(config, name))
            artifact.require_model(served.fingerprint, served=name, remedy=remedy)
            return _guard(setting, artifact, served)

        selection = select_guards(config, "language", name, load)
        self.guards = {name: guard for name, (_, guard) in selection.fit.items()}
        self.bank = HiddenBank(stacks([*self.guards.values()], served.device), served.device)
        self.broken = selection.broken
        loaded = {guard: fitted for guard, (fitted, _) in selection.fit.items()}
        self._loaded = loaded
        super().__init__(config, partial(_plan, loaded, selection), selection)

    @property
    def entries(self) -> dict[str, list[str]]:
        """The suppression lists, and the ids of the names on each."""
        return {
            name: [each for each in guard.entries if each]
            for name, guard in self._loaded.items()
            if guard.entries
        }

    @property
    def lists(self) -> dict[str, int]:
        """The suppression lists, and how many names each has."""
        return {name: len(entries) for name, entries in self.entries.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Guard → the digest of its artifact."""
        return {name: guard.digest for name, guard in self._loaded.items()}

    def continues(self, guard: str, earlier: LanguagePlans) -> bool:
        """Whether `guard` is the suppression list that it was, with entries added or taken off:
        those that are left have their numbers."""
        before, now = (
            plans._loaded[guard].entries if guard in plans._loaded else ()
            for plans in (earlier, self)
        )
        kept = zip(before, now, strict=False)
        return bool(before) and len(now) >= len(before) and all(b in ("", a) for a, b in kept)


def _plan(
    loaded: Mapping[str, LoadedGuard],
    selection: GuardSelection[tuple[LoadedGuard, MethodGuard]],
    name: str,
    policy: PolicyConfig,
) -> LanguagePlan:
    plan = resolve(LanguagePlan, name, policy, loaded, selection)
    return replace(
        plan,
        rewinds=_rewinds(plan, policy),
        message=policy.message or SAID_LATER,
        by_turn=policy.scope == "turn",
    )


def _rewinds(plan: LanguagePlan, policy: PolicyConfig) -> Rewinds:
    # guards that decide on the prompt alone fire on no answer, which would be held back for nothing
    fire_later = any(row.acts and row.recheck is not None for row in plan.rows())
    if policy.rewind is False or not fire_later:
        return "never"
    return "always" if policy.rewind else "steered"


def _named(config: Config, name: str) -> str:
    """The options of `guard rebind` that name a model of the configuration."""
    model = next((each for each in config.models if each.name == name), None)
    if model is None:
        return "--model ..."
    options = f"--model {model.source}"
    if model.engine == "vllm":
        options += " --engine vllm"
    quantization = model.quantization or model.engine_options.get("quantization")
    return f"{options} --quantization {quantization}" if quantization else options


def _guard(
    setting: GuardConfig, artifact: Artifact, model: ServedModel
) -> tuple[LoadedGuard, MethodGuard]:
    meta = artifact.meta
    method = method_named(meta.method)
    if method.kind != "language":
        raise ValueError(f"the method {method.name!r} is not for language models")
    guard = FittedGuard(setting.name, artifact.tensors, meta.settings)
    stack = method.stacked([guard])
    _require_fit(stack, model)
    overlays: Mapping[str, LinearOverlay] = getattr(stack, "overlays", {})
    if overlays:
        _require_overlaid(setting, overlays, model)
    loaded = LoadedGuard.of(setting, artifact, method, guard)
    try:
        loaded = loaded.rechecked(setting, guard.optional_number("recheck"))
    except ArtifactError as error:
        raise ArtifactError(f"{setting.artifact}: {error.message}") from error
    entries = meta.settings.get("entries")
    if isinstance(entries, list):
        loaded = replace(loaded, entries=tuple(map(str, entries)))
    return loaded, MethodGuard(method, guard)


def _require_overlaid(
    setting: GuardConfig, overlays: Mapping[str, LinearOverlay], model: ServedModel
) -> None:
    """Raise ArtifactError where the engine runs no overlays, for a `recheck`, which they do not
    have, and ValueError for overlays that do not fit the model's linear layers."""
    if model.linears is None:
        raise ArtifactError(
            f"{setting.artifact}: overlays linear layers, which vLLM does not run: serve the model "
            'with engine = "transformers", or take the guard out of its policies'
        )
    if setting.recheck not in (None, False):
        raise ArtifactError(f"{setting.artifact}: {DECIDES_ON_PROMPT}: leave out recheck")
    shapes = model.linears()
    for name, overlay in overlays.items():
        require_fit(name, overlay, shapes)


def _require_fit(stack: HiddenGuards, model: ServedModel) -> None:
    """Raise ValueError for a guard of another width, or at layers that the model does not have."""
    if stack.width != model.width:
        raise ValueError(f"its width is {stack.width}, the model's {model.width}")
    layers = {
        layer for place in stack.placements for layer in (*place.sense_layers, *place.act_layers)
    }
    if outside := sorted(layer for layer in layers if not 0 <= layer < model.depth):
        raise ValueError(f"layers {outside} do not exist in a model of {model.depth} layers")
