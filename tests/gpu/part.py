"""One part in this process: `python -m tests.gpu.part NAME settings.json figures.jsonl`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from tests.gpu.parts import PARTS
from tests.gpu.report import Figure
from tests.gpu.running import ENDED, WHY
from tests.gpu.settings import Settings, Skipped


def main() -> None:
    """Run it; each figure is a line of the file at once."""
    name, asked, path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    since = time.monotonic()
    with path.open("a", encoding="utf-8") as file:

        def add(figure: Figure) -> None:
            nonlocal since
            now = time.monotonic()
            timed = replace(figure, seconds=round(now - since, 2))
            since = now
            file.write(json.dumps(asdict(timed)) + "\n")
            file.flush()

        try:
            PARTS[name].run(Settings.load(asked), add)
        except Skipped as skipped:
            file.write(json.dumps({WHY: str(skipped)}) + "\n")
            return
        file.write(json.dumps({ENDED: True}) + "\n")


if __name__ == "__main__":
    main()
