"""What the shipped screens read of requests, and where they fire: the product's own way through."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from benchmarks.screens.frameworks.upstream import Sent
from benchmarks.screens.shipped import FITTED
from guard.config.policy_schema import PLACES
from guard.config.schema import Config, load_config
from guard.plans.screens import TextPlan, TextPlans, TextScreen
from server.screening.findings import Findings, ScreenedText
from server.screening.images.screener import ImageReading, WantedImage
from server.screening.request import RequestScreening
from server.screening.routes import route_of
from server.screening.texts.screener import Screener
from server.wire.strict_json import parse_object

POLICIES: Final = ("everywhere", "as_fitted")
"""All places are read, or those that a screen is for."""


@dataclass
class Read:
    """The texts that each screen has read, by its name, and whether it fired on them."""

    texts: dict[str, dict[str, bool]] = field(default_factory=dict)

    def fired(self, screen: str) -> list[str]:
        return [text for text, fired in self.texts.get(screen, {}).items() if fired]


class _Reader:
    """Runs the screens, and notes what they read."""

    def __init__(self, screener: Screener) -> None:
        self._screener = screener
        self.read_texts = Read()

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        results = await self._screener.read(texts, screens, tail)
        for text, row in zip(texts, results, strict=True):
            for each in row:
                self.read_texts.texts.setdefault(each.screen.name, {})[text] = each.fired
        return results

    async def read_images(self, images: Sequence[WantedImage]) -> Sequence[ImageReading]:
        return self._has_none()

    def _has_none(self) -> NoReturn:
        raise AssertionError("no scenario sends images")


def plans_of(folder: Path = FITTED) -> TextPlans:
    """All screens of a folder, under both policies."""
    return TextPlans(_config(folder))


async def read(sent: Sequence[Sent], plan: TextPlan, screener: Screener) -> Read:
    """What the screens of a policy read of these requests. Raises what a server would refuse them
    with."""
    reader = _Reader(screener)
    for each in sent:
        route, _ = route_of("POST", each.path)
        assert route is not None, each.path
        raw = each.body.encode()
        body = parse_object(raw)
        screening = RequestScreening(plan, body, route.default_place, Findings(plan), size=len(raw))
        await screening.run(reader)
    return reader.read_texts


def _config(folder: Path) -> Config:
    guards = sorted(folder.glob("*.safetensors"))
    names = [path.stem for path in guards]
    lines = [
        f'[[guards]]\nname = "{path.stem}"\nartifact = "{path.absolute()}"\n' for path in guards
    ]
    for policy in POLICIES:
        lines.append(f'[policies.{policy}]\nguards = {names}\naction = "observe"\n')
    lines.append(f"[policies.everywhere.screen]\nlook = {list(PLACES)}\n")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return load_config(path)
