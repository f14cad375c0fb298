"""`worker env`: the addresses of the stack that `worker up` runs, for a shell to evaluate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from worker.errors import Unavailable
from worker.stack.stack import running

#: Where `worker up` keeps everything, unless told otherwise.
DEFAULT_DATA: Final = "~/.local/share/celery-ledger"

DATA_OPTION: Final = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    callback=lambda _context, _parameter, value: value.expanduser().absolute(),
    help="The stack's data directory.",
)


@click.command()
@DATA_OPTION
def env(data: Path) -> None:
    """Print `export` lines for the stack that runs here: eval "$(worker env)".

    Exit code 3 when none is running.
    """
    addresses = running(data)
    if addresses is None:
        raise Unavailable(f"No stack is running in {data}; start one with `{command('up', data)}`.")
    for name, address in addresses.items():
        click.echo(f"export {name}={shlex.quote(address)}")


def command(name: str, data: Path) -> str:
    """The command line of `worker NAME` for this data directory, as a shell takes it."""
    if data == Path(DEFAULT_DATA).expanduser():
        return f"worker {name}"
    return f"worker {name} --data {shlex.quote(str(data))}"
