"""The chat's client: answers as they are streamed, the verdict behind them, the policies."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from guard.errors import GuardError

_CONNECT_S, _READ_S = 10.0, 300.0
_MAX_LINE = 2**20
"""Characters of an event."""


class ChatError(GuardError):
    """The server cannot be reached, or has not answered; `verdict` is there where a guard is the
    reason."""

    def __init__(self, message: str, *, verdict: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer: why it ended, and its verdict where the server tells of it."""

    reason: str
    verdict: Mapping[str, Any] | None


class ChatClient:
    """A client of one server. `url` may end in `/v1`; `trust_env` False goes past HTTP proxies.

    Raises ChatError for a URL that is none.
    """

    def __init__(self, url: str, key: str | None = None, *, trust_env: bool = True) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ChatError(f"{url!r} is no URL of a server: give one like http://127.0.0.1:8000")
        self._http = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
            trust_env=trust_env,
        )

    def close(self) -> None:
        self._http.close()

    def policies(self) -> list[str]:
        """The policies that may be named. Raises ChatError."""
        with _told():
            response = self._http.get("/guard/v1/policies")
            _require(response)
            return [policy["id"] for policy in response.json()["data"]]

    def require_model(self, model: str) -> None:
        """Raise ChatError unless the server has that model, for texts."""
        with _told():
            response = self._http.get("/v1/models")
            _require(response)
            names = [entry["id"] for entry in response.json()["data"]]
        if model not in names:
            raise ChatError(f"this server has no model {model!r}: it has {', '.join(names)}")

    def answer(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        policy: str | None,
        *,
        temperature: float,
    ) -> Generator[str | End]:
        """The texts of an answer as they come, then its end. Closing the iterator stops the answer.

        `policy` None takes the server's default. Raises ChatError.
        """
        body: dict[str, Any] = {"model": model, "messages": [*messages], "stream": True}
        body["temperature"] = temperature
        if policy is not None:
            body["guard"] = {"policy": policy}
        with (
            _told(),
            self._http.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
            _require(response)
            reason, verdict = "", None
            for event in _events(response):
                _require_no_error(event)
                for choice in event.get("choices") or ():
                    if text := choice["delta"].get("content"):
                        yield str(text)
                    reason = choice.get("finish_reason") or reason
                verdict = event.get("guard") or verdict
            if not reason:
                raise ChatError("the answer broke off")
            yield End(reason, verdict)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        if len(data) > _MAX_LINE:
            raise ChatError("the server sent an event that is too long")
        event = json.loads(data)
        if isinstance(event, dict):
            yield event


def _require(response: httpx.Response) -> None:
    """Raise the error of a response that is one."""
    if response.is_success:
        return
    with suppress(ValueError, AttributeError):
        _require_no_error(response.json())
    raise ChatError(f"{response.url} answers with status {response.status_code}")


def _require_no_error(value: Mapping[str, Any]) -> None:
    error = value.get("error")
    if isinstance(error, dict):
        raise ChatError(str(error.get("message", "the server failed")), verdict=value.get("guard"))


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong on the way into ChatErrors."""
    try:
        yield
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ChatError(f"the server cannot be reached, or went away: {why}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ChatError(f"what came is not the answer of a server like this: {error}") from error
