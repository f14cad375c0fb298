"""Read the documentation: its pages, their sections, their code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code: where it stands, its language, its text."""

    page: str
    language: str
    text: str


def read(name: str) -> str:
    """The text of a page, by its path from the repository's root."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(*languages: str) -> Iterator[Block]:
    """Every block of code in one of `languages`, of every page."""
    for page in PAGES:
        for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                yield Block(str(page.relative_to(ROOT)), language, text)


def sections(name: str) -> dict[str, str]:
    """A page's text by heading, of any level, each up to the next heading."""
    found: dict[str, str] = {}
    heading = ""
    for line in read(name).splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            found[heading] = ""
        else:
            found[heading] = found.get(heading, "") + line + "\n"
    return found


def without_blocks(text: str) -> str:
    """A page's text without its blocks of code."""
    return _FENCE.sub("", text)
