"""`worker enqueue`: one job from the command line, or many from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from worker.cli.answer import printable
from worker.cli.door import TEXT, opened
from worker.cli.intake import Intake, Tally
from worker.cli.lines import SLACK, Line, batches, parsed
from worker.cli.source import progress, source
from worker.cli.waiting import wait_for_all, wait_for_one
from worker.client import Client
from worker.errors import InvalidRequest, LedgerError
from worker.jobs.job import Enqueued

#: Options that only make sense for a single job.
_SINGLE: Final = ("args", "kwargs", "key", "id")
#: Characters of a reason that are shown: it may quote what was sent.
_REASON: Final = 500


@click.command()
@click.argument("task", required=False, type=TEXT)
@click.option("--args", type=TEXT, metavar="JSON", help="Positional arguments: a list.")
@click.option("--kwargs", type=TEXT, metavar="JSON", help="Keyword arguments: an object.")
@click.option("--queue", type=TEXT, help="Its queue; default WORKER_QUEUE.")
@click.option("--priority", type=click.IntRange(0, 9), help="From 0 (first, the default) to 9.")
@click.option("--in", type=float, metavar="SECONDS", help="Run it so much later.")
@click.option("--expires", type=float, metavar="SECONDS", help="Do not start it after so long.")
@click.option("--key", type=TEXT, help="Idempotency key: a repeat is answered with the same job.")
@click.option("--id", type=TEXT, help="The job's id; default a new one.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="JSONL|-",
    help="Many jobs, a JSON object a line: task, args, kwargs, queue, priority, in, expires, key,"
    " id. What a line lacks, TASK and the options give. - is stdin.",
)
@click.option("--atomic", is_flag=True, help="With --file: all lines or none.")
@click.option("--wait", is_flag=True, help="Wait for the end, and print the result.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait at most so.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each job.")
def enqueue(
    file: str | None,
    atomic: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Enqueue TASK, durable when this returns; or a job for each line of a file.

    Without --atomic the good lines of a file are enqueued, the others are named.

    Exit codes: 0 enqueued (with --wait: succeeded), 1 a job failed, was cancelled or has not ended
    in time, 2 something was refused, 3 Postgres is unavailable. Redis may be away: the job is
    durable, and starts when Redis is back.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_nonsense(file, given, atomic=atomic, timed=timeout is not None, wait=wait)
    for name in ("args", "kwargs"):
        if name in given:
            given[name] = parsed(given[name], f"--{name}")
    with opened() as client:
        if file is None:
            job_id = _enqueue_one(client, given, as_json=as_json, wait=wait)
            succeeded = not wait or wait_for_one(client, job_id, timeout, as_json=as_json)
            refused = ""
        else:
            tally = _enqueue_file(client, file, given, atomic=atomic, as_json=as_json, wait=wait)
            succeeded = not wait or wait_for_all(client, tally.ids, timeout, as_json=as_json)
            refused = f"{tally.refused} of {tally.lines} lines refused" if tally.refused else ""
    if refused:
        raise InvalidRequest(f"{refused}; the others are enqueued.")
    if not succeeded:
        raise click.exceptions.Exit(1)


def _refuse_nonsense(
    file: str | None, given: Mapping[str, Any], *, atomic: bool, timed: bool, wait: bool
) -> None:
    if timed and not wait:
        raise click.UsageError("--timeout needs --wait.")
    if file is None:
        if "task" not in given:
            raise click.UsageError("Name a TASK, or a --file of jobs.")
        if atomic:
            raise click.UsageError("--atomic needs --file; a single job is atomic by nature.")
    elif wrong := [name for name in _SINGLE if name in given]:
        raise click.UsageError(f"--{wrong[0]} is for a single job; write it into the lines.")


def _enqueue_one(client: Client, given: Mapping[str, Any], *, as_json: bool, wait: bool) -> str:
    answer = client.enqueue(
        given["task"],
        given.get("args", ()),
        given.get("kwargs"),
        queue=given.get("queue"),
        priority=given.get("priority", 0),
        delay=given.get("in"),
        expires=given.get("expires"),
        key=given.get("key"),
        job_id=given.get("id"),
    )
    word = "scheduled" if given.get("in") else "queued"
    # With --wait stdout is for the end alone; the id is told at once, whatever becomes of the wait.
    if as_json and not wait:
        click.echo(json.dumps({"id": answer.id, "created": answer.created}))
    else:
        line = f"{answer.id}  {word if answer.created else 'known already'}"
        click.echo(printable(line), err=wait)
    return answer.id


def _enqueue_file(
    client: Client,
    file: str,
    defaults: Mapping[str, Any],
    *,
    atomic: bool,
    as_json: bool,
    wait: bool,
) -> Tally:
    limit = client.settings.payload_max_bytes + SLACK
    tell = _tell_json if as_json and not wait else _tell_people
    intake = Intake(client, defaults, tell, keep_ids=wait)
    with (
        source(file, rewindable=atomic) as descriptor,
        progress(descriptor, wanted=not as_json) as seen,
    ):
        if atomic:

            def from_the_start() -> Iterable[Sequence[Line]]:
                os.lseek(descriptor, 0, os.SEEK_SET)
                return batches(descriptor, limit, seen)

            intake.take_all_or_none(from_the_start)
        else:
            intake.take(batches(descriptor, limit, seen))
    click.echo(intake.tally.words, err=as_json or wait)
    return intake.tally


def _tell_people(number: int, answer: Enqueued | LedgerError) -> None:
    if isinstance(answer, LedgerError):
        click.echo(printable(f"Line {number}: {_reason(answer)}"), err=True)


def _tell_json(number: int, answer: Enqueued | LedgerError) -> None:
    if isinstance(answer, LedgerError):
        error = {"type": type(answer).__name__, "message": _reason(answer)}
        click.echo(json.dumps({"line": number, "error": error}))
    else:
        click.echo(json.dumps({"line": number, "id": answer.id, "created": answer.created}))


def _reason(error: LedgerError) -> str:
    text = str(error)
    return text if len(text) <= _REASON else f"{text[:_REASON]} …"
