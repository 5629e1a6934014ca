"""Modules that are not there are stood in for, and only while it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.disguises.others import of_garak, of_pyrit

GARAK = """
import garak.probes
from garak import _config

class InjectBase64(garak.probes.Probe):
    def written(text: bytes) -> bytes:
        return text[::-1]
    encoding_funcs = [written]
"""
PYRIT = """
from pyrit.converter.converter import Converter, ConverterResult
from pyrit.models import PromptDataType

class FlipConverter(Converter):
    async def convert_async(self, *, prompt: str, input_type: PromptDataType = "text"):
        return ConverterResult(output_text=prompt[::-1], output_type="text")
"""


def test_their_own_code_is_run_without_what_it_imports(tmp_path: Path) -> None:
    probes, converters = tmp_path / "garak" / "probes", tmp_path / "pyrit" / "converter"
    probes.mkdir(parents=True)
    converters.mkdir(parents=True)
    (probes / "encoding.py").write_text(GARAK)
    (converters / "flip_converter.py").write_text(PYRIT)
    assert {name: hide("say") for name, hide in of_garak(tmp_path).items()} == {
        "garak Base64": "yas"
    }
    assert {name: hide("say") for name, hide in of_pyrit(tmp_path).items()} == {"PyRIT flip": "yas"}
    assert not [name for name in sys.modules if name.partition(".")[0] in {"garak", "pyrit"}]
