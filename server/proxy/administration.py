"""What administrators see and change while a proxy runs: traffic, tenants, policies."""

from __future__ import annotations

from guard.config.schema import Config
from guard.tenants.directory import Directory
from guard.tenants.keys import admin_ring
from server.console.endpoints import caller_router, traffic_router
from server.console.kept_texts import TrafficTexts
from server.console.pages import console_router
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.observe.traffic import Traffic
from server.policies.live import LiveConfiguration
from server.policies.shadows import Shadows
from server.proxy.app import ProxyApp
from server.tenants.app import administration_app


def administer(
    app: ProxyApp,
    config: Config,
    directory: Directory | None,
    recorder: Recorder,
    metrics: Metrics,
) -> None:
    """Serve the console, and let administrators change tenants and policies where there is a
    database of them. Raises GuardError."""
    live = LiveConfiguration(config)
    shadows = Shadows(config, app.plans)
    recorder.shadow = shadows
    live.add(app, shadows, *([directory] if directory is not None else []))
    admins, policies = admin_ring(config, directory), None
    routers, offers = [console_router()], []
    if admins is not None:
        recorder.traffic = Traffic()
        kept = app.context.kept
        texts = TrafficTexts(kept, recorder.audit) if kept is not None else None
        routers.append(traffic_router(recorder.traffic, admins, texts))
        offers.append("traffic")
    if directory is not None:
        # imported here, as below: it needs what only the extra `tenants` has
        from server.tenants.endpoints import tenants_router

        routers.append(tenants_router(config, directory))
        offers.append("tenants")
    if config.live_policies.is_configured:
        from server.policies.endpoints import Administration, policies_router
        from server.policies.opening import Requirements, open_policies
        from server.policies.replaying import Replays

        requirements = Requirements(lambda: app.plans, directory=directory)
        policies = open_policies(config, live, requirements, recorder, metrics, adapt=of_proxy)
        if policies is not None and admins is not None:
            context = app.context
            replays = Replays(lambda: app.plans, context.screener, context.kept, own_app=False)
            routers.append(policies_router(config, Administration(policies, replays, admins)))
            offers.append("live_policies")
    routers.append(caller_router(app.keys, admins, offers, ["policies"]))
    app.administer(administration_app(routers), policies, admins)


def of_proxy(config: Config) -> Config:
    """The configuration as a proxy takes it: its own default policy, and no models."""
    default = config.proxy.default_policy
    update = {} if default is None else {"default_policy": default}
    server = config.server.model_copy(update=update)
    return config.model_copy(update={"server": server, "models": ()})
