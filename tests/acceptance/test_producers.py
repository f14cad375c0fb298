"""A producer is told at once, or after a bounded wait, that Postgres is away; it never hangs.

That bound is the requirement: each test measures how long the producer waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psycopg2
import pytest
from celery import Celery

from tests.acceptance.conftest import Service
from tests.ledger import given
from tests.processes import Processes
from tests.proxy import Proxy, proxied
from worker.client import Client
from worker.errors import LedgerUnavailable
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings
from worker.stack.postgres import PostgresServer

#: WORKER_CONNECT_TIMEOUT_SECONDS of these producers.
TIMEOUT = 1.0
#: The longest wait for a store that docs/operations.md promises, in such timeouts.
STORE = 4
#: What the machine itself may take, beside the waits.
SLACK = 2.0

Produce = Callable[[str], str]
KINDS = ["client", "celery"]


@pytest.fixture
def postgres_line(settings: Settings) -> Iterator[Proxy]:
    """The network between a producer and Postgres."""
    with proxied(settings.database_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def redis_line(settings: Settings) -> Iterator[Proxy]:
    """The network between a producer and Redis."""
    with proxied(settings.redis_url.get_secret_value()) as proxy:
        yield proxy


@pytest.fixture
def producer(settings: Settings) -> Iterator[Callable[..., Produce]]:
    """Make a producer of a kind, which enqueues one job and tells its id; nothing is open yet."""
    opened: list[Client | Celery] = []

    def make(kind: str, **addresses: str) -> Produce:
        known = {name: getattr(settings, name) for name in ("database_url", "redis_url")}
        own = Settings.load(
            **{name: url.get_secret_value() for name, url in known.items()} | addresses,
            connect_timeout_seconds=TIMEOUT,
        )
        if kind == "client":
            client = Client(own)
            opened.append(client)
            return lambda word: client.enqueue("test.echo", [word]).id
        app = durable(Celery("producer", set_as_current=False), own)
        opened.append(app)
        return lambda word: str(app.send_task("test.echo", [word]).id)

    yield make
    for one in opened:
        one.close()


@contextmanager
def bounded(waits: float = STORE * TIMEOUT) -> Iterator[None]:
    """The block ends in the time that a producer may have to wait."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took <= waits + SLACK, f"{took:.1f} s"


def is_told(produce: Produce) -> None:
    """The producer is told that the ledger is away, in its time."""
    with bounded(), pytest.raises(LedgerUnavailable):
        produce("away")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "new"])
@pytest.mark.parametrize("how", ["refused", "blackholed"])
def test_a_producer_is_told_that_postgres_is_away(
    producer: Callable[..., Produce], postgres_line: Proxy, kind: str, connected: bool, how: str
) -> None:
    # Given a producer, and a Postgres that breaks off, or takes every byte and answers nothing
    produce = producer(kind, database_url=postgres_line.url)
    if connected:
        produce("before")
    postgres_line.refuse() if how == "refused" else postgres_line.blackhole()
    # Then each of its calls is answered, and works when Postgres is back
    is_told(produce)
    is_told(produce)
    postgres_line.heal()
    assert produce("after")


@pytest.mark.parametrize("kind", KINDS)
def test_a_producer_is_told_when_postgres_falls_silent_in_its_transaction(
    producer: Callable[..., Produce], postgres_line: Proxy, kind: str
) -> None:
    # Given a network that is slow enough to break it in the middle of a transaction
    produce = producer(kind, database_url=postgres_line.url)
    produce("before")
    postgres_line.delay(0.2)
    with ThreadPoolExecutor(1) as pool, bounded():
        answer = pool.submit(produce, "away")
        given.until(lambda: postgres_line.harmed)  # its first words are held back, on their way
        postgres_line.blackhole()
        with pytest.raises(LedgerUnavailable):
            answer.result(60)
    postgres_line.heal()
    assert produce("after")


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_threads_of_a_producer_are_told(
    producer: Callable[..., Produce], postgres_line: Proxy, kind: str
) -> None:
    produce = producer(kind, database_url=postgres_line.url)
    produce("before")
    postgres_line.blackhole()
    # A Celery producer's connections to Redis are ten, and they are waited for in turn.
    turns = 1 if kind == "client" else 5
    with ThreadPoolExecutor(50) as pool, bounded(turns * STORE * TIMEOUT):
        answers = [pool.submit(produce, "away") for _ in range(50)]
        faults = [answer.exception(60) for answer in answers]
    assert all(isinstance(fault, LedgerUnavailable) for fault in faults), faults


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    """Every process of Postgres stopped: the kernel goes on to take bytes and connections."""
    assert server.pid is not None
    pids = [server.pid, *_children(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in tasks.split()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_producer_is_told_that_postgres_is_stopped_full_or_restarting(
    producer: Callable[..., Produce], own_postgres: PostgresServer, kind: str
) -> None:
    produce = producer(kind, database_url=own_postgres.url)
    produce("before")
    with stopped(own_postgres):
        is_told(produce)
        is_told(producer(kind, database_url=own_postgres.url))
    assert produce("after")
    with full(own_postgres):
        is_told(producer(kind, database_url=own_postgres.url))
    modes: tuple[Literal["fast", "immediate"], ...] = ("fast", "immediate")
    for mode in modes:
        own_postgres.restart(mode)
        assert produce("after")  # a connection that died while idle is made anew
    own_postgres.stop()
    is_told(produce)


@contextmanager
def full(server: PostgresServer) -> Iterator[None]:
    """Every connection that Postgres allows is taken."""
    taken = []
    try:
        with suppress(psycopg2.OperationalError):
            while True:
                taken.append(psycopg2.connect(server.url))
        yield
    finally:
        for connection in taken:
            connection.close()


def test_a_lease_whose_connection_hangs_is_renewed_by_another_one(service: Service) -> None:
    # Given a worker whose connection for the lease leads to a process of Postgres that stands still
    service.worker(WORKER_LEASE_SECONDS="12", WORKER_CONNECT_TIMEOUT_SECONDS="1")
    ledger = service.client.ledger
    find = (
        "SELECT pid, state FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE '% lease'"
    )
    leases = "SELECT lease, renewed_at FROM ledger.workers"
    (backend,) = ledger.execute(find)
    try:
        os.kill(backend.pid, signal.SIGSTOP)
        while ledger.execute(find)[0].state != "idle":  # in a transaction it would hold a lock
            os.kill(backend.pid, signal.SIGCONT)
            os.kill(backend.pid, signal.SIGSTOP)
        (before,) = ledger.execute(leases)
        # Then the same lease is renewed all the same, before it expires
        service.until(
            lambda: any(row.renewed_at > before.renewed_at for row in ledger.execute(leases)),
            seconds=12,
            what="the lease is renewed",
        )
        (after,) = ledger.execute(leases)
        assert after.lease == before.lease
        assert after.renewed_at > before.renewed_at
    finally:
        os.kill(backend.pid, signal.SIGCONT)


def test_the_command_line_is_told(
    processes: Processes, postgres_line: Proxy, redis_line: Proxy
) -> None:
    environment = {
        "DATABASE_URL": postgres_line.url,
        "REDIS_URL": redis_line.url,
        "WORKER_CONNECT_TIMEOUT_SECONDS": str(TIMEOUT),
    }
    postgres_line.blackhole()
    process = processes([sys.executable, "-m", "worker", "enqueue", "test.echo"], environment)
    assert process.wait(30) == 3
    assert process.output.startswith("Error: Postgres is not available")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "new"])
@pytest.mark.parametrize("how", ["refused", "blackholed"])
def test_a_producer_does_without_redis(
    producer: Callable[..., Produce],
    settings: Settings,
    redis_line: Proxy,
    kind: str,
    connected: bool,
    how: str,
) -> None:
    produce = producer(kind, redis_url=redis_line.url)
    if connected:
        produce("before")
    redis_line.refuse() if how == "refused" else redis_line.blackhole()
    with bounded():
        job_id = produce("away")
    with Client(settings) as client:
        assert client.job(job_id).state is State.QUEUED


def test_a_thousand_enqueues_with_one_key_make_one_job_and_one_answer(
    settings: Settings, environment: dict[str, str]
) -> None:
    # Given a thousand producers, in the threads of four processes
    argv = [sys.executable, "-m", "tests.acceptance.crowd", "one key", "250"]
    patient = {**environment, "WORKER_CONNECT_TIMEOUT_SECONDS": "60"}
    crowd = [
        subprocess.Popen(
            argv, env=patient, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for process in crowd:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        # When all of them enqueue the same request at once
        for process in crowd:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[0] for process in crowd]
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    # Then there is one job, all of them are told of it, and one of them that it has made it
    answers = [line.split() for text in said for line in text.splitlines()]
    assert len(answers) == 1000
    assert len({job_id for job_id, _ in answers}) == 1
    assert [created for _, created in answers].count("True") == 1
    with Client(settings) as client:
        assert client.counts() == {State.QUEUED: 1}
