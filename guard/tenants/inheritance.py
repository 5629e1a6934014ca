"""What holds for a key: the settings of its organisation, its team and its own together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from guard.tenants.levels import LevelSettings
from guard.verdict import VerdictDetail

_DETAILS: tuple[VerdictDetail, ...] = get_args(VerdictDetail)
"""From the least detail to the most."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """The settings of several levels together.

    `policies` None: no level has said which. `required` has those of the lowest level first.
    """

    default_policy: str | None = None
    policies: tuple[str, ...] | None = None
    required: tuple[str, ...] = ()
    embeddings: bool | None = None
    verdict: VerdictDetail | None = None

    def offers(self, policy: str) -> bool:
        """Whether a level below may name `policy`."""
        if self.default_policy is None and self.policies is None:
            return True
        return policy == self.default_policy or policy in (self.policies or ())

    def below(self, level: LevelSettings) -> Inherited:
        """With one more level, which takes nothing away of what must hold."""
        named = level.default_policy
        default = named if named is not None and self.offers(named) else self.default_policy
        policies = self.policies
        if level.policies is not None:
            policies = tuple(name for name in level.policies if self.offers(name))
        allowances = [each for each in (self.embeddings, level.embeddings) if each is not None]
        details = [each for each in (self.verdict, level.verdict) if each is not None]
        return Inherited(
            default,
            policies,
            tuple(dict.fromkeys((*level.required, *self.required))),
            all(allowances) if allowances else None,
            min(details, key=_DETAILS.index, default=None),
        )


def inherited(levels: Sequence[LevelSettings]) -> Inherited:
    """The settings of `levels` together, the highest first."""
    whole = Inherited()
    for level in levels:
        whole = whole.below(level)
    return whole


def level_problems(
    level: LevelSettings, above: Sequence[LevelSettings], policies: Collection[str]
) -> Iterator[str]:
    """What is wrong with the settings of a level below others, where the configuration has these
    `policies`."""
    whole = inherited(above)
    named = [level.default_policy] if level.default_policy is not None else []
    named += level.policies or ()
    for name in dict.fromkeys((*named, *level.required)):
        if name not in policies:
            yield f"there is no policy {name!r}: the configuration has {', '.join(policies)}"
    for name in named:
        if not whole.offers(name):
            yield (
                f"the policy {name!r} is not among those of the level above: it offers "
                f"{', '.join(_offered(whole))}"
            )


def _offered(whole: Inherited) -> list[str]:
    default = [whole.default_policy] if whole.default_policy is not None else []
    return list(dict.fromkeys([*default, *(whole.policies or ())]))
