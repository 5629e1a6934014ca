"""Writes docs/vllm-seams.md from the seams as the tests check them; `--check` compares instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.vllm.seams.seam import Seam
from tests.vllm.seams.table import SEAMS

PAGE = Path(__file__).parent / "vllm-seams.md"
_HEAD = """# Seams in vLLM

Every place where [the plugin](vllm.md) meets vLLM, in the releases 0.32 and 0.33. *Patched* is
replaced by the plugin at start, *read* is relied on as it is, *official* is a place that vLLM
documents for plugins. The last column is what is checked in a release's sources, without running
them: `make test-vllm` checks the release that it runs, `make vllm-seams WHEEL=...` any other, and
names each place that has changed. The tests of `make test-vllm` show what is done there.

This page is written by `docs/write_vllm_seams.py`.
"""


def main() -> int:
    """1 where the page on disk is not the one that would be written."""
    page = "\n".join(_lines())
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != page:
            print(f"{PAGE} is stale: run make docs")
            return 1
        return 0
    PAGE.write_text(page, "utf-8")
    return 0


def _lines() -> Iterator[str]:
    yield _HEAD
    for part, seams in SEAMS.items():
        yield f"## {part}"
        yield "| seam | how | why | checked |"
        yield "| --- | --- | --- | --- |"
        for seam in seams:
            yield f"| `{seam.title}` | {seam.how} | {seam.why} | {_checked(seam)} |"
        yield ""


def _checked(seam: Seam) -> str:
    parts = {
        "first parameters": seam.parameters,
        "parameters": seam.keywords,
        "has": seam.has,
        "calls in order": seam.calls,
    }
    told = [
        f"{name} {', '.join(f'`{item}`' for item in items)}"
        for name, items in parts.items()
        if items
    ]
    return "; ".join(told) or "it exists"


if __name__ == "__main__":
    sys.exit(main())
