"""The errors that the product raises on purpose.

    GuardError
    ├── ConfigError            the configuration file is invalid (all problems at once)
    ├── ArtifactError          an artifact cannot be read, is damaged, or has impossible values
    │   └── FingerprintError   a valid artifact that was fitted on another model
    ├── ModelError             a model source cannot be found or is of an unknown architecture
    ├── DataError              a data file or a suite file is invalid
    ├── RequestError           the request is at fault: HTTP 4xx
    │   ├── UnknownModel
    │   ├── UnknownPolicy
    │   ├── PolicyForbidden    the key may not use this policy
    │   ├── EmbeddingsForbidden the key's requests may not contain embeddings
    │   ├── PolicyUnfit        the policy has guards, but none for this kind of model
    │   ├── Unauthorized       no key, or an unknown one
    │   ├── RoleForbidden      the key's role may not do this
    │   ├── UnknownTenant      no organisation, team or key of that name
    │   ├── AlreadyExists      an organisation or a team of that name is there already
    │   ├── InvalidTenant      the settings of an organisation, a team or a key do not hold
    │   ├── InvalidPolicy      the settings of a policy do not hold: nothing is changed
    │   ├── PolicyNotFound     no policy of that name
    │   ├── VersionNotFound    the policy has no version of that number
    │   ├── PolicyChanged      somebody else was quicker to change a policy
    │   ├── ReplayUnavailable  nothing was recorded that could be decided again
    │   ├── ContextExceeded    prompt and max_tokens do not fit the model's context
    │   ├── ContentBlocked     a guard whose action is "block" fired on the prompt
    │   └── TooManyRequests    the queue is full or the key's rate is used up
    │       └── BudgetExhausted the tokens of this month are used up
    ├── DatabaseUnavailable    a database does not answer: HTTP 503
    │   └── TenantsUnavailable the database of tenants
    ├── LimitsUnavailable      the store in which servers count together does not answer: HTTP 503
    └── GuardFailed            a guard could not be applied and its policy fails closed: HTTP 500
        └── ServiceStopped     the engine is shutting down or has died: HTTP 503

Each class has the fields of OpenAI's error envelope: `status`, `type`, `code`, `param`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from guard.verdict import Verdict


class GuardError(Exception):
    """The base class: `str(error)` is one line that says what to change."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(GuardError):
    """The configuration is invalid; `problems` has one line for each fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ArtifactError(GuardError):
    """An artifact cannot be used."""


class FingerprintError(ArtifactError):
    """An artifact was fitted on another model than the one served."""


class ModelError(GuardError):
    """A model cannot be found, read or hooked."""


class DataError(GuardError):
    """A data file is invalid."""


class RequestError(GuardError):
    """The request is at fault."""

    status = 400
    type = "invalid_request_error"


class UnknownModel(RequestError):
    status = 404
    code = "model_not_found"


class UnknownPolicy(RequestError):
    code = "unknown_policy"


class PolicyForbidden(RequestError):
    status = 403
    type = "permission_error"
    code = "policy_forbidden"


class EmbeddingsForbidden(RequestError):
    status = 403
    type = "permission_error"
    code = "embeddings_forbidden"


class PolicyUnfit(RequestError):
    code = "policy_not_for_model"


class Unauthorized(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class RoleForbidden(RequestError):
    status = 403
    type = "permission_error"
    code = "role_forbidden"


class UnknownTenant(RequestError):
    status = 404
    code = "tenant_not_found"


class AlreadyExists(RequestError):
    status = 409
    code = "already_exists"


class InvalidTenant(RequestError):
    code = "invalid_tenant"


class InvalidPolicy(RequestError):
    """`param` is the first of the faulty settings."""

    code = "invalid_policy"


class PolicyNotFound(RequestError):
    status = 404
    code = "policy_not_found"


class VersionNotFound(RequestError):
    status = 404
    code = "version_not_found"


class PolicyChanged(RequestError):
    status = 409
    code = "policy_changed"


class ReplayUnavailable(RequestError):
    status = 409
    code = "replay_unavailable"


class ContextExceeded(RequestError):
    code = "context_length_exceeded"


class ContentBlocked(RequestError):
    """The prompt was blocked; `verdict` says by which guard."""

    code = "content_filter"

    def __init__(self, message: str, *, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class TooManyRequests(RequestError):
    """Over a limit; `retry_after` is in seconds and becomes the `Retry-After` header."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetExhausted(TooManyRequests):
    """The tokens of this month are used up: to try again soon is in vain."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class DatabaseUnavailable(GuardError):
    """A database does not answer."""

    status = 503
    code = "database_unavailable"


class TenantsUnavailable(DatabaseUnavailable):
    """Nobody can be identified: the database of tenants has not answered for too long."""

    code = "tenants_unavailable"


class LimitsUnavailable(GuardError):
    """A key has limits that servers count together, and their store does not answer."""

    status = 503
    code = "limits_unavailable"


class GuardFailed(GuardError):
    """A guard could not be applied, and the policy has `on_error = "closed"`."""

    code = "guard_failed"

    def __init__(self, message: str, *, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class ServiceStopped(GuardFailed):
    status = 503
    code = "service_unavailable"
