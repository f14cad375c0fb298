"""States that others set: a helper thread, a subtask, a web process; and an id revoked early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chain, signature
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import TaskRevokedError

from tests.acceptance.conftest import Service
from worker.errors import Conflict
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings


@pytest.fixture
def web(settings: Settings) -> Iterator[Any]:
    """Another process: it enqueues, tells and asks."""
    made = durable(Celery("web", set_as_current=False), settings)
    yield made
    made.close()


def _seen(web: Any, job: str) -> tuple[str, Any]:
    result = web.AsyncResult(job)
    return result.state, result.info


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_custom_states_are_kept_whoever_says_them_until_the_job_ends(
    service: Service, web: Any, pool: str
) -> None:
    service.keeper()
    abort: Any = {"backend": web.backend, "app": web}

    # Given jobs that wait, of which a web process says something
    later = web.send_task("tell.hold", [service.log, service.gate], countdown=0.7)
    aborted = web.send_task("tell.abortable", [service.log])
    web.backend.store_result(later.id, {"by": "web"}, "SENT")
    AbortableAsyncResult(aborted.id, **abort).abort()
    assert _seen(web, later.id) == ("SENT", {"by": "web"})
    assert AbortableAsyncResult(aborted.id, **abort).is_aborted()

    # When they run, then what was said stands, and an abort before the start is found
    service.worker(pool, 8, WORKER_TASKS="tests.acceptance.telling")
    assert aborted.get(timeout=20) == "aborted"
    service.until(lambda: bool(service.ran("held")))
    assert _seen(web, later.id) == ("SENT", {"by": "web"})

    # And while they run, a thread of the task, a subtask and a web process are heard
    by_thread = web.send_task("tell.by_thread", [service.gate])
    service.until(lambda: _seen(web, by_thread.id) == ("THREAD", {"by": "thread"}))
    for task in ("tell.of", "tell.store"):
        assert web.send_task(task, [later.id, task]).get(timeout=20)
        assert _seen(web, later.id) == (task, {"by": "subtask"})
    running = web.send_task("tell.abortable", [service.log])
    service.until(lambda: len(service.ran("abortable")) == 2)
    AbortableAsyncResult(running.id, **abort).abort()
    assert running.get(timeout=20) == "aborted"

    # But nobody else ends it: not a web process, not a subtask
    with pytest.raises(Conflict, match="only the worker that runs a job ends it"):
        web.backend.store_result(later.id, "by me", "SUCCESS")
    with pytest.raises(Exception, match="only the worker that runs a job ends it"):
        web.send_task("tell.store", [later.id, "FAILURE"]).get(timeout=20)
    service.open_gate()
    assert (later.get(timeout=20), by_thread.get(timeout=20)) == ("held", "told")

    # And an end stands
    web.backend.store_result(later.id, {"by": "web"}, "LATE")
    assert _seen(web, later.id) == ("SUCCESS", "held")
    # Celery's own ways to end go on
    assert web.send_task("tell.ends_itself").get(timeout=20) == "by itself"


def test_what_nobody_knows(web: Any, caplog: pytest.LogCaptureFixture) -> None:
    # A state of an id that has no job is not kept, and that is said; an end is, as by Celery
    web.backend.store_result("nobody", {"n": 1}, "SENT")
    assert _seen(web, "nobody") == ("PENDING", None)
    assert "SENT is not kept: job nobody is unknown" in caplog.text
    for _ in range(2):
        web.backend.store_result("made-up", "ok", "SUCCESS")
        assert _seen(web, "made-up") == ("SUCCESS", "ok")
    with pytest.raises(Conflict, match="FAILURE of job made-up is not kept"):
        web.backend.store_result("made-up", ValueError("no"), "FAILURE")


def test_an_id_that_is_revoked_before_it_is_sent_does_not_run(service: Service, web: Any) -> None:
    # Given an id that is revoked, and sent after that; with a chain behind it, too
    web.control.revoke(["early", "step"])
    assert web.AsyncResult("early").state == "REVOKED"
    early = web.send_task("test.note", [service.log], task_id="early")
    step = signature("test.note", args=[service.log], app=web, immutable=True, task_id="step")
    first = signature("test.note", args=[service.log, "first"], app=web)
    chained = chain(first, step)()

    # When a worker runs
    service.worker()
    assert chained.parent.get(timeout=20) == "first"
    last = web.send_task("test.note", [service.log, "last"])
    assert last.get(timeout=20) == "last"

    # Then they have not run, and say so; nor do they come back
    for result in (early, chained):
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError):
            result.get(timeout=5)
    web.send_task("test.note", [service.log, "again"], task_id="early")
    assert service.client.job("early").state is State.CANCELLED
    assert service.ran("ran") == []
