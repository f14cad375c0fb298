"""The demo's run: enqueue every webhook, kill a worker half-way, wait for the last result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker.cli.verdict import Verdict, judge
from worker.client import Client
from worker.errors import Unavailable
from worker.jobs.job import Enqueued, NewJob
from worker.jobs.states import FINAL, State
from worker.ledger.catalogue import read_catalogue
from worker.stack.receiver import Receiver
from worker.stack.stack import Stack

#: Seconds until every webhook should be final: then the demo ends, and says what waits still.
PATIENCE: Final = 180.0
POLL_SECONDS: Final = 0.2

Counts = Mapping[State, int]
Show = Callable[[Counts], None]


class Delivery:
    """One run of the demo, on a stack that is up.

    Args:
        stack: whose workers run the jobs; its supervisor is this run's to tick.
        client: enqueues and reads back.
        receiver: what the jobs deliver to; it holds its callers half-way when `kill`.
        console: where progress goes.
        kill: whether a worker is killed half-way.
        patience: seconds until every webhook should be final.
    """

    def __init__(
        self,
        stack: Stack,
        client: Client,
        receiver: Receiver,
        console: Console,
        *,
        kill: bool,
        patience: float = PATIENCE,
    ) -> None:
        self._stack = stack
        self._client = client
        self._receiver = receiver
        self._console = console
        self._kill = kill
        self._patience = patience

    def run(self, jobs: Sequence[NewJob]) -> Verdict:
        """Enqueue, kill half-way, wait for the rest, judge."""
        self._wait_for_a_worker()
        started = time.monotonic()
        answers = self._client.enqueue_many(jobs, atomic=True)
        ids = [answer.id for answer in answers if isinstance(answer, Enqueued)]
        killed = None
        with _progress(self._console, len(ids)) as show:
            if self._kill:
                self._wait(ids, len(ids) // 2, started, show)
                killed = self._kill_one(ids)
            self._receiver.release()
            self._wait(ids, len(ids), started, show)
        elapsed = time.monotonic() - started
        rows, seen = self._client.summary(ids), self._receiver.deliveries()
        return judge(ids, rows, seen, elapsed=elapsed, killed=killed, kill=self._kill)

    def _wait_for_a_worker(self) -> None:
        # Or the first results would tell how long a worker takes to start.
        started = time.monotonic()
        self._console.print("Waiting for a worker …")
        while time.monotonic() - started < PATIENCE:
            self._tick()
            if read_catalogue(self._client.ledger).tasks:
                return
            time.sleep(POLL_SECONDS)

    def _tick(self) -> None:
        for happened in self._stack.tick():
            self._console.print(happened, markup=False)

    def _wait(self, ids: Sequence[str], wanted: int, started: float, show: Show) -> None:
        """Until so many are final, or the patience is over: the verdict then names what lacks."""
        while time.monotonic() - started < self._patience:
            self._tick()
            with suppress(Unavailable):  # a store may be starting again
                counts = self._client.counts(ids)
                show(counts)
                if _final(counts) >= wanted:
                    return
            time.sleep(POLL_SECONDS)

    def _kill_one(self, ids: Sequence[str]) -> tuple[str, int] | None:
        """SIGKILL a worker that runs jobs; its name, and how many it surely took with it.

        What it held is read after its death, from when on it can finish nothing: a job that it
        finished between a look and the kill does not count.
        """
        killed = None
        for service in self._stack.workers:
            if not self._held_by(service.name, ids):
                continue
            service.kill()
            killed = service.name, self._held_by(service.name, ids)
            self._console.print("Killed {} while it held {} jobs.".format(*killed))
            if killed[1]:
                break
        return killed

    def _held_by(self, name: str, ids: Sequence[str]) -> int:
        # A Celery worker is named worker1@host, after its service.
        return sum(
            job.state is State.RUNNING and (job.worker or "").startswith(f"{name}@")
            for job in self._client.summary(ids)
        )


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Show]:
    if not console.is_terminal:
        yield _quarters(console, total)
        return
    columns = (
        TextColumn("Delivering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=total)
        yield lambda counts: progress.update(
            bar, completed=_final(counts), description=_words(counts)
        )


def _quarters(console: Console, total: int) -> Show:
    """Without a terminal: a line when another quarter is final, not five a second."""
    shown = -1

    def show(counts: Counts) -> None:
        nonlocal shown
        quarter = 4 * _final(counts) // max(1, total)
        if quarter > shown:
            shown = quarter
            console.print(f"{_final(counts)} of {total} are final: {_words(counts)}")

    return show


def _final(counts: Counts) -> int:
    return sum(counts.get(state, 0) for state in FINAL)


def _words(counts: Counts) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in State if counts.get(state))
