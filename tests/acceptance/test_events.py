"""A worker's events of tasks: for Flower and other listeners, and in nobody's way."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from tests.acceptance.conftest import Service
from tests.proxy import proxied
from worker.jobs.states import State
from worker.runtime import durable

SLOTS = 32


class Ear:
    """What Celery's receiver of events hears of tasks, in a thread."""

    def __init__(self, app: Celery) -> None:
        self.heard: list[dict[str, Any]] = []
        self._receiver = app.events.Receiver(app.connection_for_read(), handlers={"*": self._take})
        options = {"limit": None, "timeout": None, "wakeup": False}
        self._thread = threading.Thread(
            target=self._receiver.capture, kwargs=options, daemon=True
        )  # fmt: skip
        self._thread.start()

    def of(self, job_id: str) -> list[str]:
        """The kinds of the events of a job, in their order."""
        return [event["type"] for event in self.heard if event.get("uuid") == job_id]

    def has_heard(self, kind: str, times: int) -> bool:
        """Whether it has heard so many events of this kind."""
        return [event["type"] for event in self.heard].count(kind) >= times

    def close(self) -> None:
        """Listen no more."""
        self._receiver.should_stop = True
        self._thread.join(10)

    def _take(self, event: dict[str, Any]) -> None:
        self.heard.append(event)


@pytest.fixture
def app(service: Service) -> Iterator[Celery]:
    """An onlooker's app."""
    made = durable(Celery("onlooker", set_as_current=False), service.settings)
    yield made
    made.close()


@pytest.fixture
def ear(app: Celery) -> Iterator[Ear]:
    made = Ear(app)
    yield made
    made.close()


def hears_workers(service: Service, ear: Ear) -> None:
    """Whatever a worker sends from here on is heard: its heartbeats are."""
    service.until(lambda: bool(ear.heard), what="a heartbeat is heard")


def test_jobs_begin_and_end_while_redis_is_silent(service: Service) -> None:
    settings = service.settings
    with (
        proxied(settings.database_url.get_secret_value()) as postgres_line,
        proxied(settings.redis_url.get_secret_value()) as redis_line,
        redis.Redis.from_url(settings.redis_url.get_secret_value()) as client,
    ):
        # Given a worker that sends events, with running jobs, and more that it has popped
        service.worker(
            "threads", 2 * SLOTS, "-E", "--without-heartbeat",
            DATABASE_URL=postgres_line.url, REDIS_URL=redis_line.url,
            WORKER_LEASE_SECONDS="120", WORKER_CONNECT_TIMEOUT_SECONDS="60",
        )  # fmt: skip
        ids = service.enqueue_many("test.hold", SLOTS, service.log, service.gate)
        service.until(lambda: len(service.ran("start")) == SLOTS)
        postgres_line.blackhole()
        ids += service.enqueue_many("test.hold", SLOTS, service.log, service.gate)
        service.until(lambda: client.llen("celery") == 0, what="the doorbells are popped")
        # When Redis falls silent, for longer than this test lasts
        redis_line.blackhole()
        postgres_line.heal()
        # Then what was popped is claimed and begins, and all of it ends
        service.until(lambda: len(service.ran("start")) == 2 * SLOTS, 25, "all have begun")
        service.open_gate()
        assert service.all_ended(ids, 30) == {State.SUCCEEDED: 2 * SLOTS}


def test_a_worker_sends_events_when_it_is_told_to(service: Service, app: Celery, ear: Ear) -> None:
    # Given a worker that starts without events of tasks
    worker = service.processes(
        [sys.executable, "-m", "celery", "-A", "tests.acceptance.shop", "worker",
         "-l", "INFO", "-P", "threads", "-c", "2", "-Q", "celery"]
    )  # fmt: skip
    worker.wait_for_line("ready.")
    hears_workers(service, ear)

    def done() -> str:
        job_id = service.enqueue("test.note", service.log)
        service.ended(job_id)
        return job_id

    def told(command: str) -> None:
        assert app.control.broadcast(command, reply=True, timeout=20, limit=1)

    # When it is told to send them, not to, and to again
    silent = [done()]
    told("enable_events")
    heard = [done()]
    service.until(lambda: "task-succeeded" in ear.of(heard[0]), what="the job's end is heard")
    told("disable_events")
    silent.append(done())
    told("enable_events")
    heard.append(done())
    service.until(lambda: "task-succeeded" in ear.of(heard[1]), what="the job's end is heard")
    # Then it does so
    for job_id in heard:
        assert ear.of(job_id) == ["task-received", "task-started", "task-succeeded"]
    assert [ear.of(job_id) for job_id in silent] == [[], []]


def test_a_child_has_no_part_in_it(service: Service, app: Celery, ear: Ear) -> None:
    # Given children of which the second is forked while its parent sends events
    tasks = "tests.acceptance.jobs,tests.acceptance.onlookers"
    options = ["-E", "--max-tasks-per-child", "1"]
    worker = service.worker("prefork", 1, *options, WORKER_TASKS=tasks)
    hears_workers(service, ear)
    children = set()
    for count in (1, 2):
        pid, names = app.AsyncResult(service.enqueue("test.threads")).get(timeout=30)
        children.add(pid)
        # Then it does not run in them, and the parent alone speaks
        assert "announcer" not in names
        service.until(functools.partial(ear.has_heard, "task-succeeded", count))
    assert len(children) == 2 and worker.pid not in children
    speakers = {event["pid"] for event in ear.heard if event["type"].startswith("task-")}
    assert speakers == {worker.pid}


def test_the_last_events_of_a_worker_that_drains_are_heard(service: Service, ear: Ear) -> None:
    # Given a job that ends while its worker drains
    with proxied(service.settings.database_url.get_secret_value()) as line:
        worker = service.worker("threads", 2, "-E", DATABASE_URL=line.url)
        hears_workers(service, ear)
        job_id = service.enqueue("test.hold", service.log, service.gate)
        service.until(lambda: len(service.ran("start")) == 1)
        worker.send(signal.SIGTERM)
        worker.wait_for_line("Warm shutdown")
        # When the pool is gone before the commit of its end
        line.delay(0.5)
        service.open_gate()
        assert worker.wait(30) == 0
    service.until(lambda: "task-succeeded" in ear.of(job_id), what="its end is heard")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_of_a_running_job_that_is_cancelled_no_success_is_told(
    service: Service, app: Celery, ear: Ear, pool: str
) -> None:
    # Given a job for each way to cancel what runs
    name = "w@cancels"
    service.worker(pool, 3, "-E", "-n", name)
    hears_workers(service, ear)
    ids = service.enqueue_many("test.hold", 3, service.log, service.gate)
    service.running(ids)
    revoked, told, cancelled = ids
    # When it is cancelled so, and its code goes on to its end where the pool cannot end it
    app.control.revoke(revoked, terminate=True)
    arguments = {"signal": "SIGTERM", "task_id": told}
    ((answer,),) = [
        each.values()
        for each in app.control.broadcast(
            "terminate", arguments, reply=True, timeout=20, limit=1, destination=[name]
        )
    ]
    assert "ok" in answer
    service.client.cancel(cancelled, "not wanted")
    service.until(lambda: service.client.job(told).state is State.CANCELLED, what="it is cancelled")
    if pool == "threads":
        service.open_gate()
    # Then listeners hear, once, that it was revoked
    service.until(lambda: ear.has_heard("task-revoked", 3), what="all are told")
    for job_id in ids:
        assert ear.of(job_id) == ["task-received", "task-started", "task-revoked"]
        assert service.client.job(job_id).state is State.CANCELLED
    # And so of one that waited, of which they hear for the first time
    waiting = app.send_task("test.note", [service.log], countdown=600).id
    app.control.revoke(waiting)
    service.until(lambda: bool(ear.of(waiting)), what="it is told")
    (event,) = [event for event in ear.heard if event.get("uuid") == waiting]
    assert (event["type"], event["name"]) == ("task-revoked", "test.note")
    # And the worker goes on, and tells of it
    service.open_gate()
    last = service.enqueue("test.note", service.log)
    service.until(lambda: "task-succeeded" in ear.of(last), what="a success is told")
    assert [len(ear.of(job_id)) for job_id in ids] == [3, 3, 3]
