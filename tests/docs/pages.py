"""The pages that strangers read, and what is in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/methods/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=:\n)|(?<=\.\n)|(?<=\d\n))(?:    .*\n|\n(?=    ))+")
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"(?<!`)\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block of a page; `language` is "" for indented ones and fences without a name."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        """Where it stands, for the names of tests."""
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Block]:
    """All code blocks in these languages, page by page, in order."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def spans(page: Path) -> list[str]:
    """The pieces of code within the prose, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", _text(page)))]


def links(page: Path) -> list[str]:
    """The targets of all links."""
    return _LINK.findall(_FENCE.sub("", _text(page)))


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say behind its #."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", _text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _blocks(page: Path) -> list[Block]:
    text = _text(page)
    found = [(match.start(), match[1], match[2]) for match in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
    found += [(m.start(), "", textwrap.dedent(m[0])) for m in _INDENTED.finditer(rest)]
    return [
        Block(page, text.count("\n", 0, start) + 1, language, code)
        for start, language, code in sorted(found)
    ]
