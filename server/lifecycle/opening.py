"""From a configuration to the app that serves it, with all that is open around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastapi import FastAPI

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.errors import GuardError
from guard.plans.screens import TextPlans
from guard.tenants.directory import Directory
from server.app import close_services, create_app
from server.erasures.service import Erasures
from server.erasures.store import Store
from server.lifecycle.surroundings import opened_surroundings
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.observe.traffic import Traffic
from server.policies.live import LiveConfiguration
from server.policies.shadows import Shadows
from server.screening.kept import KeptTexts
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from server.services.build import build_services
from server.services.interface import Service

if TYPE_CHECKING:
    from server.policies.service import LivePolicies

_OF_FITS = ("jinja2", "matplotlib", "scipy", "sklearn")


@dataclass(frozen=True, slots=True)
class OpenedApp:
    """An app, and what whoever runs it must know of."""

    app: FastAPI
    services: Mapping[str, Service]
    audit: AuditLog | None
    traffic: Traffic
    erasures: Erasures | None

    def stop_streams(self) -> None:
        """End the streams that have no end of their own."""
        self.traffic.stop()
        if self.erasures is not None:
            self.erasures.stop()


@contextmanager
def opened_app(config: Config) -> Iterator[OpenedApp]:
    """Build the services of `config`, and the app; the end of the app's lifespan closes the
    services, the end of the block everything else. Raises GuardError."""
    with opened_surroundings(config) as around:
        metrics, directory = around.metrics, around.directory
        traffic = Traffic()
        recorder = Recorder(metrics.verdicts, around.audit, around.tracing, traffic)
        screens = _screens(config, recorder)
        services = build_services(config, recorder)
        try:
            live = LiveConfiguration(config, services.values())
            policies = follow_policies(
                config, live, services, screens, directory, recorder, metrics
            )
            erasures = _erasures(config, services, recorder, live)
        except BaseException:
            close_services(services)
            raise
        app = create_app(
            config,
            services,
            keys=around.keys,
            metrics=metrics,
            screens=screens,
            erasures=erasures,
            directory=directory,
            tracing=around.tracing,
            traffic=traffic,
            live=live,
            policies=policies,
        )
        yield OpenedApp(app, services, around.audit, traffic, erasures)


def follow_policies(
    config: Config,
    live: LiveConfiguration,
    services: Mapping[str, Service],
    screens: Screens | None,
    directory: Directory | None,
    recorder: Recorder,
    metrics: Metrics,
) -> LivePolicies | None:
    """Who follows the policies, and what changes them while the server runs; None where nothing is
    configured that does. Raises GuardError."""
    shadows = Shadows(config, screens.plans if screens is not None else None)
    recorder.shadow = shadows
    live.add(shadows, *(each for each in (screens, directory) if each is not None))
    if not config.live_policies.is_configured:
        return None
    # imported here: a server without a database needs none of it
    from server.policies.opening import Requirements, open_policies

    requirements = Requirements(
        lambda: screens.plans if screens is not None else None, services.values(), directory
    )
    return open_policies(config, live, requirements, recorder, metrics)


def _erasures(
    config: Config, services: Mapping[str, Service], recorder: Recorder, live: LiveConfiguration
) -> Erasures | None:
    """The erasures, with those in force carried by requests from the first one on; None where they
    are not configured. Raises GuardError."""
    if (folder := config.erasures.folder) is None:
        return None
    if missing := [name for name in _OF_FITS if find_spec(name) is None]:
        raise GuardError(f"erasures need {missing[0]}: pip install 'inference-guard[serve,fit]'")
    failed = recorder.metrics.count_audit_failure
    store = Store(folder)
    audit = recorder.audit
    erasures = Erasures(config, services, store, audit, audit_failed=failed, live=live)
    erasures.load()
    recorder.watch = erasures.count
    return erasures


def _screens(config: Config, recorder: Recorder) -> Screens | None:
    """The text screens, None where no policy has any."""
    plans = TextPlans(config)
    if not plans.any_screens:
        return None
    timed = recorder.metrics.time_reading
    kept = KeptTexts(config.live_policies.kept_texts)
    screener = Screener(plans.cascade, plans.images, timed=timed)
    return Screens(plans, screener, recorder, kept)
