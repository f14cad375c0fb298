"""A worker that is asked to end is gone in its drain's time and five seconds, whatever goes on.

That bound is the requirement: each test measures from the signal to the end of the process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from signal import SIGINT, SIGQUIT, SIGTERM

import pytest

from tests.acceptance.conftest import Service
from tests.processes import LoggedProcess
from tests.proxy import Proxy, proxied
from worker.jobs.states import State
from worker.settings import Settings

POOLS = ["threads", "prefork", "solo"]
#: Seconds beside the drain's own in which a worker is gone.
MARGIN = 5.0
#: A job's state, its losses, whether it is suspect, and the outcome of each of its attempts.
Fate = tuple[State, int, bool, list[str]]
#: It can be run by others, and nobody counts what happened as a crash.
RELEASED: Fate = (State.QUEUED, 0, False, ["released"])
#: What is `left` of a worker that is gone: no running job, and no lease.
NOTHING: tuple[list[str], int] = ([], 0)
STUBBORN = {"WORKER_TASKS": "tests.acceptance.jobs,tests.acceptance.stubborn"}


def leaves(worker: LoggedProcess, drain: float, *signals: signal.Signals) -> int:
    """Ask the worker to end; its exit code. It is gone in time."""
    asked = time.monotonic()
    for number in signals or (SIGTERM,):
        worker.send(number)
        if number is not (signals or (SIGTERM,))[-1]:
            worker.wait_for_line("shutdown (MainProcess)")
    code = worker.wait(drain + 60)
    took = time.monotonic() - asked
    assert took <= drain + MARGIN, f"{took:.1f} s"
    return code


def crew(service: Service, pools: Sequence[str], **variables: str) -> list[LoggedProcess]:
    """Workers of one slot each, started together, once they fetch."""
    argv = [sys.executable, "-m", "worker", "run", "-c", "1"]
    workers = [
        service.processes(
            [*argv, "-P", pool, "-n", f"{pool}{number}@%h"], service._variables(variables)
        )
        for number, pool in enumerate(pools)
    ]
    for worker in workers:
        worker.wait_for_line("ready.")
    return workers


def all_leave(workers: Sequence[LoggedProcess], drain: float, *signals: signal.Signals) -> set[int]:
    """Ask them all to end at once; their exit codes. Each is gone in time."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return set(pool.map(lambda worker: leaves(worker, drain, *signals), workers))


def left(service: Service) -> tuple[list[str], int]:
    """The jobs that are running, and the number of leases."""
    ledger = service.client.ledger
    running = ledger.execute("SELECT id FROM ledger.jobs WHERE state = 'running'")
    return [row.id for row in running], len(ledger.execute("SELECT lease FROM ledger.workers"))


def fates(service: Service, ids: Sequence[str]) -> list[Fate]:
    """What became of each of these jobs, in no order."""
    return [
        (job.state, job.lost, job.suspect, [attempt.outcome for attempt in job.attempts])
        for job in service.client.summary(ids)
    ]


def holding(service: Service, count: int = 1) -> list[str]:
    """Jobs that run until the gate is opened, once their tasks have begun."""
    ids = service.enqueue_many("test.hold", count, service.log, service.gate)
    begun(service, count)
    return ids


def begun(service: Service, count: int = 1) -> None:
    service.until(lambda: len(service.ran("start")) >= count, what="the tasks have begun")


@pytest.fixture
def postgres_line(settings: Settings) -> Iterator[Proxy]:
    """The network between a worker and Postgres."""
    with proxied(settings.database_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def redis_line(settings: Settings) -> Iterator[Proxy]:
    """The network between a worker and Redis."""
    with proxied(settings.redis_url.get_secret_value()) as proxy:
        yield proxy


def broken(proxy: Proxy, how: str) -> None:
    proxy.refuse() if how == "refused" else proxy.blackhole()


def test_an_idle_worker_leaves_nothing(service: Service) -> None:
    workers = crew(service, POOLS)
    assert all_leave(workers, 0.0) == {0}  # idle: they use none of their drain's ten seconds
    assert left(service) == NOTHING


@pytest.mark.parametrize("drain", [0.0, 1.0])
def test_what_does_not_end_in_time_is_released(service: Service, drain: float) -> None:
    workers = crew(service, POOLS, WORKER_DRAIN_SECONDS=str(drain))
    ids = holding(service, len(POOLS))
    assert all_leave(workers, drain) == {0}
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_what_ends_in_time_is_recorded_beside_what_does_not(service: Service, pool: str) -> None:
    worker = service.worker(pool, 2, WORKER_DRAIN_SECONDS="2")
    (held,) = holding(service)
    ends = service.enqueue("test.sleep", service.log, 0.7)
    begun(service, 2)
    assert leaves(worker, 2) == 0
    assert service.client.job(ends).state is State.SUCCEEDED
    assert fates(service, [held]) == [RELEASED]
    assert left(service) == NOTHING


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_others_run_what_waits_while_the_worker_still_drains(service: Service, pool: str) -> None:
    # Given a worker that is full, and jobs that wait for it
    leaving = service.worker(pool, 1, WORKER_DRAIN_SECONDS="60")
    (held,) = holding(service)
    waiting = service.enqueue_many("test.note", 3, service.log)
    # When it drains, and another one is there
    leaving.send(SIGTERM)
    service.worker(pool, 1)
    # Then that one runs them, while the first still runs its job, and this job too comes to its end
    assert service.all_ended(waiting) == {State.SUCCEEDED: 3}
    assert leaving.exit_code is None and service.client.job(held).state is State.RUNNING
    service.open_gate()
    assert leaving.wait(15) == 0
    job = service.client.job(held)
    assert (job.state, job.attempts) == (State.SUCCEEDED, ())
    assert left(service) == ([], 1)  # the lease of the other


@pytest.mark.parametrize("how", ["refused", "blackholed"])
def test_it_ends_in_time_while_postgres_is_away(
    service: Service, postgres_line: Proxy, how: str
) -> None:
    workers = crew(service, POOLS, DATABASE_URL=postgres_line.url, WORKER_DRAIN_SECONDS="1")
    ids = holding(service, len(POOLS))
    broken(postgres_line, how)
    assert all_leave(workers, 1) == {0}
    assert all("The lease is left to expire" in worker.output for worker in workers)
    # until the keeper rescues them
    assert service.client.counts(ids) == {State.RUNNING: len(POOLS)}


def test_an_idle_worker_ends_in_time_while_postgres_is_silent(
    service: Service, postgres_line: Proxy
) -> None:
    worker = service.worker("threads", 1, DATABASE_URL=postgres_line.url, WORKER_DRAIN_SECONDS="1")
    postgres_line.blackhole()
    # 0 is Celery's own end. It begins half a second before the drain's timer, which cuts it off
    # with 1 on a machine that is too busy to unload Python meanwhile.
    assert leaves(worker, 1) in {0, 1}


def test_results_that_wait_for_postgres_are_written_when_it_comes_back_in_the_drain(
    service: Service, postgres_line: Proxy
) -> None:
    # Given many results that wait because Postgres is away
    worker = service.worker(
        "threads", 64, DATABASE_URL=postgres_line.url, WORKER_LEASE_SECONDS="30"
    )
    ids = holding(service, 64)
    postgres_line.refuse()
    service.open_gate()
    worker.wait_for_line("results wait for Postgres")
    # When the worker drains, and Postgres comes back meanwhile
    worker.send(SIGTERM)
    worker.wait_for_line("Warm shutdown")
    postgres_line.heal()
    # Then every one of them is recorded
    assert worker.wait(15) == 0
    assert service.client.counts(ids) == {State.SUCCEEDED: 64}
    assert left(service) == NOTHING


@pytest.mark.parametrize(("pool", "how"), [("threads", "blackholed"), ("prefork", "refused")])
def test_it_ends_in_time_and_releases_while_redis_is_away(
    service: Service, redis_line: Proxy, pool: str, how: str
) -> None:
    worker = service.worker(pool, 2, REDIS_URL=redis_line.url, WORKER_DRAIN_SECONDS="1")
    ids = holding(service)
    broken(redis_line, how)
    assert leaves(worker, 1) == 0
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


def test_a_suspect_in_its_process_is_released_with_its_worker(service: Service) -> None:
    # Given a suspect that runs in an isolated process of a worker
    service.keeper()
    victim = service.worker("threads", 1)
    (job_id,) = holding(service)
    victim.kill()
    worker = service.worker("threads", 1, WORKER_DRAIN_SECONDS="1")
    begun(service, 2)
    # When the worker drains
    assert leaves(worker, 1) == 0
    # Then the job has not lost another attempt
    job = service.client.job(job_id)
    assert job.state is State.QUEUED
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "released"]
    assert left(service) == NOTHING


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_task_that_hears_nothing_does_not_hold_up_the_end(service: Service, pool: str) -> None:
    worker = service.worker(pool, 1, WORKER_DRAIN_SECONDS="1", **STUBBORN)
    job_id = service.enqueue("test.deaf", service.log, pool == "prefork")
    begun(service)
    assert leaves(worker, 1) == 0
    assert fates(service, [job_id]) == [RELEASED]
    assert left(service) == NOTHING


def test_a_task_that_takes_the_gil_in_the_drain_does_not_hold_up_the_end(
    service: Service,
) -> None:
    worker = service.worker("threads", 1, WORKER_DRAIN_SECONDS="1", **STUBBORN)
    service.enqueue("test.grip", service.log, service.gate)
    begun(service)
    asked = time.monotonic()
    worker.send(SIGTERM)
    worker.wait_for_line("Warm shutdown")
    service.open_gate()
    assert worker.wait(60) == 1  # of the timer: no step of Python's, so no exit code of ours
    assert time.monotonic() - asked <= 1 + MARGIN
    assert "most recent call first" in worker.output  # it says where it hung


@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_a_child_that_hears_nothing_does_not_hold_up_the_end(
    service: Service, is_busy: bool
) -> None:
    worker = service.worker("prefork", 1, WORKER_DRAIN_SECONDS="1")
    probe = service.enqueue("test.note", service.log)
    service.ended(probe)
    child = int(service.ran("ran")[0][1])
    ids = holding(service) if is_busy else []
    os.kill(child, signal.SIGSTOP)
    assert leaves(worker, 1) == 0
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


def test_further_signals_do_not_hold_up_the_end(service: Service) -> None:
    rows = [(SIGTERM, SIGTERM), (SIGTERM, SIGINT), (SIGINT, SIGINT, SIGINT)]
    workers = crew(service, ["threads"] * len(rows), WORKER_DRAIN_SECONDS="1")
    ids = holding(service, len(rows))
    with ThreadPoolExecutor(len(rows)) as pool:
        codes = list(pool.map(lambda worker, of: leaves(worker, 1, *of), workers, rows))
    # SIGINT: Celery calls it a failure, however warm. But where one signal comes while Celery still
    # handles another, it forgets what the first was to mean.
    assert codes[0] == 0 and set(codes) <= {0, 1}, codes
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


@pytest.mark.parametrize(
    ("pools", "signals"),
    [
        (POOLS, (SIGQUIT,)),
        (["prefork"], (SIGTERM, SIGQUIT)),
        (["threads"], (SIGQUIT, SIGQUIT, SIGQUIT)),
    ],
    ids=["once", "after SIGTERM", "thrice"],
)
def test_sigquit_gives_the_running_jobs_no_time(
    service: Service, pools: list[str], signals: tuple[signal.Signals, ...]
) -> None:
    workers = crew(service, pools, WORKER_DRAIN_SECONDS="30")
    ids = holding(service, len(pools))
    assert all_leave(workers, 0, *signals) == {0}
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


def test_a_worker_that_is_quit_is_not_gone_before_it_has_given_back(
    service: Service, postgres_line: Proxy
) -> None:
    # Given workers for which each word with Postgres takes longer than Celery's end does
    workers = crew(
        service, ["threads", "prefork"], DATABASE_URL=postgres_line.url, WORKER_LEASE_SECONDS="30"
    )
    ids = holding(service, 2)
    postgres_line.delay(0.25)
    # When they are quit
    assert all_leave(workers, 0, SIGQUIT) == {0}
    # Then they have given back their jobs and their leases
    assert fates(service, ids) == [RELEASED] * len(ids)
    assert left(service) == NOTHING


@pytest.mark.parametrize("how", ["refused", "blackholed"])
def test_a_worker_that_waits_for_a_store_at_its_start_ends_in_time(
    service: Service, postgres_line: Proxy, redis_line: Proxy, how: str
) -> None:
    # Given workers of which one misses Postgres, and one Redis
    argv = ["-m", "celery", "-A", "tests.acceptance.shop", "worker", "-P", "prefork", "-c", "2"]
    words = {"Waiting for Postgres": postgres_line, "Cannot connect": redis_line}
    workers = []
    for line in words.values():
        broken(line, how)
        key = "DATABASE_URL" if line is postgres_line else "REDIS_URL"
        variables = {key: line.url, "WORKER_DRAIN_SECONDS": "0"}
        workers.append(service.processes([sys.executable, *argv], variables))
    for worker, word in zip(workers, words, strict=True):
        # at the least the last of what Celery says before it starts
        worker.wait_for_line(word if how == "refused" else "[queues]")
    # When they are asked to end
    assert all_leave(workers, 0) == {0}
    assert left(service) == NOTHING
