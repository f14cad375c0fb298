"""Overload: a machine without CPU to spare, and a worker of many threads.

`python -m tests.chaos.overload --minutes 2` starts a stack of its own, burns every core with so
many processes that the load average passes 50, and feeds a worker of 200 threads for so long. It
ends with 0 if no job is lost, all have ended, and attempts per job are below 1.2. With `--stops` it
burns nothing: it lets the worker run for a small part of the time only, which leaves the machine to
others, and is harder on the worker.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.processes import Processes
from worker.client import Client
from worker.jobs.job import Enqueued
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger.migrate import migrate
from worker.settings import Settings

#: What an overload is, and what must hold in it.
LOAD, ATTEMPTS_PER_JOB = 50.0, 1.2
#: Processes that burn: the load average comes near to their number only in minutes.
BURNERS = 120
#: Longest time, in seconds, until the load average has passed `LOAD`.
RISING = 150.0
SLOTS = 200
#: Jobs that wait at the most: the worker shall never be idle, and end soon after the load.
BACKLOG = 600
#: Seconds after the load in which everything must have ended.
AFTERWARDS = 120.0
TASK = "test.add"
#: `--stops`: seconds that the worker runs and stands still in turn, and its lease.
RUNS, STANDS, SHORT_LEASE = 0.01, 0.3, "2"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        load: the highest load average of one minute.
        jobs: how many were accepted.
        ended: of them succeeded.
        lost: of them that the ledger does not know any more, or that failed.
        attempts: those of all jobs.
        during: jobs that ended while the machine was overloaded.
        wasted: attempts that did not simply succeed, by how they ended.
    """

    load: float
    jobs: int
    ended: int
    lost: int
    attempts: int
    during: int
    wasted: dict[str, int]

    @property
    def attempts_per_job(self) -> float:
        """1.0 is none wasted."""
        return self.attempts / max(1, self.jobs)

    @property
    def is_well(self) -> bool:
        """Whether everything that must hold does."""
        return (
            self.lost == 0
            and self.ended == self.jobs > 0
            and self.attempts_per_job < ATTEMPTS_PER_JOB
        )

    def __str__(self) -> str:
        return (
            f"load average {self.load:.0f}; {self.jobs} jobs, {self.during} ended in the overload;"
            f" attempts per job {self.attempts_per_job:.3f} (wasted: {self.wasted or 'none'}),"
            f" lost {self.lost}, unfinished {self.jobs - self.ended - self.lost}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run and print; the exit code."""
    parser = argparse.ArgumentParser(prog="tests.chaos.overload", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the worker is fed")
    parser.add_argument("--stops", action="store_true", help="stop the worker, burn nothing")
    parser.add_argument("--pool", choices=("threads", "prefork"), default="threads")
    parser.add_argument("--slots", type=int, default=SLOTS)
    options = parser.parse_args(argv)
    outcome = run(options.minutes * 60, options.pool, options.slots, stops=options.stops)
    print(outcome)
    return 0 if outcome.is_well and (options.stops or outcome.load > LOAD) else 1


def run(seconds: float, pool: str, slots: int, *, stops: bool = False) -> Outcome:
    """Overload this machine for so long, on a stack of the run's own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        postgres = stack.enter_context(servers.postgres())
        redis = stack.enter_context(servers.redis_server())
        settings = Settings.load(database_url=postgres.url, redis_url=redis.url)
        migrate(settings.database_url.get_secret_value())
        client = stack.enter_context(Client(settings))
        environment = {
            **os.environ,
            "DATABASE_URL": postgres.url,
            "REDIS_URL": redis.url,
            "WORKER_TASKS": "tests.acceptance.jobs",
            **({"WORKER_LEASE_SECONDS": SHORT_LEASE} if stops else {}),
        }
        processes = Processes(folder, environment)
        stack.callback(processes.kill_all)
        program = [sys.executable, "-m", "worker"]
        worker = processes([*program, "run", "-P", pool, "-c", str(slots)])
        processes([*program, "keeper"])
        worker.wait_for_line("ready.", 120)
        ids: list[str] = []
        with stopping(worker.pid) if stops else burning(BURNERS):
            load, during = _overload(client, ids, seconds, 0.0 if stops else LOAD)
        _await_ends(client, len(ids))
        if worker.exit_code is not None:
            print(f"The worker ended with {worker.exit_code}:\n{worker.output[-2000:]}")
        return _outcome(client, ids, load, during)


@contextmanager
def burning(count: int) -> Iterator[None]:
    """So many processes that do nothing but burn CPU, in one group that ends with the block."""
    fork = multiprocessing.get_context("fork")
    burners = [fork.Process(target=_burn, daemon=True) for _ in range(count)]
    try:
        for burner in burners:
            burner.start()
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.join()


@contextmanager
def stopping(pid: int) -> Iterator[None]:
    """The process stands still most of the time, as one does that gets no CPU."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STANDS)
            os.kill(pid, signal.SIGCONT)
            time.sleep(RUNS)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _burn() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()  # Linux shares the CPU out among sessions first: one for all would burn one share
    parent = os.getppid()
    while os.getppid() == parent:  # whoever is killed leaves nobody behind who burns for ever
        for _ in range(100_000):
            pass


def _overload(client: Client, ids: list[str], seconds: float, least: float) -> tuple[float, int]:
    """Feed the worker, first until the load has risen over `least`, then for `seconds`; the load,
    and how many jobs ended in that time."""
    highest, began = 0.0, time.monotonic()
    risen: tuple[float, int] | None = None
    while True:
        done = client.counts().get(State.SUCCEEDED, 0)
        if len(ids) - done < BACKLOG:
            jobs = [new_job(TASK, [number, 1]) for number in range(BACKLOG)]
            ids += [one.id for one in client.enqueue_many(jobs) if isinstance(one, Enqueued)]
        highest, now = max(highest, os.getloadavg()[0]), time.monotonic()
        if risen is None and (highest > least or now - began > RISING):
            risen = (now, done)
        if risen is not None and now - risen[0] > seconds:
            return highest, done - risen[1]
        time.sleep(0.5)


def _await_ends(client: Client, jobs: int) -> None:
    deadline = time.monotonic() + AFTERWARDS
    while client.counts().get(State.SUCCEEDED, 0) < jobs and time.monotonic() < deadline:
        time.sleep(0.5)


def _outcome(client: Client, ids: list[str], load: float, during: int) -> Outcome:
    counts = client.counts()
    kept = sum(counts.values())
    failed = sum(counts.get(state, 0) for state in (State.FAILED, State.CANCELLED))
    (row,) = client.ledger.execute("SELECT coalesce(sum(attempt), 0) AS attempts FROM ledger.jobs")
    rows = client.ledger.execute(
        "SELECT outcome, count(*) AS times FROM ledger.attempts GROUP BY outcome ORDER BY outcome"
    )
    return Outcome(
        load=load,
        jobs=len(ids),
        ended=counts.get(State.SUCCEEDED, 0),
        lost=len(ids) - kept + failed,
        attempts=int(row.attempts),
        during=during,
        wasted={row.outcome: int(row.times) for row in rows},
    )


if __name__ == "__main__":
    sys.exit(main())
