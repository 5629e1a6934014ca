"""The model that a checkpoint is compared with: its networks, and what files call their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from guard.errors import DataError
from steering.fingerprint import bare_name
from steering.images.projection import SEPARATOR, component_of, path_of

_WRAPPERS = ("base_model.model.", "module.")
"""What PEFT and data-parallel training put before every name."""

Find = Callable[[str, str], bool]
"""Whether a component has what the rest of a name says."""


@dataclass(frozen=True, eq=False)
class Base:
    """`networks` by component, "" for the main one (a denoiser, a language model); `aliases` are
    what files and folders call them ("unet" → ""). The weights are only read."""

    networks: Mapping[str, nn.Module]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def module(self, layer: str) -> nn.Module:
        """The layer of that name, as overlays have it."""
        return self.networks[component_of(layer)].get_submodule(path_of(layer))

    @cached_property
    def parameters(self) -> Mapping[str, Mapping[str, str]]:
        """Component → the bare name of each of its parameters → its name; one that is tied has
        several."""
        return {
            component: {
                bare_name(name): name
                for name, _ in network.named_parameters(remove_duplicate=False)
            }
            for component, network in self.networks.items()
        }

    @cached_property
    def joined(self) -> Mapping[str, Mapping[str, str]]:
        """Component → the paths of its layers with `_` for `.`, as kohya-ss writes them → the
        path."""
        return {
            component: {
                bare_name(path).replace(".", "_"): path
                for path, module in network.named_modules()
                if hasattr(module, "weight")
            }
            for component, network in self.networks.items()
        }

    def split(
        self, names: Sequence[str], known: Find, component: str | None, label: str
    ) -> dict[str, tuple[str, str]]:
        """Each of `names` → its component, and the rest of it.

        A name that begins with an alias says its component; all others are of one: `component`, or
        where it is None the one that has most of them. Raises DataError where two have as many.
        """
        split: dict[str, tuple[str, str]] = {}
        plain: dict[str, str] = {}
        for name in names:
            rest = name
            for wrapper in _WRAPPERS:
                rest = rest.removeprefix(wrapper)
            alias = rest.partition(".")[0]
            if alias in self.aliases and not known(component or "", rest):
                split[name] = self.aliases[alias], rest.partition(".")[2]
            else:
                plain[name] = rest
        if plain:
            chosen = component
            if chosen is None:
                chosen = self._chosen(list(plain.values()), known, label)
            split |= {name: (chosen, rest) for name, rest in plain.items()}
        for name, (of, _) in split.items():
            if of not in self.networks:
                raise DataError(f"{label}: has {name!r:.120}, for {of}, which the base has not")
        return split

    def _chosen(self, rests: Sequence[str], known: Find, label: str) -> str:
        """The component that has most of these names."""
        hits = {of: sum(known(of, rest) for rest in rests) for of in self.networks}
        best, *others = sorted(hits, key=lambda of: -hits[of])
        if others and hits[best] and hits[others[0]] == hits[best]:
            raise DataError(
                f"{label}: its names are those of {self.called(best)} and of "
                f"{self.called(others[0])}: say which it is for with --component"
            )
        return best

    def named(self, name: str) -> str:
        """The component that files call so. Raises DataError where there is none."""
        component = self.aliases.get(name, name)
        if component not in self.networks:
            known = ", ".join(self.called(of) for of in self.networks)
            raise DataError(f"--component: the base has no {name!r:.120}: it has {known}")
        return component

    def called(self, component: str) -> str:
        """What files call a component."""
        return next((alias for alias, of in self.aliases.items() if of == component), component)


def layer_name(component: str, path: str) -> str:
    """The name of a layer in overlays: `PATH` in the main network, `COMPONENT:PATH` in others."""
    return f"{component}{SEPARATOR}{path}" if component else path


def is_served(module: nn.Module) -> bool:
    """Whether overlays can act on a layer: plain linear and convolution layers."""
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
