"""The configuration that requests are admitted under, as it is now, and who follows its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from guard.config.schema import Config
from server.services.interface import Service


@runtime_checkable
class Follower(Protocol):
    """What has plans of the policies."""

    def follow(self, config: Config) -> Callable[[], None]:
        """Prepare for the policies of `config`, which has the same guards, on any thread; what is
        returned puts them in force, on the event loop, and cannot fail.

        Requests that were admitted before end as they have begun.
        """


class LiveConfiguration:
    """The file's configuration with policies in place of its own, and what erasures add."""

    def __init__(self, config: Config, services: Iterable[Service] = ()) -> None:
        self.base = self.config = config
        """`base` is without what erasures add."""
        self.changing = asyncio.Lock()
        """Held while the plans of requests change, by whoever changes them."""
        self.overlay: Callable[[Config], Config] = lambda base: base
        """Adds the guards of erasures."""
        self._followers: list[Follower] = [each for each in services if isinstance(each, Follower)]

    def add(self, *followers: Follower) -> None:
        """Let these follow too, at once."""
        for follower in followers:
            follower.follow(self.config)()
        self._followers += followers

    def set(self, base: Config) -> None:
        """As `change`, before the first request."""
        self._put(base, *self._prepared(base))

    async def change(self, base: Config) -> None:
        """Admit requests under these policies from now on. To be called under `changing`."""
        prepared = await asyncio.to_thread(self._prepared, base)
        # without a wait between them: no request may see half of a change
        self._put(base, *prepared)

    def _prepared(self, base: Config) -> tuple[Config, Sequence[Callable[[], None]]]:
        config = self.overlay(base)
        return config, [follower.follow(config) for follower in self._followers]

    def _put(self, base: Config, config: Config, swaps: Sequence[Callable[[], None]]) -> None:
        for swap in swaps:
            swap()
        self.base, self.config = base, config
