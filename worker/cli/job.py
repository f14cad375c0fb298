"""`worker job`: where is my job, which jobs are there, cancel, replay."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from worker.cli.answer import as_json_line, in_words, printable
from worker.cli.door import TEXT, opened
from worker.client import Client
from worker.jobs.ids import checked_id
from worker.jobs.job import Job
from worker.jobs.states import State
from worker.ledger.catalogue import read_catalogue

#: Jobs held in memory at once: each may have a payload and a result of a megabyte.
_PAGE: Final = 20

JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
JOB_ID: Final = click.argument(
    "job_id", metavar="ID", callback=lambda _context, _parameter, value: checked_id(value)
)


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


@job.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only these.")
@click.option("--queue", type=TEXT, help="Only those of this queue.")
@click.option("--task", type=TEXT, help="Only those of this task.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--before", metavar="ID", help="Only older ones: the last id of the page before.")
@JSON_OPTION
def list_jobs(limit: int, before: str | None, as_json: bool, **filters: Any) -> None:
    """List jobs by falling id, which for ids made here is newest first."""
    before = None if before is None else checked_id(before)
    filters["state"] = State(filters["state"]) if filters["state"] else None
    with opened() as client:
        while limit > 0:
            page = client.jobs(**filters, before=before, limit=min(limit, _PAGE))
            for found in page:
                click.echo(as_json_line(found) if as_json else _line(found))
            if len(page) < _PAGE:
                break
            limit, before = limit - len(page), page[-1].id


@job.command()
@JOB_ID
@click.option("--reason", type=TEXT, default="cancelled by hand", show_default=True)
@JSON_OPTION
def cancel(job_id: str, reason: str, as_json: bool) -> None:
    """Cancel a job that has not ended; what a running one still does is not recorded."""
    with opened() as client:
        client.cancel(job_id, reason)
        _tell(client, job_id, as_json)


@job.command()
@JOB_ID
@JSON_OPTION
def replay(job_id: str, as_json: bool) -> None:
    """Queue a failed or cancelled job again; its history is kept."""
    with opened() as client:
        client.replay(job_id)
        _tell(client, job_id, as_json)


def _tell(client: Client, job_id: str, as_json: bool) -> None:
    state = client.job(job_id).state
    if as_json:
        click.echo(json.dumps({"id": job_id, "state": state}))
    else:
        click.echo(printable(f"{job_id}  {state}"))


def _line(found: Job) -> str:
    error = f"  {found.error}" if found.error else ""
    created = f"{found.created_at.astimezone():%Y-%m-%d %H:%M:%S}"
    line = f"{found.id}  {found.state:<9}  {created}  {found.queue}  {found.task}{error}"
    return printable(line).replace("\n", " ")
