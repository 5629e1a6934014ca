"""`python -m tests.conformance.generated`: requests from the OpenAPI document to `guard serve`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.conformance.generated.run import play
from tests.conformance.generated.served import tiny_server


def main() -> int:
    """0: every answer is as the document says; 1: some are not."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.generated")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--route", default="", help="only routes with this in their id")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tiny_server(Path(folder)) as url:
        outcome = play(url, chosen.requests, number=chosen.seed, only=chosen.route)
        logged = (Path(folder) / "server.log").read_text()
    print(*outcome.lines(), sep="\n")
    if "Traceback" in logged:
        print(logged[-4000:])
    print(
        f"{outcome.requests} requests in {time.monotonic() - begun:.0f} s: "
        f"{len(outcome.faults)} kinds of faults"
    )
    return 1 if outcome.faults or "Traceback" in logged else 0


if __name__ == "__main__":
    sys.exit(main())
