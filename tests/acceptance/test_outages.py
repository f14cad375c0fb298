"""A store goes away while workers are busy, and comes back."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from tests.acceptance.conftest import LEASE, Service
from tests.processes import Processes
from worker.errors import LedgerUnavailable
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer


@pytest.fixture
def exposed(
    own_postgres: PostgresServer, own_redis: RedisServer, processes: Processes, tmp_path: Path
) -> Iterator[Service]:
    """A service on servers of its own, which may be stopped."""
    settings = Settings.load(database_url=own_postgres.url, redis_url=own_redis.url)
    processes._environment = {
        **processes._environment,
        "DATABASE_URL": own_postgres.url,
        "REDIS_URL": own_redis.url,
    }
    made = Service(processes, settings, tmp_path)
    yield made
    made.client.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_an_outage_of_postgres_longer_than_the_lease_drops_no_result_and_re_runs_nothing(
    exposed: Service, own_postgres: PostgresServer, pool: str
) -> None:
    # Given a worker with four running jobs, and jobs that wait
    exposed.keeper()
    worker = exposed.worker(pool, 4)
    ids = exposed.enqueue_many("test.hold", 3, exposed.log, exposed.gate)
    ids += exposed.enqueue_many("test.hold_then_retry", 1, exposed.log, exposed.gate)
    ids += exposed.enqueue_many("test.sleep", 20, exposed.log, 0.01)
    exposed.running(ids, 4)
    exposed.until(lambda: len(exposed.ran("start")) >= 4)

    # When Postgres is away for longer than a lease, and the jobs end meanwhile
    own_postgres.stop()
    with pytest.raises(LedgerUnavailable):
        exposed.enqueue("test.note", exposed.log)
    exposed.open_gate()
    exposed.until(lambda: len(exposed.ran("end")) >= 4)
    _wait_out(worker.pid, 1.5 * LEASE)
    own_postgres.start()

    # Then every result is recorded, and nothing ran twice
    assert exposed.all_ended(ids) == {State.SUCCEEDED: 24}
    assert len(exposed.ran("start")) == 24
    # and the retry that was asked for meanwhile has come
    assert len(exposed.ran("retried")) == 1
    outcomes = [attempt.outcome for job in exposed.client.summary(ids) for attempt in job.attempts]
    assert outcomes == ["retried"]
    assert worker.exit_code is None


def test_redis_killed_and_started_empty_loses_nothing(
    exposed: Service, own_redis: RedisServer
) -> None:
    exposed.keeper()
    worker = exposed.worker("threads", 4)
    ids = exposed.enqueue_many("test.sleep", 100, exposed.log, 0.02)
    exposed.until(lambda: exposed.client.counts(ids).get(State.SUCCEEDED, 0) >= 10)
    own_redis.kill()
    # An enqueue succeeds while Redis is away: the row is what counts
    ids.append(exposed.enqueue("test.sleep", exposed.log, 0.01))
    own_redis.start()
    assert exposed.all_ended(ids) == {State.SUCCEEDED: 101}
    assert worker.exit_code is None


@pytest.mark.parametrize("store", ["postgres", "redis"])
def test_each_pool_consumes_again_within_ten_seconds_of_a_stores_return(
    exposed: Service, own_postgres: PostgresServer, own_redis: RedisServer, store: str
) -> None:
    # Given a worker of each pool with the default settings. That bound is the requirement
    pools = ["threads", "prefork", "solo"]
    usual = {"WORKER_LEASE_SECONDS": "15", "WORKER_RING_GRACE_SECONDS": "5"}
    workers = [exposed.worker(pool, 1, "--queues", pool, **usual) for pool in pools]
    server: PostgresServer | RedisServer = own_postgres if store == "postgres" else own_redis

    # When a store is away for a while
    server.stop()
    _wait_out(workers[0].pid, 12)
    server.start()
    back = time.monotonic()

    # Then each of them, the same process, has run a job in time
    ids = [exposed.enqueue("test.note", exposed.log, queue=pool) for pool in pools]
    for job_id in ids:
        exposed.ended(job_id, back + 10 - time.monotonic())
    assert [worker.exit_code for worker in workers] == [None] * 3


def _wait_out(pid: int, seconds: float) -> None:
    """Let real time pass for a process: an outage has no event to wait on, only a length."""
    pidfd = os.pidfd_open(pid)
    ended, _, _ = select.select([pidfd], [], [], seconds)
    assert not ended, "the worker ended during the outage"


def test_a_celery_producer_enqueues_while_redis_is_away(
    exposed: Service, own_redis: RedisServer
) -> None:
    own_redis.kill()
    app = durable(Celery("producer", set_as_current=False), exposed.settings)
    job_id = app.send_task("test.note", [exposed.log]).id
    assert exposed.client.job(job_id).state is State.QUEUED
    own_redis.start()
    exposed.keeper()
    exposed.worker()
    assert exposed.ended(job_id).state is State.SUCCEEDED
    app.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_full_redis_fails_no_job_and_no_enqueue(
    exposed: Service, own_redis: RedisServer, pool: str
) -> None:
    # Given a worker with a running job, and a Redis that refuses every write
    exposed.keeper()
    worker = exposed.worker(pool, 2)
    app = durable(Celery("producer", set_as_current=False), exposed.settings)
    ids = [exposed.enqueue("test.hold_then_retry", exposed.log, exposed.gate)]
    exposed.until(lambda: len(exposed.ran("start")) == 1)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        # When the job asks to be retried, a producer enqueues, and another worker starts
        exposed.open_gate()
        ids.append(app.send_task("test.note", [exposed.log]).id)
        second = exposed.worker(pool, 2)
        exposed.until(lambda: bool(exposed.client.job(ids[0]).attempts))
        client.config_set("maxmemory", "0")
    # Then both jobs succeed
    assert exposed.all_ended(ids) == {State.SUCCEEDED: 2}
    assert worker.exit_code is None and second.exit_code is None
    app.close()


def test_a_command_that_finds_a_store_away_says_so_in_one_sentence(
    exposed: Service, own_postgres: PostgresServer
) -> None:
    own_postgres.stop()
    process = exposed.processes([sys.executable, "-m", "worker", "migrate"])
    assert process.wait(30) == 3
    assert process.output.startswith("Error: Postgres is not available")
    assert "Traceback" not in process.output


@pytest.mark.parametrize("store", ["postgres", "redis"])
def test_what_starts_while_a_store_is_away_waits_for_it(
    exposed: Service, own_postgres: PostgresServer, own_redis: RedisServer, store: str
) -> None:
    # Given a store that is away
    away = {"postgres": own_postgres, "redis": own_redis}[store]
    away.stop()
    # When a worker and a keeper start
    worker = exposed.processes([sys.executable, "-m", "worker", "run"], exposed._variables({}))
    keeper = exposed.keeper()
    worker.wait_for_line(f"{store.capitalize()} is not available")
    if store == "postgres":
        keeper.wait_for_line("Waiting for Postgres")
    # Then they wait, and work when it is back
    away.start()
    worker.wait_for_line("ready.", 60)
    assert exposed.ended(exposed.enqueue("test.note", exposed.log)).state is State.SUCCEEDED
    assert worker.terminate() == 0 and keeper.terminate() == 0
