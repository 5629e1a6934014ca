"""Errors between a proxy and its upstream."""

from __future__ import annotations

from guard.errors import GuardError, RequestError


class UpstreamUnreachable(GuardError):
    """No connection to the upstream: nothing was sent."""

    status = 502
    code = "upstream_unreachable"


class UpstreamBroken(GuardError):
    """The upstream broke HTTP, or hung up in the middle."""

    status = 502
    code = "upstream_failed"


class UpstreamRefused(GuardError):
    """The upstream does not accept the credential that it was configured with."""

    status = 502
    code = "upstream_refused_credential"


class UpstreamRedirects(GuardError):
    """The upstream sends the request elsewhere, where its credential and its texts must not go."""

    status = 502
    code = "upstream_redirects"


class UpstreamTimeout(GuardError):
    status = 504
    code = "upstream_timeout"


class UnsupportedUpgrade(RequestError):
    """A client asks for a websocket."""

    code = "unsupported_upgrade"


class BadPath(RequestError):
    """A path with segments that leave the directory it names."""

    code = "invalid_path"
