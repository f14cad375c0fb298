"""What `AsyncResult` reads in the code that runs after a task, here and in another process.

The table was read on stock Celery 5.7 with Redis results: `SIDE=stock` runs the app on it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signature

from tests.acceptance.conftest import Service
from worker.runtime import durable
from worker.settings import Settings

#: What a task does, then for each handler what it reads: state, result, ready, whether there is a
#: traceback; and what Celery tells it.
Row = tuple[str, Any, bool, bool]
DONE: Row = ("SUCCESS", "'done'", True, False)
FAILED: Row = ("FAILURE", "ValueError('no')", True, True)
AGAIN: Row = ("RETRY", "KeyError('again')", False, True)
#: Stock Celery stores no traceback of it.
REJECTED: Row = ("FAILURE", "reject requeue=False: not wanted", True, True)
NOTHING: Row = ("PENDING", "None", False, False)

TABLE: dict[tuple[str, str], list[tuple[str, Row, dict[str, Any]]]] = {
    ("hooked", "return"): [("on_success", DONE, {}), ("after_return", DONE, {"state": "SUCCESS"})],
    ("hooked", "fail"): [
        ("on_failure", FAILED, {}),
        ("after_return", FAILED, {"state": "FAILURE"}),
    ],
    ("hooked", "retry"): [
        ("on_retry", AGAIN, {}),
        ("on_success", DONE, {}),
        ("after_return", DONE, {"state": "SUCCESS"}),
    ],
    ("signalled", "return"): [
        ("task_success", DONE, {}),
        ("task_postrun", DONE, {"state": "SUCCESS", "retval": "str"}),
    ],
    ("signalled", "fail"): [
        ("task_failure", FAILED, {}),
        ("task_postrun", FAILED, {"state": "FAILURE", "retval": "ValueError"}),
    ],
    ("signalled", "retry"): [
        ("task_retry", AGAIN, {}),
        ("task_postrun", AGAIN, {"state": "RETRY", "retval": "Retry"}),
        ("task_success", DONE, {}),
        ("task_postrun", DONE, {"state": "SUCCESS", "retval": "str"}),
    ],
    ("signalled", "ignore"): [
        ("task_postrun", NOTHING, {"state": "IGNORED", "retval": "Ignore"}),
    ],
    ("signalled", "reject"): [
        ("task_postrun", NOTHING, {"state": "REJECTED", "retval": "Reject"}),
        ("task_failure", REJECTED, {}),
    ],
}


class Asked:
    """The other process: answers each handler, and keeps what both read."""

    def __init__(self, folder: Path, app: Any) -> None:
        self.folder, self.app = folder, app
        self.here: dict[str, list[tuple[str, Row, dict[str, Any]]]] = {}
        self.there: dict[str, list[tuple[str, Row]]] = {}

    def answer(self) -> None:
        """Answer those that wait."""
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            task_id, handler, own, more = json.loads(path.read_text())
            seen = self.app.AsyncResult(task_id)
            read: Row = (seen.state, repr(seen.result), seen.ready(), bool(seen.traceback))
            self.there.setdefault(task_id, []).append((handler, read))
            row: Row = (own["state"], own["result"], own["ready"], own["traceback"])
            self.here.setdefault(task_id, []).append((handler, row, more))
            path.unlink()

    def until(self, counts: dict[str, int], seconds: float = 30.0) -> None:
        """Answer until so many handlers of each job have asked."""
        deadline = time.monotonic() + seconds
        while any(len(self.here.get(job, ())) < count for job, count in counts.items()):
            assert time.monotonic() < deadline, f"asked: {self.here}"
            self.answer()
            time.sleep(0.005)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Any]:
    made = durable(Celery("producer", set_as_current=False), settings)
    yield made
    made.close()


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_handlers_find_the_end_that_stock_celery_has_stored_by_then(
    service: Service, producer: Any, pool: str, tmp_path: Path
) -> None:
    # Given an app with every handler that there is, and another process that looks
    folder = tmp_path / "handlers"
    folder.mkdir()
    service.keeper()
    worker = service.processes(
        [sys.executable, "-m", "celery", "-A", "tests.acceptance.handlers_app", "worker", "-P",
         pool, "-c", "8", "-l", "info", "--without-mingle", "--without-gossip"],
        {"HANDLERS": str(folder), "WORKER_LEASE_SECONDS": "2", "WORKER_RING_GRACE_SECONDS": "0.5"},
    )  # fmt: skip
    worker.wait_for_line("ready.")
    asked = Asked(folder, producer)

    # When its tasks end in each way
    rows = {
        producer.send_task(f"handlers.{task}", [how]).id: expected
        for (task, how), expected in TABLE.items()
    }
    failing = producer.send_task(
        "handlers.plain", ["fail"],
        link_error=[
            signature("handlers.errback", app=producer),
            signature("handlers.errback_by_result", app=producer),
        ],
    ).id  # fmt: skip
    raising = producer.send_task(
        "handlers.raising", ["fail"],
        link_error=signature("handlers.follower", app=producer, immutable=True),
    ).id  # fmt: skip
    enqueuing = producer.send_task("handlers.enqueues").id
    asked.until({**{job: len(expected) for job, expected in rows.items()}, failing: 2})
    asked.until({f"{enqueuing}-follower": 1})

    # Then each handler reads the end, and so does the other process meanwhile
    for job, expected in rows.items():
        assert asked.here[job] == expected
        assert asked.there[job] == [(handler, row) for handler, row, _ in expected]
    # an inline errback reads it in its own process; one that is a task, everywhere
    assert {(name, row) for name, row, _ in asked.here[failing]} == {
        ("errback", FAILED),
        ("errback_by_result", FAILED),
    }
    assert ("errback_by_result", FAILED) in asked.there[failing]
    # what a handler enqueues is enqueued at once
    ((handler, _),) = asked.there[f"{enqueuing}-follower"]
    assert handler == "on_success"
    assert service.ended(f"{enqueuing}-follower").state == "succeeded"
    # and nothing was written twice, or taken for lost
    assert "ValueError" in str(service.ended(raising).error)
    assert "is dropped" not in worker.output
    assert worker.exit_code is None
    # nor is an errback called twice, because a hook raises
    worker.terminate()
    called = service.client.ledger.execute(
        "SELECT count(*) FROM ledger.jobs WHERE task = 'handlers.follower' AND parent_id = :id",
        {"id": raising},
    )
    assert called == [(1,)]


def test_a_handler_that_takes_its_time_keeps_its_child_and_its_end(
    service: Service, producer: Any, tmp_path: Path
) -> None:
    # Given a prefork worker whose job has ended, and a handler of it that still runs
    folder = tmp_path / "handlers"
    folder.mkdir()
    worker = service.processes(
        [sys.executable, "-m", "celery", "-A", "tests.acceptance.handlers_app", "worker", "-P",
         "prefork", "-c", "2", "-l", "info", "--without-mingle", "--without-gossip"],
        {"HANDLERS": str(folder), "WORKER_LEASE_SECONDS": "1", "WORKER_DRAIN_SECONDS": "10"},
    )  # fmt: skip
    worker.wait_for_line("ready.")
    job = producer.send_task("handlers.hooked", ["return"]).id
    service.until(lambda: any(folder.glob("*.json")))
    assert producer.AsyncResult(job).get(timeout=5) == "done"

    # When the worker has held its inventory against the ledger some times, and shuts down
    renewed: set[Any] = set()

    def has_renewed() -> bool:
        renewed.update(service.client.ledger.execute("SELECT renewed_at FROM ledger.workers"))
        return len(renewed) > 5

    service.until(has_renewed)
    worker.send(signal.SIGTERM)
    worker.wait_for_line("Warm shutdown")

    # Then the handler goes on to its end, and nothing is given back
    asked = Asked(folder, producer)
    asked.until({job: 2})
    assert [name for name, _, _ in asked.here[job]] == ["on_success", "after_return"]
    worker.wait(20)
    known = service.client.job(job)
    assert (known.state, known.attempt, known.attempts) == ("succeeded", 1, ())
    assert "Terminating" not in worker.output


def test_task_revoked_is_sent_once_for_what_was_revoked_or_expired_while_it_waited(
    service: Service, producer: Any, tmp_path: Path
) -> None:
    # Given jobs that are revoked, or expire, before there is a worker
    folder = tmp_path / "handlers"
    folder.mkdir()
    service.keeper()
    revoked = producer.send_task("handlers.plain", ["return"])
    revoked.revoke()
    expired = producer.send_task("handlers.plain", ["return"], expires=0.2)
    assert service.ended(expired.id).state == "cancelled"
    worker = service.processes(
        [sys.executable, "-m", "celery", "-A", "tests.acceptance.handlers_app", "worker", "-P",
         "threads", "-c", "2", "-l", "info", "--without-mingle", "--without-gossip"],
        {"HANDLERS": str(folder), "WORKER_LEASE_SECONDS": "2"},
    )  # fmt: skip
    worker.wait_for_line("ready.")

    # And one that is revoked while it waits for its time
    later = producer.send_task("handlers.plain", ["return"], countdown=60)
    later.revoke()

    # Then the worker sends the signal for each, and both processes read the end
    asked = Asked(folder, producer)
    jobs = {revoked.id: False, expired.id: True, later.id: False}
    asked.until(dict.fromkeys(jobs, 1))
    producer.send_task("handlers.plain", ["return"]).get(timeout=20)
    asked.answer()
    for job, is_expired in jobs.items():
        ((handler, row, told),) = asked.here[job]
        assert (handler, row[0]) == ("task_revoked", "REVOKED")
        assert told == {"expired": is_expired, "terminated": False}
        assert [(name, seen[0]) for name, seen in asked.there[job]] == [(handler, "REVOKED")]
