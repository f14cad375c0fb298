from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import PAGES, ROOT, without_blocks

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def relative_links() -> Iterator[tuple[Path, str]]:
    """Each link of each page that leads to a file or a heading of this repository."""
    for page in PAGES:
        for target in _LINK.findall(without_blocks(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page, target in relative_links():
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{page.relative_to(ROOT)}: {target}")

    assert not broken


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    links: dict[Path, set[Path]] = {page: set() for page in PAGES}
    for page, target in relative_links():
        links[page].add((page.parent / target.partition("#")[0]).resolve())
    reached, ahead = set[Path](), {ROOT / "README.md"}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead |= links.get(page, set()) - reached

    assert not [page for page in PAGES if page not in reached]


def test_no_page_holds_a_path_of_one_machine() -> None:
    private = re.compile(r"(?<![\w.~])/(?:home|work|tmp|root)/")

    assert not [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
