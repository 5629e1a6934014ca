"""From a configuration to policies that change while a server or a proxy runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from guard.config.schema import Config
from guard.errors import GuardError, InvalidPolicy
from guard.plans.screens import TextPlans
from guard.policies.changing import require_tenants
from guard.policies.effective import PolicyFile
from guard.policies.store import store_of
from guard.tenants.directory import Directory
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.policies.live import LiveConfiguration
from server.policies.metrics import PolicyMetrics
from server.policies.service import LivePolicies
from server.services.following import FollowsPolicies


@dataclass(frozen=True, slots=True)
class Requirements:
    """What policies must do on this server: its screens, its models, and what tenants require."""

    screens: Callable[[], TextPlans | None]
    services: Iterable[object] = ()
    directory: Directory | None = None

    def check(self, live: Config, config: Config, policy: str) -> None:
        """Raise InvalidPolicy where a policy of `config` could not act here, or tenants could not
        go on as under `live`."""
        if policy in config.policies:
            self._require_able(config, policy)
        if self.directory is not None:
            require_tenants(self.directory, live, config, policy)

    def _require_able(self, config: Config, policy: str) -> None:
        plans = self.screens()
        if plans is not None:
            try:
                plans.under(config)[policy].require_whole()
            except GuardError as error:
                raise InvalidPolicy(error.message, param="guards") from error
        models = [each for each in self.services if isinstance(each, FollowsPolicies)]
        faults = [model.fault(config, policy) for model in models]
        if faults and all(faults) and config.policies[policy].on_error == "closed":
            raise InvalidPolicy(f"No model here could follow it: {faults[0]}", param="guards")


def open_policies(
    config: Config,
    live: LiveConfiguration,
    requirements: Requirements,
    recorder: Recorder,
    metrics: Metrics,
    *,
    adapt: Callable[[Config], Config] = lambda config: config,
) -> LivePolicies | None:
    """The policies in force, from the first request on; None where they are not configured.

    `adapt` makes of a configuration what `config` is of that of the file. Raises GuardError.
    """
    if not config.live_policies.is_configured:
        return None
    if config.path is None:
        raise GuardError("[live_policies] needs a configuration file: its policies are the first")
    file = PolicyFile(config.path)
    _require_same(adapt(file.config), config)
    store = store_of(config)
    try:
        policies = LivePolicies(
            live,
            store,
            file,
            check=lambda wanted, name: requirements.check(live.config, wanted, name),
            audit=recorder.audit,
            audit_failed=recorder.metrics.count_audit_failure,
            metrics=PolicyMetrics(metrics.registry),
        )
        policies.open()
    except BaseException:
        store.database.close()
        raise
    return policies


def _require_same(now: Config, config: Config) -> None:
    """Raise GuardError where the file is another one than at the start, which what was loaded since
    then is of. Upstreams may be the command line's."""
    names = sorted(Config.model_fields.keys() - {"policies", "upstreams"})
    if changed := [name for name in names if getattr(now, name) != getattr(config, name)]:
        sections = ", ".join(f"[{name}]" for name in changed)
        raise GuardError(f"{config.path}: {sections}: has changed since it was read: start again")
