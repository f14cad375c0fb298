"""The command line as the documentation must tell it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import click

from worker.cli.main import COMMANDS


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that can be imported, with its whole name; groups and what is in them."""
    for name, place in COMMANDS.items():
        module, _, attribute = place.partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as exc:
            if exc.name != module:  # the command is there, something that it needs is not
                raise
            continue
        assert isinstance(command, click.Command)
        yield from with_subcommands(f"worker {name}", command)


def with_subcommands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """The command, and if it is a group each command in it."""
    yield name, command
    if isinstance(command, click.Group):
        for below, subcommand in command.commands.items():
            yield from with_subcommands(f"{name} {below}", subcommand)


def options(command: click.Command) -> list[str]:
    """Every spelling of every option of a command."""
    return [
        spelling
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    ]
