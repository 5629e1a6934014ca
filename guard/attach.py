"""Plain Python use: guards on a model that the caller holds, without a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guard.config import Config, load_config
from guard.errors import ContentBlocked, GuardFailed, ModelError
from guard.plan import Plan, Plans
from guard.verdict import Verdict
from steering.engines.attachment import Attachment, Unfollowed
from steering.engines.layers import UnknownArchitecture


class Attached:
    """The handle that `attached` gives: what the guards did in the last `generate`."""

    def __init__(self, plan: Plan, model: str) -> None:
        self.policy = plan.policy
        self._plan, self._model = plan, model
        self._attachment: Attachment | None = None

    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each row of the last batch, `request_id` being row-0, row-1 ..."""
        attachment = self._attachment
        if attachment is None:
            return ()
        return tuple(self._verdict(attachment, row) for row in range(attachment.rows))

    def _verdict(self, attachment: Attachment, row: int) -> Verdict:
        return self._plan.verdict(
            attachment.readings(row),
            request_id=f"row-{row}",
            model=self._model,
            elapsed_ms=(time.monotonic() - attachment.began) * 1000,
        )

    def _check(self, attachment: Attachment) -> None:
        """Behind each forward: end the generation where the policy wants that."""
        self._attachment = attachment
        fired, invalid = attachment.flags()
        if self._plan.on_error == "closed" and any(invalid):
            raise GuardFailed(
                f"a guard of policy {self.policy!r} met NaN; the policy fails closed",
                verdict=self._verdict(attachment, invalid.index(True)),
            )
        if self._plan.action == "block" and any(fired):
            raise ContentBlocked(
                f"a guard of policy {self.policy!r} fired on row {fired.index(True)}",
                verdict=self._verdict(attachment, fired.index(True)),
            )


@contextmanager
def attached(
    model: Any, policy: str | None = None, *, config: Config | Path | str = "config.toml"
) -> Iterator[Attached]:
    """Guard `model.generate` with a policy of `config` while the context lasts.

    `model` is a transformers causal language model, `policy` None the configuration's default.
    Batches are guarded row by row; pad on the left. Leaving takes every hook off: the model is as
    it was, bit for bit.

    Raises ConfigError, UnknownPolicy, PolicyUnfit, ModelError (an architecture whose layers cannot
    be found), GuardFailed (a guard cannot be applied, or a forward cannot be followed) and, under
    the action "block", ContentBlocked for the whole batch.
    """
    settings = config if isinstance(config, Config) else load_config(config)
    name = policy or settings.server.default_policy
    settings.policy(name)
    served = getattr(model.config, "_name_or_path", "") or type(model).__name__
    try:
        plan_of = Plans(settings, model, name=served)
        plan = plan_of[name]
        plan.require_fit(served)
        if plan.refuses:
            faults = "; ".join(f"{guard}: {why}" for guard, why in plan.broken.items())
            raise GuardFailed(f"policy {name!r} cannot be applied: {faults}")
        handle = Attached(plan, served)
        attachment = Attachment(model, plan_of.bank, plan.rows(), handle._check)
    except UnknownArchitecture as error:
        raise ModelError(str(error)) from error
    try:
        yield handle
    except Unfollowed as error:
        raise GuardFailed(str(error)) from error
    finally:
        attachment.remove()
