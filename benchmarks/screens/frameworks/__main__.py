"""What agent frameworks send, and on how much of it the shipped screens fire.

    python -m benchmarks.screens.frameworks --python PYTHON [--node NODE] [--sent FILE]
        [--texts FILE] [--json]

PYTHON is that of an environment with `drivers/requirements.txt`, NODE a folder with
`drivers/package.json` in which `npm install` has run. Eight frameworks (the seven of
`capture.FRAMEWORKS`, and Vercel's AI SDK where NODE is given) run their scenarios against an
upstream on this machine that plays scripts: chats, tools over several rounds with their errors,
structured output with retries, hand-offs, retrieval, memories. The bodies go through the server's
own reading, under a policy that reads all places, and one that reads those that each screen is for.
A row counts different texts as the screens read them, and the beginnings of those on which a screen
fires follow. `--sent` keeps what was sent: where it is there already, no framework is run.
`--texts` keeps the texts that each screen reads in its places, by framework, for
`examples.screens.data`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.screens.frameworks.capture import read_sent, requests
from benchmarks.screens.frameworks.reading import POLICIES, Read, plans_of, read
from benchmarks.screens.frameworks.upstream import Sent
from benchmarks.screens.shipped import FITTED
from guard.plans.screens import TextPlans
from server.screening.texts.screener import Screener

_BEGINNING: Final = 160
"""Characters of a text that fires."""
Results = Mapping[str, Mapping[str, Read]]
"""By policy and framework."""


def main() -> None:
    """Run the frameworks and the screens, and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="a Python that has the frameworks")
    parser.add_argument("--node", type=Path, help="a folder with the AI SDK's packages")
    parser.add_argument("--sent", type=Path, help="keeps what was sent, as JSON")
    parser.add_argument("--texts", type=Path, help="gets what each screen has read, as JSON")
    parser.add_argument("--fitted", type=Path, default=FITTED)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.sent is not None and given.sent.exists():
        sent = read_sent(given.sent)
    elif given.python is not None:
        sent = requests(given.python, given.node)
    else:
        parser.error("--python is needed, or a file that --sent has kept")
    if given.sent is not None:
        kept = {name: [asdict(each) for each in rows] for name, rows in sent.items()}
        given.sent.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    results = asyncio.run(_read_all(plans_of(given.fitted), sent))
    if given.texts is not None:
        texts = texts_of(results["as_fitted"])
        given.texts.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    if given.json:
        print(json.dumps(_figures(results, sent), indent=2, ensure_ascii=False))
    else:
        _print(results, sent)


async def _read_all(plans: TextPlans, sent: Mapping[str, list[Sent]]) -> Results:
    screener = Screener(plans.cascade)
    results = {
        policy: {name: await read(rows, plans[policy], screener) for name, rows in sent.items()}
        for policy in POLICIES
    }
    screener.close()
    return results


def _together(by_framework: Mapping[str, Read]) -> Read:
    """Different texts of all frameworks."""
    together = Read()
    for each in by_framework.values():
        for screen, texts in each.texts.items():
            together.texts.setdefault(screen, {}).update(texts)
    return together


def texts_of(by_framework: Mapping[str, Read]) -> dict[str, dict[str, list[str]]]:
    """The texts that were read, by screen and framework."""
    return {
        screen: {name: list(each.texts.get(screen, {})) for name, each in by_framework.items()}
        for screen in sorted(_together(by_framework).texts)
    }


def _figures(results: Results, sent: Mapping[str, list[Sent]]) -> dict[str, Any]:
    return {
        "requests": {name: len(rows) for name, rows in sent.items()},
        "screens": {
            policy: {
                screen: {
                    name: {"texts": len(each.texts.get(screen, {})), "fired": each.fired(screen)}
                    for name, each in [*by_framework.items(), ("all", _together(by_framework))]
                }
                for screen in sorted(_together(by_framework).texts)
            }
            for policy, by_framework in results.items()
        },
    }


def _print(results: Results, sent: Mapping[str, list[Sent]]) -> None:
    console = Console()
    table = Table("screen", "reads", "all", *sent)
    fired: list[tuple[str, str, str, str]] = []
    for screen in sorted(_together(results["everywhere"]).texts):
        for policy, by_framework in results.items():
            columns = [_together(by_framework), *by_framework.values()]
            table.add_row(screen, policy, *(_share(each, screen) for each in columns))
            fired += [
                (screen, policy, name, text)
                for name, each in by_framework.items()
                for text in each.fired(screen)
            ]
    table.add_row(
        "", "requests", *map(str, [sum(map(len, sent.values())), *map(len, sent.values())])
    )
    console.print(table)
    for screen, policy, name, text in fired:
        beginning = " ".join(text[: 4 * _BEGINNING].split())[:_BEGINNING]
        console.print(f"{screen}, {policy}, {name}: {escape(beginning)}")


def _share(each: Read, screen: str) -> str:
    return f"{len(each.fired(screen))}/{len(each.texts.get(screen, {}))}"


if __name__ == "__main__":
    main()
