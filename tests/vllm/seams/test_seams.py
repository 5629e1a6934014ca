"""Where the plugin meets vLLM: each place as it needs it, in the release that is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.vllm.seams.seam import Seam, problems
from tests.vllm.seams.table import SEAMS

VLLM = find_spec("vllm")


@pytest.mark.skipif(VLLM is None, reason="vLLM has an environment of its own: make test-vllm")
@pytest.mark.parametrize(
    "seam", [seam for seams in SEAMS.values() for seam in seams], ids=lambda seam: seam.title
)
def test_a_seam_is_there(seam: Seam) -> None:
    assert VLLM is not None and VLLM.submodule_search_locations
    found = problems(seam, Path(VLLM.submodule_search_locations[0]))
    assert not found, f"{seam.title}: {'; '.join(found)}. It is needed: {seam.why}"


SOURCE = """
import os
if os.name:
    class Runner(Base):
        field: int
        kind = 1
        def __init__(self, config):
            self.made = self.other.set = 1
        @property
        def shown(self): ...
        def step(self, first, second=None, *, third=0):
            if first:
                x = self.begin(self.inner(first))
            return self.engine.end(x)
LIMIT = 3
"""


@pytest.mark.parametrize(
    ("seam", "named"),
    [
        (Seam("m.py", "Runner", "", has=("field", "kind", "made", "shown", "step")), ""),
        (Seam("m.py", "Runner", "", has=("set",)), "'set'"),
        (Seam("m.py", "", "", has=("LIMIT", "Runner")), ""),
        (Seam("m.py", "", "", has=("limit",)), "'limit'"),
        (Seam("m.py", "Runner.step", "", parameters=("first", "second"), keywords=("third",)), ""),
        (Seam("m.py", "Runner.step", "", parameters=("second",)), "its parameters"),
        (Seam("m.py", "Runner.step", "", parameters=("first", "second", "third")), "parameters"),
        (Seam("m.py", "Runner.step", "", keywords=("fourth",)), "'fourth'"),
        (Seam("m.py", "Runner.step", "", calls=("self.begin", "self.engine.end")), ""),
        (Seam("m.py", "Runner.step", "", calls=("end",)), ""),
        (Seam("m.py", "Runner.step", "", calls=("self.engine.end", "self.begin")), "order"),
        (Seam("m.py", "Runner.gone", ""), "gone"),
        (Seam("m.py", "Other", ""), "gone"),
        (Seam("n.py", "Runner", ""), "the file is gone"),
    ],
)
def test_a_changed_seam_is_named(tmp_path: Path, seam: Seam, named: str) -> None:
    (tmp_path / "m.py").write_text(SOURCE, "utf-8")
    found = "; ".join(problems(seam, tmp_path))
    assert named in found if named else not found
