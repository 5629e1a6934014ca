"""What fits write beside artifacts: a report, and the policy that lists them. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_report(out: Path, report: Mapping[str, Any], page: str) -> Path:
    """Write NAME.report.json and NAME.report.html beside the artifact `out`; returns the page."""
    # imported here since only the extra `fit` has what it needs
    from guard.reporting.page import write_text

    write_text(out.with_name(f"{out.stem}.report.json"), json.dumps(report, indent=1) + "\n")
    html = out.with_name(f"{out.stem}.report.html")
    write_text(html, page)
    return html


def names_list(names: Sequence[str]) -> str:
    """A list of patterns with these names, found with typing errors, too. Its label, which a
    placeholder shows in place of a name, does not say them."""
    listed = "".join(f"    {json.dumps(name, ensure_ascii=False)},\n" for name in names)
    return f'[[words]]\nlabel = "NAME"\ntypos = true\nwords = [\n{listed}]\n'


def save_names(names: Sequence[str], out: Path) -> Path:
    """Write the list of these names as NAME-names.toml: as a screen it takes out the names that a
    steered answer still says, and finds the prompts that say them in words no gate knows."""
    path = out.with_name(f"{out.stem}-names.toml")
    path.write_text(names_list(names), encoding="utf-8")
    return path


def save_policy(artifacts: Sequence[Path], out: Path, *, instead: str = "") -> Path:
    """Write what a configuration needs to list all of `artifacts` as NAME.toml; where one fires,
    `instead` is the answer, if it is given."""
    lines = []
    for path in artifacts:
        lines += ["[[guards]]", f'name = "{path.stem}"', f'artifact = "{path.name}"', ""]
    listed = ",\n".join(f'    "{path.stem}"' for path in artifacts)
    name = out.stem if re.fullmatch(r"[\w-]+", out.stem, re.ASCII) else json.dumps(out.stem)
    lines += [f"[policies.{name}]", f"guards = [\n{listed},\n]"]
    if instead:
        lines += ['action = "block"', f"message = {json.dumps(instead, ensure_ascii=False)}"]
    lines.append("")
    policy = out.with_suffix(".toml")
    policy.write_text("\n".join(lines), encoding="utf-8")
    return policy
