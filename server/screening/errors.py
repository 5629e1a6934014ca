"""Errors between a client and a screened response."""

from __future__ import annotations

from http import HTTPStatus

from guard.errors import GuardError, GuardFailed, RequestError


class UnscreenedRoute(RequestError):
    """No reader knows this route, and the policy does not list it as unscreened."""

    status = 403
    code = "unscreened_route"


class UnscreenedContent(RequestError):
    """The request has content that is not text, and the policy does not list it as unscreened."""

    code = "unscreened_content"


class TextTooLong(RequestError):
    """A text is longer than a classifier can read."""

    code = "too_long_to_screen"

    def __init__(self) -> None:
        super().__init__("A text is too long to be screened; send less of it at once.")


class TooManyTexts(RequestError):
    """There are more texts than are read at once."""

    status = 413
    code = "too_many_texts"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"There are more than {limit} texts to be screened; send fewer messages, parts or "
            "fields at once."
        )


class UnreadableImage(RequestError):
    """The policy reads images, and one of the request cannot be read."""

    code = "unreadable_image"


class TooManyImages(RequestError):
    """There are more images than are read at once."""

    status = 413
    code = "too_many_images"


class UnreadableAnswer(GuardFailed):
    """The response cannot be screened, so it is not passed on."""

    status = 502
    code = "unreadable_answer"


class UpstreamError(GuardError):
    """The upstream answered with an error that is no JSON: its status alone, `upstream_status`, is
    told."""

    code = "upstream_error"

    def __init__(self, upstream_status: int) -> None:
        phrases = {known.value: f" ({known.phrase})" for known in HTTPStatus}
        phrase = phrases.get(upstream_status, "")
        super().__init__(f"The upstream answered {upstream_status}{phrase}.")
        self.upstream_status = upstream_status
