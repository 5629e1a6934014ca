"""The policies that requests to a LoRA adapter may have: guards were fitted without it."""

from __future__ import annotations

from guard.config.adapter_checks import OF_BASE
from guard.config.adapter_schema import AdapterConfig
from guard.errors import PolicyUnfit
from guard.plans.language import LanguagePlan, LanguagePlans


def require_allowed(plan: LanguagePlan, adapter: AdapterConfig, base: str) -> None:
    """Raise PolicyUnfit where the plan has guards inside the model `base`, unless the configuration
    has these act on the adapter."""
    if not _is_allowed(plan, adapter):
        guards = ", ".join([*(guard.name for guard in plan.guards), *plan.broken])
        raise PolicyUnfit(
            f"the guards {guards} of the policy {plan.policy!r} were fitted on {base!r}, which the "
            f"adapter {adapter.name!r} changes: ask for a policy of screens alone, or have the "
            f'operator allow them with guards = "{OF_BASE}", or serve the adapter merged into a '
            "checkpoint, to which `guard rebind` binds them",
            param="guard.policy",
        )


def usable(plans: LanguagePlans, adapter: AdapterConfig) -> tuple[str, ...]:
    """The usable policies of the model that requests to the adapter may have."""
    return tuple(name for name in plans.usable if _is_allowed(plans[name], adapter))


def _is_allowed(plan: LanguagePlan, adapter: AdapterConfig) -> bool:
    acting = any(not guard.shadow for guard in plan.guards)
    return adapter.guards == OF_BASE or not (acting or plan.broken)
