"""The `worker` command: finds the subcommand, and turns every expected error into one sentence."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from worker.errors import LedgerError

#: Each subcommand and where it lives: imported only when used, so that `--help` is quick.
COMMANDS = {
    "up": "worker.cli.up:up",
    "demo": "worker.cli.demo:demo",
    "run": "worker.cli.run:run",
    "keeper": "worker.cli.keeper:keeper",
    "flower": "worker.cli.flower:flower",
    "migrate": "worker.cli.migrate:migrate",
    "check": "worker.cli.check:check",
    "status": "worker.cli.status:status",
    "env": "worker.cli.env:env",
    "enqueue": "worker.cli.enqueue:enqueue",
    "job": "worker.cli.job:job",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands, in the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported; `None` when there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="celery-ledger")
def cli() -> None:
    """Celery jobs that cannot be lost: Postgres is the truth, Redis only the doorbell.

    Exit codes: 0 ok, 1 the job failed, 2 bad usage or configuration, 3 a store is unavailable.
    """


def main() -> None:
    """Run the command line; every expected error is one sentence on stderr and an exit code."""
    _end_by_sigterm()
    _prepare()
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except LedgerError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(exc.exit_code)


def _end_by_sigterm() -> None:
    """Hear SIGTERM as process 1 of a container too, which a signal without a handler does not end;
    until a worker, a keeper or Flower puts a handler of its own in this one's place."""

    def end(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, end)


def _prepare() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a job may hold any text
    # `python -m worker` finds task modules in the current directory; so shall `worker`, but after
    # every installed one: a file there must not stand in for a library.
    with suppress(FileNotFoundError):  # the directory was removed
        if not sys.flags.safe_path and not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))
