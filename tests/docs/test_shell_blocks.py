from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from tests.docs.commands import commands, options
from tests.docs.pages import PAGES, ROOT, blocks, read
from worker.cli.main import COMMANDS

_WORKER = re.compile(r"(?:^|[;&|(]\s*|\$\s+)(worker [^;&|)]*)")


def told_commands() -> Iterator[tuple[str, str]]:
    """Each `worker …` command of each block of shell, with its page."""
    for block in blocks("console", "sh", "bash", "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for command in _WORKER.findall(line.partition(" #")[0]):
                yield block.page, command.strip().strip('"')


TOLD = list(told_commands())


def test_the_pages_tell_commands() -> None:
    assert len(TOLD) > 10


@pytest.mark.parametrize(("page", "told"), TOLD)
def test_a_told_command_can_be_typed(page: str, told: str) -> None:
    known = dict(commands())
    words = shlex.split(told)
    name = " ".join(words[:2])
    assert words[1].startswith("-") or words[1] in COMMANDS, f"{page}: there is no {name!r}"
    if isinstance(known.get(name), click.Group):
        name = " ".join(words[:3])
    if name in known:
        missing = [
            word for word in words if re.match(r"--?[a-z]", word)
            and word.partition("=")[0] not in options(known[name])
        ]  # fmt: skip
        assert not missing, f"{page}: {name} has no {missing}"


def test_a_told_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    told = {
        word
        for page in PAGES
        for word in re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#)", page.read_text(encoding="utf-8"))
    }

    assert told <= targets, f"{sorted(told - targets)} in {ROOT.name}'s pages"
