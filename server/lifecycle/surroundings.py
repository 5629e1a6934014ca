"""What is open around a server and a proxy alike: audit log, shared counters, tenants, traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.replicas.opening import Replicas, ledger_of, open_replicas
from guard.tenants.acts import noting
from guard.tenants.directory import Directory, open_directory
from guard.tenants.keys import KeyRing, key_ring
from server.observe.metrics import Metrics
from server.observe.replicas import register_shared_limits
from server.observe.tracing import Tracing, tracing_of


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`audit`, `replicas`, `directory` and `keys` are None where the configuration has none."""

    metrics: Metrics
    audit: AuditLog | None
    replicas: Replicas | None
    directory: Directory | None
    keys: KeyRing | None
    tracing: Tracing


@contextmanager
def opened_surroundings(config: Config) -> Iterator[Surroundings]:
    """Open what `config` asks for, and close it behind the block. Raises GuardError."""
    metrics, path = Metrics(config), config.server.audit_log
    with (
        AuditLog(path, key=config.server.audit_key) if path else nullcontext() as audit,
        open_replicas(config.replicas) as replicas,
        open_directory(
            config, noting(audit, metrics.verdicts.count_audit_failure), ledger_of(replicas)
        ) as directory,
        closing(tracing_of(config.server.traces)) as tracing,
    ):
        if replicas is not None:
            register_shared_limits(replicas.ledger, metrics.registry)
        keys = key_ring(config, directory, ledger_of(replicas))
        yield Surroundings(metrics, audit, replicas, directory, keys, tracing)
