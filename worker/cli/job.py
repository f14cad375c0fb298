"""`worker job`: where is my job, which jobs are there, cancel, replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import click

from worker.cli.answer import as_json_line, in_words, printable
from worker.cli.door import TEXT, opened
from worker.cli.selection import act, filters, selection_of
from worker.client import Client
from worker.flows.status import NO_KEEPER
from worker.jobs.ids import checked_id
from worker.jobs.job import Job
from worker.jobs.states import State
from worker.ledger.bulk import ENDED_BADLY, OPEN
from worker.ledger.catalogue import read_catalogue
from worker.ledger.status import keeper_leads

#: Jobs held in memory at once: each may have a payload and a result of a megabyte.
_PAGE: Final = 20

JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
JOB_ID: Final = click.argument(
    "job_id", metavar="ID", callback=lambda _context, _parameter, value: checked_id(value)
)
OPTIONAL_ID: Final = click.argument(
    "job_id",
    metavar="[ID]",
    required=False,
    callback=lambda _context, _parameter, value: None if value is None else checked_id(value),
)
_HEADER: Final = "{}  {}  {}  {}  {}"
#: What is cancelled and what is replayed where no state is named.
_WAITING: Final = (State.SCHEDULED, State.QUEUED)
_DEAD: Final = (State.FAILED,)


@click.group()
def job() -> None:
    """Look at jobs, cancel them, replay them.

    Exit codes: 0 ok, 2 no such job or its state forbids this, 3 Postgres is unavailable.
    """


@job.command()
@JOB_ID
@JSON_OPTION
def show(job_id: str, as_json: bool) -> None:
    """Say where a job is, what became of its attempts, and what comes next."""
    with opened() as client:
        found = client.job(job_id)
        if as_json:
            click.echo(as_json_line(found))
            return
        served = found.queue in read_catalogue(client.ledger).queues
        for line in in_words(found, served=served):
            click.echo(line)
        if not (found.state.is_final or keeper_leads(client.ledger)):
            click.echo(NO_KEEPER)


@job.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only these.")
@click.option("--queue", type=TEXT, help="Only those of this queue.")
@click.option("--task", type=TEXT, help="Only those of this task.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--before", metavar="ID", help="Only older ones: the last id of the page before.")
@JSON_OPTION
def list_jobs(limit: int, before: str | None, as_json: bool, **filters: Any) -> None:
    """List jobs in the order of their creation, newest first; times are local."""
    before = None if before is None else checked_id(before)
    filters["state"] = State(filters["state"]) if filters["state"] else None
    left = limit
    with opened() as client:
        while left > 0:
            page = client.jobs(**filters, before=before, limit=min(left, _PAGE))
            if page and left == limit and not as_json:
                click.echo(_HEADER.format(*_columns(page[0])))
            for found in page:
                click.echo(as_json_line(found) if as_json else _line(found))
            if len(page) < min(left, _PAGE):
                return
            left, before = left - len(page), page[-1].id
        if not as_json:
            click.echo(f"More may follow: --before {before}", err=True)


@job.command()
@OPTIONAL_ID
@filters(OPEN, _WAITING)
@click.option("--reason", type=TEXT, default="cancelled by hand", show_default=True)
@JSON_OPTION
def cancel(job_id: str | None, reason: str, as_json: bool, yes: bool, **chosen: Any) -> None:
    """Cancel a job that has not ended, or every one that the filters name; what a running one still
    does is not recorded."""
    selection = selection_of(job_id, _WAITING, **chosen)
    with opened() as client:
        if selection is None:
            assert job_id is not None
            client.cancel(job_id, reason)
            _tell(client, job_id, as_json)
            return

        def do(show: Callable[[int], None]) -> int:
            return client.cancel_many(selection, reason, show)

        act(client, selection, "cancelled", do, yes=yes, as_json=as_json)


@job.command()
@OPTIONAL_ID
@filters(ENDED_BADLY, _DEAD)
@JSON_OPTION
def replay(job_id: str | None, as_json: bool, yes: bool, **chosen: Any) -> None:
    """Queue a failed or cancelled job again, or every one that the filters name; their history is
    kept."""
    selection = selection_of(job_id, _DEAD, **chosen)
    with opened() as client:
        if selection is None:
            assert job_id is not None
            client.replay(job_id)
            _tell(client, job_id, as_json)
            return

        def do(show: Callable[[int], None]) -> int:
            return client.replay_many(selection, show)

        act(client, selection, "replayed", do, yes=yes, as_json=as_json)


def _tell(client: Client, job_id: str, as_json: bool) -> None:
    state = client.job(job_id).state
    if as_json:
        click.echo(json.dumps({"id": job_id, "state": state}))
    else:
        click.echo(printable(f"{job_id}  {state}"))


def _columns(first: Job) -> tuple[str, ...]:
    """The header, as wide as the first line: a page's ids are mostly of one length."""
    zone = f"CREATED ({first.created_at.astimezone():%Z})"
    return ("ID".ljust(len(first.id)), "STATE".ljust(9), zone.ljust(19), "QUEUE", "TASK")


def _line(found: Job) -> str:
    error = f"  {found.error}" if found.error else ""
    zone = len(_columns(found)[2])
    created = f"{found.created_at.astimezone():%Y-%m-%d %H:%M:%S}".ljust(zone)
    line = f"{found.id}  {found.state:<9}  {created}  {found.queue}  {found.task}{error}"
    return printable(line).replace("\n", " ")
