"""The method on the page is the one that the tests serve, attach, evaluate and check."""

from __future__ import annotations

import re
from pathlib import Path

from tests.strangers import directional_ablation

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_page_shows_the_file_that_is_tested() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block == Path(directional_ablation.__file__).read_text("utf-8")


def test_it_is_executed_as_it_stands() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    assert vars(names["METHOD"])["seam"] == "hidden"
    code = [line for line in block.splitlines() if line.strip() and '"""' not in line]
    assert len(code) <= 40
