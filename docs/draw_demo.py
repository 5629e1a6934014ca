"""Draw docs/demo.svg: `guard demo --json | python docs/draw_demo.py`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from guard.commands.demo.questions import side_by_side

console = Console(record=True, width=118, file=sys.stderr)
console.print(side_by_side(json.load(sys.stdin)))
drawn = console.export_svg(title="make demo")
# an image must not load fonts from elsewhere
drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
Path(__file__).with_name("demo.svg").write_text(drawn, encoding="utf-8")
