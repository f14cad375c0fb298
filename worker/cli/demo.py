"""`worker demo`: deliver 500 webhooks, kill a worker in their midst, and count what came of it."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from worker.cli.delivery import PATIENCE, Delivery
from worker.cli.verdict import Verdict
from worker.client import Client
from worker.jobs.job import NewJob
from worker.jobs.message import new_job
from worker.settings import Settings
from worker.stack.receiver import Manners, Receiver
from worker.stack.scratch import Scratch
from worker.stack.stack import Stack
from worker.tasks import signing

#: Short, so that a rescue is seen within seconds; 15 is the default.
LEASE_SECONDS: Final = 5
#: Seconds that unfinished jobs are given when the demo stops.
DRAIN_SECONDS: Final = 5
#: What stands for the receiver's base URL in the file.
PLACEHOLDER: Final = "{receiver}"
WEBHOOKS: Final = Path(__file__).parents[2] / "examples" / "webhooks.jsonl"

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The jobs, one JSON object a line.  [default: the checkout's examples/webhooks.jsonl]",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the data here; by default they go to a temporary folder and are removed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill a worker half-way.")
@click.option(
    "--patience",
    metavar="SECONDS",
    type=click.FloatRange(1),
    default=PATIENCE,
    show_default=True,
    help="Wait so long for the last result.",
)
def demo(file: Path | None, data: Path | None, as_json: bool, kill: bool, patience: float) -> None:
    """Deliver 500 webhooks while a worker is killed; exit 0 only if all arrived and none was lost.

    Starts Postgres, Redis, two workers, a keeper and a webhook receiver with bad manners, all on
    127.0.0.1, and leaves nothing behind.
    """
    lines = _read(file or _webhooks())
    console = Console(stderr=as_json, highlight=False)
    with _stopped_like_ctrl_c(), _folder(data) as (folder, marks):
        verdict = _deliver(folder, marks, lines, console, kill=kill, patience=patience)
    _print(verdict, console, as_json=as_json)
    if verdict.faults or verdict.late:
        raise click.exceptions.Exit(1)


def _deliver(
    folder: Path,
    marks: dict[str, str],
    lines: Sequence[str],
    console: Console,
    *,
    kill: bool,
    patience: float,
) -> Verdict:
    """Start everything, run the jobs, stop everything."""
    secret = secrets.token_urlsafe(24)
    environment = {
        **marks,
        "WORKER_HTTP_ALLOW_PRIVATE": "true",
        "WORKER_HTTP_SIGNING_SECRET": secret,
        "WORKER_LEASE_SECONDS": str(LEASE_SECONDS),
        "WORKER_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }

    def verify(signature: str | None, body: bytes) -> bool:
        return signing.verify(secret, signature, body, now=time.time())

    # Half-way the receiver keeps its callers waiting, so that whoever is killed then holds jobs.
    manners = Manners(hold_from=max(1, len(lines) // 2) if kill else None)
    stack = Stack(folder, environment=environment, drain_seconds=DRAIN_SECONDS)
    console.print(f"WORKER_LEASE_SECONDS={LEASE_SECONDS}, for a quick rescue; the default is 15.")
    with _started(stack, console), Receiver(verify, manners) as receiver:
        addresses = stack.environment
        settings = Settings.load(
            database_url=addresses["DATABASE_URL"], redis_url=addresses["REDIS_URL"]
        )
        with closing(Client(settings)) as client:
            jobs = _jobs(lines, receiver.url, settings)
            delivery = Delivery(stack, client, receiver, console, kill=kill, patience=patience)
            return delivery.run(jobs)


def _webhooks() -> Path:
    if not WEBHOOKS.is_file():
        raise click.UsageError(
            "The demo's webhooks come with the checkout, and are not installed:"
            " run it there by `make demo`, or name a file of jobs by --file."
        )
    return WEBHOOKS


def _read(file: Path) -> list[str]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise click.BadParameter("there is no job in it.", param_hint="--file")
    return lines


def _jobs(lines: Sequence[str], receiver: str, settings: Settings) -> list[NewJob]:
    """The jobs of the file, aimed at the receiver.

    Raises:
        click.BadParameter: a line that is no job.
        RequestError: a job that cannot be enqueued.
    """
    jobs = []
    for number, line in enumerate(lines, start=1):
        try:
            job = json.loads(line.replace(PLACEHOLDER, receiver))
            task, args, kwargs = job["task"], job.get("args", []), job.get("kwargs", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f'line {number} is not {{"task": …, "kwargs": {{…}}}}.'
            raise click.BadParameter(message, param_hint="--file") from None
        size = settings.payload_max_bytes
        jobs.append(new_job(task, args, kwargs, queue=settings.queue, max_bytes=size))
    return jobs


def _print(verdict: Verdict, console: Console, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(verdict.as_json()))
        return
    console.print(verdict.as_table())
    for fault in verdict.faults:
        console.print(f"Failed: {fault}", style="red", markup=False, soft_wrap=True)
    if verdict.late:
        console.print(f"Late: {verdict.late}", style="yellow", markup=False, soft_wrap=True)
    elif not verdict.faults:
        console.print(f"All {verdict.accepted} webhooks were delivered; none was lost.")


@contextmanager
def _started(stack: Stack, console: Console) -> Iterator[None]:
    try:
        stack.start(lambda step: console.print(f"{step} …", markup=False))
        yield
    finally:
        # An impatient second Ctrl-C would leave servers behind; the stop is bounded.
        with _ignored(signal.SIGINT, *_ENDING):
            stack.stop(lambda step: console.print(f"{step} …", markup=False))


@contextmanager
def _folder(data: Path | None) -> Iterator[tuple[Path, dict[str, str]]]:
    """Where the data go, and what marks each process that goes with a temporary folder."""
    if data is not None:
        yield data, {}
        return
    with Scratch("celery-ledger-demo-") as made:
        try:
            # A killed worker leaves its temporary files; there they are removed.
            yield made.folders[0], {**made.variables, "TMPDIR": str(made.folders[0])}
        finally:
            with _ignored(signal.SIGINT, *_ENDING):
                made.close()


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for a Ctrl-C: they too must leave nothing behind."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
