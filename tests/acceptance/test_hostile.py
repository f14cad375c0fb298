"""What tasks, messages and signals do that nobody would wish."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from tests.acceptance.conftest import Service
from worker.jobs.states import State
from worker.runtime import durable
from worker.runtime.launch import isolated_argv
from worker.settings import Settings


@pytest.fixture
def app(settings: Settings) -> Iterator[Any]:
    made = durable(Celery("producer", set_as_current=False), settings)
    yield made
    made.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_what_is_no_exception_fails_the_job_and_stops_nothing(service: Service, pool: str) -> None:
    worker = service.worker(pool, 2)
    odd = service.ended(service.enqueue("test.cancelled_error"))
    assert (odd.state, odd.attempt, odd.error) == (State.FAILED, 1, "CancelledError")
    large = service.ended(service.enqueue("test.two_arguments"))
    assert large.state is State.FAILED
    assert (large.error or "").startswith("TwoArguments")
    assert service.ended(service.enqueue("test.add", 1, 1)).state is State.SUCCEEDED
    assert worker.exit_code is None


@pytest.mark.parametrize("how", ["group", "quit", "child"])
def test_a_terminated_child_fails_no_job(service: Service, how: str) -> None:
    # Given a prefork worker that runs a job
    service.keeper()
    worker = service.worker("prefork", 1)
    job_id = service.enqueue("test.hold", service.log, service.gate)
    service.until(lambda: bool(service.ran("start")))
    child = int(service.ran("start")[0][1])

    # When the whole group, the worker at once, or the child alone is terminated
    if how == "group":  # as systemd does by default
        os.killpg(worker.pid, signal.SIGTERM)
    elif how == "quit":
        worker.send(signal.SIGQUIT)
    else:
        os.kill(child, signal.SIGTERM)
    if how != "child":
        assert worker.wait(15) == 0
        assert service.client.job(job_id).state is State.QUEUED
        service.worker("prefork", 1)

    # Then the job has not failed: it runs again
    service.until(lambda: len(service.ran("start")) == 2, 30, "the job runs again")
    service.open_gate()
    job = service.ended(job_id)
    assert job.state is State.SUCCEEDED
    outcome = "lost" if how == "child" else "released"
    assert [attempt.outcome for attempt in job.attempts] == [outcome]


@pytest.mark.parametrize(
    "headers",
    [
        {"timelimit": "abc"},
        {"timelimit": [1, 2, 3]},
        {"timelimit": 7},
        {"stamped_headers": 5},
        {"stamped_headers": [[1]]},
        {"retries": "many"},
    ],
    ids=str,
)
def test_a_hostile_message_stops_no_worker(
    service: Service, redis_url: str, headers: dict[str, Any]
) -> None:
    worker = service.worker("threads", 2)
    message = {
        "body": "W1sxLCAxXSwge30sIHt9XQ==",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "test.add", "id": "hostile", **headers},
        "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {}},
    }
    redis.Redis.from_url(redis_url).lpush("celery", json.dumps(message))
    # It is kept aside, or it comes to an end; and the worker works on
    service.until(
        lambda: (
            bool(service.client.doorbells.quarantined())
            or any(job.state.is_final for job in service.client.summary(["hostile"]))
        )
    )
    assert service.ended(service.enqueue("test.add", 1, 1)).state is State.SUCCEEDED
    assert worker.exit_code is None


def test_poison_ends_the_rest_of_its_chain_and_its_errbacks_run(service: Service, app: Any) -> None:
    service.keeper()
    service.worker("prefork", 2)
    chain = app.signature(
        "test.die",
        args=[service.log],
        link_error=app.signature("test.note_error", kwargs={"log": service.log}),
    ) | app.signature("test.add", args=[1])
    result = chain.apply_async()
    service.until(lambda: bool(service.client.summary([result.id])), 60, "the tail has ended")
    tail = service.ended(result.id)
    assert tail.state is State.FAILED
    assert "poison" in (tail.error or "")
    service.until(lambda: bool(service.ran("errback")))
    head = service.client.job(result.parent.id)
    assert (head.state, [a.outcome for a in head.attempts]) == (State.FAILED, ["lost"] * 3)


def test_a_replacement_that_fails_ends_the_job_it_replaced(service: Service, app: Any) -> None:
    service.keeper()
    service.worker("threads", 2)
    replaced = app.send_task("test.replace_by_failing_chain", [1])
    assert service.ended(replaced.id).state is State.FAILED
    with pytest.raises(ValueError, match="in the replacement"):
        replaced.get(timeout=5)


def test_a_clean_shutdown_costs_a_suspect_nothing(service: Service) -> None:
    # Given suspects that run in an isolated process
    service.keeper()
    victim = service.worker("threads", 2)
    ids = service.enqueue_many("test.hold", 2, service.log, service.gate)
    service.until(lambda: len(service.ran("start")) == 2)
    victim.kill()
    worker = service.worker("threads", 2, WORKER_DRAIN_SECONDS="1")
    service.until(lambda: len(service.ran("start")) == 4, 30, "the suspects run")
    # When its worker is shut down
    assert worker.terminate(20) == 0
    # Then the isolated process has given them back, and no loss is counted
    service.until(lambda: service.client.counts(ids).get(State.RUNNING, 0) == 0)
    for job in service.client.summary(ids):
        assert job.lost == 0
        assert "lost" not in [attempt.outcome for attempt in job.attempts[1:]]
    assert service.client.ledger.execute("SELECT lease FROM ledger.workers") == []


def test_a_worker_that_waits_for_postgres_at_its_start_can_be_stopped(service: Service) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "tests.acceptance.shop", "worker", "-P", "solo"]
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    worker = service.processes([*argv, "-l", "info"], nowhere)
    worker.wait_for_line("Waiting for Postgres")
    assert worker.terminate(15) is not None


def test_the_isolated_process_does_without_what_must_not_happen_twice() -> None:
    argv = "python -m celery -A shop worker -B -s sched --pidfile=x.pid --autoscale 8,2 -Q a -c 4"
    kept = "python -m celery -A shop worker -Q a -c 4"
    assert isolated_argv(argv.split()) == kept.split()
