"""Wait until jobs have ended, and say how."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Final

import click

from worker.cli.answer import as_json_line, printable, result_of
from worker.client import LAST_LOOK, Client
from worker.jobs.states import FINAL, State

#: Ids in one question to the ledger, and jobs held in memory at once.
_IDS: Final = 1000
_JOBS: Final = 20


def wait_for_one(client: Client, job_id: str, seconds: float | None, *, as_json: bool) -> bool:
    """Wait, print the result or what went wrong; whether the job has succeeded."""
    job = client.wait(job_id, seconds)
    succeeded = job.state is State.SUCCEEDED
    if as_json:
        click.echo(as_json_line(job))
    elif succeeded:
        click.echo(printable(json.dumps(result_of(job), indent=2, ensure_ascii=False)))
    if not succeeded:
        still = "" if job.state.is_final else f" still, after {seconds:g} seconds"
        reason = f": {job.error}" if job.error else ""
        click.echo(printable(f"Error: Job {job.id} is {job.state}{still}{reason}."), err=True)
    return succeeded


def wait_for_all(
    client: Client, ids: Sequence[str], seconds: float | None, *, as_json: bool
) -> bool:
    """Wait, print how many ended how (as JSON: every job); whether all have succeeded."""
    deadline = None if seconds is None else time.monotonic() + seconds
    parts = [ids[start : start + _IDS] for start in range(0, len(ids), _IDS)]
    totals = dict.fromkeys(State, 0)
    for part in parts:
        for state, count in _ended(client, part, deadline).items():
            totals[state] += count
        if as_json:
            for line in _lines(client, part):
                click.echo(line)
    words = ", ".join(f"{count} {state}" for state, count in totals.items() if count)
    click.echo(words or "No jobs to wait for.", err=as_json)
    # What is missing was removed by its retention time: it had ended.
    return totals[State.FAILED] == totals[State.CANCELLED] == 0 and _open(totals) == 0


def _ended(client: Client, ids: Sequence[str], deadline: float | None) -> dict[State, int]:
    while True:
        counts = client.counts(ids)
        if not _open(counts) or (deadline is not None and time.monotonic() >= deadline):
            return counts
        time.sleep(LAST_LOOK)


def _open(counts: dict[State, int]) -> int:
    return sum(count for state, count in counts.items() if state not in FINAL)


def _lines(client: Client, ids: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(ids), _JOBS):
        part = ids[start : start + _JOBS]
        found = {job.id: job for job in client.summary(part)}
        yield from (as_json_line(found[job_id]) for job_id in part if job_id in found)
