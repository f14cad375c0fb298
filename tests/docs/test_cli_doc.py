from __future__ import annotations

import re

from tests.docs.commands import commands, options
from tests.docs.pages import sections
from worker.cli.main import COMMANDS


def test_every_command_has_its_section() -> None:
    told = sections("docs/cli.md")

    assert not [name for name in COMMANDS if f"worker {name}" not in told]
    assert not [name for name, _ in commands() if name not in told]


def test_every_option_stands_in_the_section_of_its_command() -> None:
    told = sections("docs/cli.md")

    missing = [
        f"{name} {option}"
        for name, command in commands()
        for option in options(command)
        if f"`{option}" not in told.get(name, "")
    ]

    assert not missing, f"docs/cli.md lacks {missing}"


def test_no_section_tells_an_option_that_is_not() -> None:
    told = sections("docs/cli.md")

    wrong = [
        f"{name} {option}"
        for name, command in commands()
        for option in re.findall(r"^\| .*?\|", told.get(name, ""), re.MULTILINE)
        for option in re.findall(r"`(-[-\w]+)", option)
        if option not in options(command)
    ]

    assert not wrong, f"docs/cli.md tells of {wrong}"


def test_every_section_is_a_command() -> None:
    known = {f"worker {name}" for name in COMMANDS} | {name for name, _ in commands()}
    told = {heading for heading in sections("docs/cli.md") if heading.startswith("worker ")}

    assert told <= known
