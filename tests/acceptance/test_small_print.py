"""What `AsyncResult` says beside its state; as on stock Celery, where tests/parity does not ask."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from celery import Celery, group
from celery.app.task import Task
from celery.exceptions import Reject
from celery.result import ResultSet

from tests.acceptance.conftest import Service
from worker.runtime import durable
from worker.runtime.strategies import refuse_strategies
from worker.settings import Settings


@pytest.fixture
def app(settings: Settings) -> Iterator[Any]:
    made = durable(Celery("producer", set_as_current=False), settings)
    yield made
    made.close()


def test_results_say_what_stock_celery_says(service: Service, app: Any) -> None:
    service.keeper()
    service.worker("prefork", 4)

    # A rejected task's exception is its Reject, with a traceback
    rejected = app.send_task("test.reject", [service.log, False])
    raised = rejected.get(timeout=20, propagate=False)
    assert isinstance(raised, Reject)
    assert raised.reason == "not now"
    assert "raise Reject" in rejected.traceback

    # Only result_extended says what was called
    added = app.send_task("test.add", [2], {"y": 3})
    assert added.get(timeout=20) == 5
    assert isinstance(added.date_done, datetime)
    names = ("name", "args", "kwargs", "worker", "retries", "queue")
    assert [getattr(added, name) for name in names] == [None] * 6
    app.conf.result_extended = True
    again = app.AsyncResult(added.id)
    again.backend.reload_task_result(added.id)
    worker = service.client.job(added.id).worker
    said = [getattr(again, name) for name in names]
    assert said == ["test.add", [2], {"y": 3}, worker, 0, "celery"]

    # An ignored result ends get(), and reads as if nothing were stored
    ignored = app.send_task("test.auto", [service.log])
    assert ignored.get(timeout=20) is None
    assert (ignored.state, ignored.info) == ("PENDING", None)
    assert service.client.job(ignored.id).state == "failed"

    # get() tells what it sees while it waits, and a set tells each of its results as it ends
    told: list[str] = []
    slow = app.send_task("test.progress", [service.gate])
    service.until(lambda: slow.state == "PROGRESS")

    def on_message(meta: dict[str, Any]) -> None:
        told.append(meta["status"])
        service.open_gate()

    passed: list[None] = []
    assert slow.get(timeout=20, on_message=on_message, on_interval=lambda: passed.append(None))
    assert told == ["PROGRESS", "SUCCESS"]
    assert passed
    several = ResultSet([app.send_task("test.add", [n, n]) for n in range(3)], app=app)
    assert several.join_native(timeout=20) == [0, 2, 4]
    assert sorted(meta["result"] for _, meta in several.iter_native(timeout=20)) == [0, 2, 4]

    # Groups are kept, and forgotten
    grouped: Any = group(app.signature("test.add", (n, 1)) for n in range(2)).apply_async()
    grouped.save()
    assert app.GroupResult.restore(grouped.id).get(timeout=20) == [1, 2]
    grouped.delete()
    assert app.GroupResult.restore(grouped.id) is None


def test_a_repeated_id_answers_the_same_job_and_never_hangs(service: Service, app: Any) -> None:
    service.worker()
    first = app.send_task("test.add", [1, 1], task_id="again")
    assert first.get(timeout=20) == 2
    second = app.send_task("test.add", [1, 1], task_id="again")
    assert (second.id, second.get(timeout=5)) == ("again", 2)


def test_a_strategy_of_a_tasks_own_ends_the_worker_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app: Any = Celery("batches", set_as_current=False, broker="memory://")
    refuse_strategies(app)  # Celery's own tasks have none

    class Batches(Task):  # type: ignore[type-arg] # not generic at run time
        abstract = True
        Strategy = "celery_batches:Strategy"

    def together(requests: Any) -> None: ...

    app.task(together, base=Batches, name="shop.together", shared=False)
    with pytest.raises(SystemExit) as ended:
        refuse_strategies(app)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: Task 'shop.together' has a Strategy of its own (celery_batches:")
    assert "Traceback" not in said
