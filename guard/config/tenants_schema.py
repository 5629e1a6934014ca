"""The sections of `config.toml` about tenants that are not in the file itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from guard.config.section import Section

_Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]


class TenantsConfig(Section):
    """`[tenants]`: a database of organisations, teams and keys; times in seconds.

    `database` is the path of a SQLite file, or `postgresql://USER@HOST/DATABASE`; a URL with a
    password stands in the environment variable `database_env` instead. Changes are in force after
    `refresh_s` at the latest. While the database does not answer, what was read from it holds for
    `offline_s`; then requests are refused.
    """

    database: str | None = Field(default=None, min_length=1)
    database_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    refresh_s: float = Field(default=0.5, ge=0.05, le=1)
    offline_s: float = Field(default=60.0, ge=1)

    @property
    def is_configured(self) -> bool:
        """Whether there is a database."""
        return self.database is not None or self.database_env is not None


class OidcConfig(Section):
    """`[oidc]`: tokens of an identity provider, in place of keys.

    Tokens are taken that `issuer` has signed for `audience`. Its signing keys are read from
    `jwks_url`, or from where the issuer's own metadata say, at the same host. The claim
    `team_claim` has the team ("ORGANISATION/TEAM"), `role_claim` the role, "tenant" where it is
    missing.
    """

    issuer: _Url | None = None
    audience: str | None = Field(default=None, min_length=1)
    jwks_url: _Url | None = None
    team_claim: str = Field(default="team", min_length=1)
    role_claim: str = Field(default="role", min_length=1)
