"""The configuration that requests are admitted under, as it is now, and who follows its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
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
        self._prepared(base)()

    async def change(self, base: Config) -> None:
        """Admit requests under these policies from now on. To be called under `changing`."""
        (await self.prepare(base))()

    async def prepare(self, base: Config) -> Callable[[], None]:
        """All of a change that can fail; what is returned makes it, on the event loop. To be called
        under `changing`, which is held until then."""
        return await asyncio.to_thread(self._prepared, base)

    def _prepared(self, base: Config) -> Callable[[], None]:
        config = self.overlay(base)
        swaps = [follower.follow(config) for follower in self._followers]

        def put() -> None:
            # without a wait between them: no request may see half of a change
            for swap in swaps:
                swap()
            self.base, self.config = base, config

        return put
