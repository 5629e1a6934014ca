"""Links to files of the repository outside docs/: to pages of the site, or only their names.

A link to a file that does not exist fails the strict build.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "examples/emoji/README.md": "examples/emoji.md",
    "examples/screens/README.md": "examples/screens.md",
}
"""Files outside docs/ that are pages of the site, by their path in the repository."""

_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
logger = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point every relative link at the site's own pages."""
    name = page.file.src_uri
    source = ROOT / _SOURCES.get(name, f"docs/{name}")
    return _LINK.sub(lambda link: _rewritten(link, source, name), markdown)


def _rewritten(link: re.Match[str], source: Path, page: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if ":" in target:
        return link[0]
    path = Path(os.path.normpath(source.parent / target))
    if not path.exists():
        logger.warning("%s links to %s, which does not exist", page, target)
        return link[0]
    inside = path.relative_to(ROOT).as_posix()
    where = PAGES.get(inside) or (inside.removeprefix("docs/") if _is_page(inside) else None)
    if where is None:
        return text if inside in text else f"{text} (`{inside}`)"
    return f"[{text}]({os.path.relpath(where, os.path.dirname(page) or '.')}{anchor})"


def _is_page(inside: str) -> bool:
    return inside.startswith("docs/") and Path(inside).suffix in {".md", ".svg", ".webp"}
