"""Each fault that the promise names, on real workers."""

from __future__ import annotations

import os
import signal
import time

import pytest
import redis

from tests.acceptance.conftest import LEASE, Service
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger import enqueue as ledger_enqueue

POOLS = ["threads", "prefork", "solo"]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_killed_workers_jobs_run_elsewhere_and_are_recorded_once(
    service: Service, pool: str
) -> None:
    # Given a worker that holds four jobs
    service.keeper()
    victim = service.worker(pool, 4)
    ids = service.enqueue_many("test.hold", 4, service.log, service.gate)
    service.running(ids)
    service.until(lambda: len(service.ran("start")) == 4)

    # When it is killed and another one is there
    victim.kill()
    service.worker(pool, 4)
    service.open_gate()

    # Then all of them succeed, each recorded once, each with its lost attempt
    assert service.all_ended(ids) == {State.SUCCEEDED: 4}
    for job in service.client.summary(ids):
        assert [attempt.outcome for attempt in job.attempts] == ["lost"]
        assert job.attempt == 2
        assert job.lost == 0


def test_flushall_loses_none_of_a_thousand_queued_jobs(service: Service, redis_url: str) -> None:
    service.keeper()
    ids = service.enqueue_many("test.note", 1000, service.log)
    redis.Redis.from_url(redis_url).flushdb()
    service.worker("threads", 16)
    assert service.all_ended(ids) == {State.SUCCEEDED: 1000}
    assert len(service.ran("ran")) == 1000


def test_flushall_in_the_middle_of_a_drain_loses_none(service: Service, redis_url: str) -> None:
    service.keeper()
    service.worker("threads", 4)
    ids = service.enqueue_many("test.sleep", 300, service.log, 0.01)
    service.until(lambda: service.client.counts(ids).get(State.SUCCEEDED, 0) > 50)
    redis.Redis.from_url(redis_url).flushdb()
    assert service.all_ended(ids) == {State.SUCCEEDED: 300}
    assert len(service.ran("end")) == 300


def test_a_push_that_failed_after_the_commit_is_rung_by_the_keeper(service: Service) -> None:
    # Given a row whose doorbell was never pushed
    service.worker()
    job = new_job("test.note", [service.log])
    ledger_enqueue.enqueue(service.client.ledger, [job])
    # When there is a keeper
    service.keeper()
    # Then the job runs
    assert service.ended(job.id).state is State.SUCCEEDED


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_dropped_broker_connection_under_a_full_backlog_forgets_no_claim(
    service: Service, redis_url: str, pool: str
) -> None:
    service.keeper()
    service.worker(pool, 4)
    ids = service.enqueue_many("test.sleep", 120, service.log, 0.05)
    client = redis.Redis.from_url(redis_url)
    for threshold in (10, 40, 80):
        service.until(
            lambda threshold=threshold: (
                service.client.counts(ids).get(State.SUCCEEDED, 0)  # type: ignore[misc] # a lambda's default
                >= threshold
            )
        )
        client.client_kill_filter(_type="normal")
    assert service.all_ended(ids) == {State.SUCCEEDED: 120}
    # and nothing ran twice, because no claim was forgotten or rescued
    assert len(service.ran("end")) == 120
    assert all(not job.attempts for job in service.client.summary(ids))


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_that_kills_its_process_ends_as_poison_and_no_job_beside_it_does(
    service: Service, pool: str
) -> None:
    # Given a supervised worker, innocents that run, and a job that kills its process
    service.keeper()
    beside = 0 if pool == "solo" else 2
    workers = [service.worker(pool, 3)]
    innocents = service.enqueue_many("test.sleep", beside, service.log, 1.0)
    service.running(innocents)
    guilty = service.enqueue("test.die", service.log)

    # When the supervisor restarts what dies
    def supervised() -> bool:
        if workers[-1].exit_code is not None:
            workers.append(service.worker(pool, 3))
        return service.client.job(guilty).state.is_final

    service.until(supervised, 90, "the poison is found")

    # Then the guilty is failed as poison, with the evidence, and the innocents succeed
    job = service.client.job(guilty)
    assert job.state is State.FAILED
    assert "poison" in (job.error or "")
    assert [attempt.outcome for attempt in job.attempts] == ["lost"] * len(job.attempts)
    assert len(service.ran("die")) == len(job.attempts)
    assert 3 <= len(job.attempts) <= 4  # one more where its first loss was not alone
    assert service.all_ended(innocents) in ({State.SUCCEEDED: beside}, {})
    if pool == "prefork":
        assert len(workers) == 1, "the parent outlives its child"


@pytest.mark.parametrize("pool", POOLS)
def test_a_memory_error_or_an_exit_in_a_task_does_not_stop_the_worker(
    service: Service, pool: str
) -> None:
    worker = service.worker(pool, 2)
    exhausted = service.ended(service.enqueue("test.exhaust", service.log))
    left = service.ended(service.enqueue("test.leave", service.log))
    after = service.ended(service.enqueue("test.note", service.log))
    assert (exhausted.state, left.state) == (State.FAILED, State.FAILED)
    assert "MemoryError" in (exhausted.error or "")
    assert "SystemExit" in (left.error or "")
    assert after.state is State.SUCCEEDED
    assert worker.exit_code is None


def test_two_keepers_dispatch_a_due_jobs_run_once(service: Service) -> None:
    service.keeper()
    service.keeper()
    service.worker()
    ids = [service.enqueue("test.note", service.log, delay=1.0) for _ in range(20)]
    assert service.all_ended(ids) == {State.SUCCEEDED: 20}
    assert len(service.ran("ran")) == 20
    assert all(job.attempt == 1 for job in service.client.summary(ids))


@pytest.mark.parametrize("pool", POOLS)
def test_sigterm_gives_unfinished_jobs_back_and_another_worker_finishes_them(
    service: Service, pool: str
) -> None:
    count = 1 if pool == "solo" else 3
    leaving = service.worker(pool, count, WORKER_DRAIN_SECONDS="1")
    ids = service.enqueue_many("test.hold", count, service.log, service.gate)
    service.running(ids)
    service.until(lambda: len(service.ran("start")) == count)
    assert leaving.terminate(15) == 0
    # Given back at once, and not counted as a crash
    assert service.client.counts(ids) == {State.QUEUED: count}
    service.keeper()
    service.worker(pool, count)
    service.open_gate()
    assert service.all_ended(ids) == {State.SUCCEEDED: count}
    for job in service.client.summary(ids):
        assert [attempt.outcome for attempt in job.attempts] == ["released"]
        assert (job.lost, job.suspect) == (0, False)


@pytest.mark.parametrize("pool", POOLS)
def test_sigterm_lets_a_running_job_finish_in_its_time(service: Service, pool: str) -> None:
    leaving = service.worker(pool, 2)
    job_id = service.enqueue("test.sleep", service.log, 1.0)
    service.until(lambda: bool(service.ran("start")))
    waiting = service.enqueue("test.note", service.log)
    assert leaving.terminate(15) == 0
    assert service.client.job(job_id).state is State.SUCCEEDED
    assert service.client.job(waiting).state in (State.QUEUED, State.SUCCEEDED)
    assert service.client.ledger.execute("SELECT lease FROM ledger.workers") == []


def test_a_stopped_worker_does_not_write_what_was_rescued_meanwhile(service: Service) -> None:
    # Given a worker with a running job, stopped for longer than its lease
    service.keeper()
    zombie = service.worker("threads", 2)
    job_id = service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 1)
    zombie.send(signal.SIGSTOP)
    # When the job was rescued and has succeeded elsewhere
    service.worker("threads", 2)
    service.until(lambda: len(service.ran("start")) == 2, 30, "the job runs again")
    service.open_gate()
    done = service.ended(job_id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)
    # Then the zombie's result is dropped
    zombie.send(signal.SIGCONT)
    zombie.wait_for_line("is dropped", 15)
    after = service.client.job(job_id)
    assert (after.finished_at, after.attempt) == (done.finished_at, 2)
    # and it works on, under a new lease
    more = service.enqueue_many("test.note", 20, service.log)
    assert service.all_ended(more) == {State.SUCCEEDED: 20}


def test_a_long_job_on_a_live_worker_is_never_rescued(service: Service) -> None:
    service.keeper()
    service.worker("threads", 2)
    service.worker("threads", 2)
    job_id = service.enqueue("test.sleep", service.log, 3 * LEASE)
    job = service.ended(job_id)
    assert (job.state, job.attempt, job.attempts) == (State.SUCCEEDED, 1, ())
    assert len(service.ran("start")) == 1


def test_no_child_outlives_a_killed_prefork_parent(service: Service) -> None:
    parent = service.worker("prefork", 2)
    job_id = service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: bool(service.ran("start")))
    (_, child, _) = service.ran("start")[0]
    assert int(child) != parent.pid
    os.kill(parent.pid, signal.SIGKILL)
    service.until(lambda: not _alive(int(child)), 5, "the child is gone")
    assert service.client.job(job_id).state is State.RUNNING  # until it is rescued


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_with_the_default_lease_a_killed_workers_job_runs_again_within_20_s(
    service: Service,
) -> None:
    # Given two workers with the default settings, and a job on one of them
    default = {"WORKER_LEASE_SECONDS": "15", "WORKER_RING_GRACE_SECONDS": "5"}
    service.keeper(**default)
    victim = service.worker("threads", 4, **default)
    service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 1)
    service.worker("threads", 4, **default)
    # When that worker is killed
    victim.kill()
    killed = time.time()
    # Then the job runs again, in the time that is promised
    service.until(lambda: len(service.ran("start")) == 2, 30, "the job runs again")
    assert float(service.ran("start")[1][2]) - killed <= 20
