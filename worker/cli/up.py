"""`worker up`: the whole service on this machine, until it is told to stop."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from worker.cli.env import DATA_OPTION, command
from worker.cli.served import Served
from worker.settings import Settings
from worker.stack.stack import Stack

#: Seconds between two looks at what runs.
_LOOK_SECONDS: Final = 0.5


@click.command()
@DATA_OPTION
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0, 64))
@click.option(
    "-A", "--app", help="Run the workers of this durable Celery app, named as for celery -A."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    help="Postgres's port; Redis has the next one. Default: those of the last start.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def up(data: Path, workers: int, app: str | None, port: int | None, as_json: bool) -> None:
    """Run Postgres, Redis, the workers and the keeper on this machine.

    Needs no installed server: Postgres and Valkey come with the extra `celery-ledger[local]`.
    Ctrl-C drains the workers and stops everything; the jobs stay in the data directory.
    """
    # Faults in WORKER_… variables are told here, not once per service in its log.
    drain_seconds = Settings.load(
        database_url="postgresql://127.0.0.1/ledger", redis_url="redis://127.0.0.1/0"
    ).drain_seconds
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    stack = Stack(
        data,
        workers=workers,
        app=app,
        postgres_port=port,
        redis_port=None if port is None else port + 1,
        drain_seconds=drain_seconds,
    )
    # SIGTERM asks for the same as Ctrl-C, and so does a terminal that is closed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        stack.start(lambda step: console.print(f"[dim]{step} …[/]"))
        _tell(console, stack, app, as_json)
        served = Served(stack, app)
        while True:
            for event in [*stack.tick(), *filter(None, [served.look()])]:
                console.print(event, markup=False)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        console.print("Stopping; a second Ctrl-C does not wait for running jobs.")
    finally:
        stack.stop(lambda step: console.print(f"[dim]{step} …[/]"))


def _tell(console: Console, stack: Stack, app: str | None, as_json: bool) -> None:
    if as_json:
        addresses = {**stack.environment, "data": str(stack.data), "logs": str(stack.logs)}
        click.echo(json.dumps(addresses))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("Postgres", f"127.0.0.1:{stack.postgres.port}/{stack.postgres.database}")
    table.add_row("Redis", f"127.0.0.1:{stack.redis.port}/0")
    table.add_row("Workers", str(len(stack.workers)))
    table.add_row("Logs", str(stack.logs))
    console.print(table)
    console.print("Ready. In another terminal, this points every command at it:")
    console.print(f'  eval "$({command("env", stack.data)})"', markup=False)
    name = app or "shop"
    if app is None:
        console.print("Then, for an app of yours that calls durable(app), such as app in shop.py:")
    console.print(
        f"  celery -A {name} worker     # a worker more; producers need the same variables",
        markup=False,
    )
    console.print("  worker status             # who is there, what waits, what is wrong")
