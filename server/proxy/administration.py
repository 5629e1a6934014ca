"""What administrators change while a proxy runs: tenants, and policies."""

from __future__ import annotations

from guard.config.schema import Config
from guard.tenants.directory import Directory
from guard.tenants.keys import admin_ring
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.policies.live import LiveConfiguration
from server.policies.shadows import Shadows
from server.proxy.app import ProxyApp


def administer(
    app: ProxyApp,
    config: Config,
    directory: Directory | None,
    recorder: Recorder,
    metrics: Metrics,
) -> None:
    """Let administrators change tenants and policies where there is a database of them. Raises
    GuardError."""
    live = LiveConfiguration(config)
    shadows = Shadows(config, app.plans)
    recorder.shadow = shadows
    live.add(app, shadows, *([directory] if directory is not None else []))
    if directory is None and not config.live_policies.is_configured:
        return
    # imported here: they need what only the extra `tenants` has
    from server.policies.endpoints import Administration, policies_router
    from server.policies.opening import Requirements, open_policies
    from server.policies.replaying import Replays
    from server.tenants.app import administration_app
    from server.tenants.endpoints import tenants_router

    requirements = Requirements(lambda: app.plans, directory=directory)
    policies = open_policies(config, live, requirements, recorder, metrics, adapt=of_proxy)
    routers = [tenants_router(config, directory)] if directory is not None else []
    admins = admin_ring(config, directory)
    if policies is not None and admins is not None:
        context = app.context
        replays = Replays(lambda: app.plans, context.screener, context.kept, own_app=False)
        routers.append(policies_router(config, Administration(policies, replays, admins)))
    app.administer(administration_app(routers), policies)


def of_proxy(config: Config) -> Config:
    """The configuration as a proxy takes it: its own default policy, and no models."""
    default = config.proxy.default_policy
    update = {} if default is None else {"default_policy": default}
    server = config.server.model_copy(update=update)
    return config.model_copy(update={"server": server, "models": ()})
