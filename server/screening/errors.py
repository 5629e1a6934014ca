"""What can go wrong between a client and an answer that is screened."""

from __future__ import annotations

from guard.errors import GuardFailed, RequestError


class UnscreenedRoute(RequestError):
    """Nothing reads this route, and the policy does not say that it may pass unread."""

    status = 403
    code = "unscreened_route"


class UnscreenedContent(RequestError):
    """The request has content that is no text, and the policy does not let that pass unread."""

    code = "unscreened_content"


class TextTooLong(RequestError):
    """A text is longer than a classifier may be shown."""

    code = "too_long_to_screen"

    def __init__(self) -> None:
        super().__init__("A text is too long to be screened; send less of it at once.")


class UnreadableAnswer(GuardFailed):
    """The answer is nothing that can be screened, so it is not passed on."""

    status = 502
    code = "unreadable_answer"
