"""`worker status`: who is there, what waits, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import click

from worker.cli.answer import printable
from worker.cli.door import opened
from worker.flows.status import LATE_SECONDS, Report
from worker.ledger.status import Queue, Worker

_GAP: Final = "  "


@click.command()
@click.option(
    "--late",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=LATE_SECONDS,
    show_default=True,
    help="A ready job that waits so long is a problem.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(late: float, as_json: bool) -> None:
    """List keepers, workers and queues, and say in words what is wrong.

    Exit codes: 0 all is well, 1 something is wrong, 2 a setting or the schema is wrong, 3 a store
    is unavailable.
    """
    with opened() as client:
        report = client.status(late)
    if as_json:
        click.echo(json.dumps(report.as_dict(), default=_json))
    else:
        for line in _lines(report):
            click.echo(printable(line))
    if report.quarantine is None:
        raise click.exceptions.Exit(3)
    if report.problems:
        raise click.exceptions.Exit(1)


def _lines(report: Report) -> Iterator[str]:
    known = report.status
    yield "Keepers"
    keepers = [(each.holder, _keeper(each.leads, each.alive)) for each in known.keepers]
    yield from _table(("KEEPER", "STATE"), keepers)
    yield "Workers"
    yield from _table(
        ("WORKER", "SLOTS", "RUNNING", "RENEWED", "QUEUES", "STATE"),
        [_worker(each) for each in known.workers],
    )
    yield "Queues"
    yield from _table(
        ("QUEUE", "WAITING", "OLDEST", "SCHEDULED", "CONSUMED"),
        [_queue(each) for each in known.queues],
    )
    if not report.problems:
        yield "All is well."
    for problem in report.problems:
        yield f"✗ {problem.says}"


def _keeper(leads: bool, alive: bool) -> str:
    if not alive:
        return "gone"
    return "leads" if leads else "stands by"


def _worker(one: Worker) -> tuple[str, ...]:
    state = ("isolated" if one.isolated else "ready") if one.alive else "gone"
    renewed = f"{max(0.0, one.silent):.0f} s ago"
    return (one.name, str(one.slots), str(one.running), renewed, ",".join(one.queues), state)


def _queue(one: Queue) -> tuple[str, ...]:
    oldest = f"{one.oldest:.0f} s" if one.waiting else "-"
    return (one.name, str(one.waiting), oldest, str(one.scheduled), "yes" if one.served else "no")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        yield f"{_GAP}none"
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield (_GAP + _GAP.join(cells)).rstrip()


def _json(value: Any) -> Any:
    assert isinstance(value, datetime)
    return value.isoformat()
