"""The page on Celery's commands and settings has a row for each that Celery and Flower know."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from celery.app.control import Control, Inspect
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery
from celery.worker.control import Panel
from flower.urls import handlers

from tests.docs.pages import read, sections

PAGE = "docs/celery.md"

#: What no page needs to explain: files that Flower serves, and its answer to anything else.
NO_ENDPOINTS = {r"/static/(.*)", r".*"}
#: Attributes of Celery's classes that are no commands.
NO_COMMANDS = {"Mailbox", "app"}


def rows(heading: str) -> list[str]:
    """The first cell of each row of a section's table, without its back quotes."""
    found = re.findall(r"^\| `([^`]*)`[^|]*\|", sections(PAGE)[heading], re.MULTILINE)
    assert len(found) == len(set(found)), found
    return found


def subcommands(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for below, sub in command.commands.items():
            yield from subcommands(f"{name} {below}".strip(), sub)
    else:
        yield name


def test_every_celery_command_has_its_row() -> None:
    assert set(rows("`celery -A app …`")) == set(subcommands("", celery))


def test_every_remote_command_has_its_row() -> None:
    assert set(rows("Remote commands")) == set(Panel.meta)


@pytest.mark.parametrize("cls", [Control, Inspect])
def test_every_method_of_control_is_told(cls: type) -> None:
    told = set(re.findall(r"`(\w+)(?:\(\))?`", sections(PAGE)["Remote commands"]))

    assert {name for name in vars(cls) if name[0] != "_"} - NO_COMMANDS <= told


def test_every_endpoint_of_flower_has_its_row() -> None:
    paths = {handler[0] if isinstance(handler, tuple) else _path(handler) for handler in handlers}

    assert set(rows("Flower")) == paths - NO_ENDPOINTS


def _path(handler: object) -> str:
    pattern: str = handler.regex.pattern  # type: ignore[attr-defined] # tornado's URLSpec
    return pattern.removesuffix("$")


def test_every_setting_is_told_once() -> None:
    text = read(PAGE).partition("\n## Settings\n")[2]
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    told = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]

    assert len(told) == len(set(told))
    assert set(told) == {str(each[0]) for each in flatten(NAMESPACES)}
