"""What the screened requests of a server or a proxy share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp

from server.screening.kept import KeptTexts
from server.screening.texts.screener import Screener


@dataclass(frozen=True, slots=True)
class ScreeningContext:
    """The app that answers screened requests, and the limits on screening them.

    `own_app`: `app` is this server's own: its errors and its `guard` objects are not screened.
    `kept` takes the bodies of requests whose policy keeps their text.
    """

    app: ASGIApp
    screener: Screener
    max_response_bytes: int
    timeout_s: float
    own_app: bool
    kept: KeptTexts | None = None
