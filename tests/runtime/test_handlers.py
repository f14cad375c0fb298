"""Which code of the user's makes an end be committed first, and what an early end does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.fixups import django

from tests.ledger import given
from worker.broker.doorbells import Doorbells
from worker.errors import Conflict, LedgerUnavailable
from worker.jobs.job import Fence
from worker.jobs.message import new_job
from worker.ledger.database import Ledger
from worker.ledger.read import read
from worker.runtime.execution import Execution, execution_of, running
from worker.runtime.handlers import EarlyEnds, End, Ends, await_commit, has_handlers
from worker.runtime.publish import Publisher
from worker.settings import Settings

FENCE = Fence("job", 1, "lease")


def _task(**attributes: Any) -> Any:
    app: Any = Celery("handlers", set_as_current=False, broker="memory://")
    cls = type("Custom", (Task,), {**attributes, "abstract": True})
    return app.task(_hook, name="handlers.task", base=cls, shared=False)


def _hook(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("hook", "after"),
    [
        ("on_success", {Ends.SUCCESS}),
        ("on_failure", {Ends.FAILURE}),
        ("on_retry", {Ends.RETRY}),
        ("after_return", {Ends.SUCCESS, Ends.FAILURE}),
        ("before_start", set()),
        ("on_replace", set()),
    ],
)
def test_a_hook_of_the_tasks_class_counts_for_the_ends_that_call_it(
    hook: str, after: set[End]
) -> None:
    assert {end for end in Ends.ALL if has_handlers(_task(**{hook: _hook}), end)} == after
    assert not any(has_handlers(_task(), end) for end in Ends.ALL)


@pytest.fixture
def connected() -> Iterator[Callable[..., None]]:
    undo: list[tuple[Any, Any, Any]] = []

    def connect(signal: Any, receiver: Any, sender: Any = None) -> None:
        signal.connect(receiver, sender=sender)
        undo.append((signal, receiver, sender))

    yield connect
    for signal, receiver, sender in undo:
        signal.disconnect(receiver, sender=sender)


@pytest.mark.parametrize(
    ("signal", "after"),
    [
        ("task_success", {Ends.SUCCESS}),
        ("task_failure", {Ends.FAILURE}),
        ("task_retry", {Ends.RETRY}),
        ("task_postrun", {Ends.SUCCESS, Ends.FAILURE, Ends.RETRY}),
        ("task_revoked", {Ends.REVOKED}),
        ("task_prerun", set()),
        ("task_received", set()),
    ],
)
def test_a_receiver_counts_for_its_sender_and_celerys_own_do_not(
    signal: str, after: set[End], connected: Callable[..., None]
) -> None:
    task, other = _task(), _task()

    def receiver(**_: Any) -> None: ...

    connected(getattr(signals, signal), receiver, task)
    assert {end for end in Ends.ALL if has_handlers(task, end)} == after
    assert not any(has_handlers(other, end) for end in Ends.ALL)


def test_celerys_django_fixup_is_no_handler(connected: Callable[..., None]) -> None:
    cls: Any = vars(django)["DjangoWorkerFixup"]
    fixup = cls.__new__(cls)
    connected(signals.task_postrun, fixup.on_task_postrun)
    assert not has_handlers(_task(), Ends.SUCCESS)


def _early(ledger: Any, settings: Settings) -> EarlyEnds:
    return EarlyEnds(lambda: ledger, lambda: Doorbells(settings.redis_url.get_secret_value()))


def _succeeded(fence: Fence) -> Execution:
    execution = Execution(fence)
    execution.succeed(b"1", "application/json", None)
    return execution


def test_an_early_end_is_in_the_ledger_and_stands(settings: Settings) -> None:
    ledger = Ledger(settings.database_url.get_secret_value())
    publish = Publisher(ledger, 1 << 20)
    fence = given.running(ledger, "a")
    early = _early(ledger, settings)
    with running(fence) as execution:
        execution.succeed(b"1", "application/json", None)
        before = execution.is_over
        early.commit(execution)
        assert (before, execution.is_over) == (True, False)  # the ledger says it from here on
        # It is written, and what the handlers raise changes nothing
        job = read(ledger, "a")
        assert job is not None
        assert (job.state, job.result) == ("succeeded", b"1")
        execution.fail(None, None, "on_success raised", None)
        assert execution.finish().state == "succeeded"
        # What they enqueue is a row at once; a retry of what has ended is refused
        assert publish(new_job("test.add")) is not None
        with pytest.raises(Conflict, match="has ended already"):
            publish(new_job("test.add", job_id="a"))
    ledger.close()


def test_an_end_that_the_fence_refuses_is_left_to_the_writer(settings: Settings) -> None:
    ledger = Ledger(settings.database_url.get_secret_value())
    fence = given.running(ledger, "a")
    execution = _succeeded(Fence(fence.id, fence.attempt + 1, fence.lease))
    _early(ledger, settings).commit(execution)
    assert execution.committed is None
    assert not execution.is_over  # and nobody reads what is not so
    ledger.close()


def test_what_a_handler_sends_after_a_refused_end_is_a_row(settings: Settings) -> None:
    ledger = Ledger(settings.database_url.get_secret_value())
    publish = Publisher(ledger, 1 << 20)
    fence = given.running(ledger, "a")
    sent = new_job("test.add")
    with running(Fence(fence.id, fence.attempt + 1, fence.lease)) as execution:
        execution.ending = True
        execution.succeed(b"1", "application/json", None)
        _early(ledger, settings).commit(execution)
        assert execution.is_stale

        assert publish(sent) is not None  # its id is the caller's from here on

    assert not execution.outbox
    assert read(ledger, sent.id) is not None
    ledger.close()


def test_without_postgres_nobody_waits_twice(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[None] = []

    class Away:
        def run_each(self, work: Any) -> None:
            asked.append(None)
            raise LedgerUnavailable("Postgres is away")

    early = _early(Away(), settings)
    for execution in (_succeeded(FENCE), _succeeded(FENCE)):
        early.commit(execution)
        assert execution.committed is None
        assert execution.is_over  # here it can be read all the same
    assert len(asked) == 1
    assert "after its handlers" in caplog.text


@pytest.mark.parametrize(("failing", "is_held"), [(True, True), (False, False)])
def test_without_postgres_the_event_loop_waits_for_no_end(
    failing: bool, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    process: Any = SimpleNamespace(
        claims=SimpleNamespace(fence_of=lambda _: FENCE),
        writer=SimpleNamespace(failing=False),
        lease=SimpleNamespace(is_held=True),
    )

    def found_away(seconds: float) -> None:
        waits.append(seconds)
        process.writer.failing, process.lease.is_held = failing, is_held

    monkeypatch.setattr("worker.runtime.handlers.time.sleep", found_away)

    assert not await_commit(process, FENCE)  # it is found to be away while this waits
    assert len(waits) == 1
    assert not await_commit(process, FENCE)  # and is known to be
    assert len(waits) == 1


def test_the_threads_of_a_task_find_its_attempt() -> None:
    import threading

    found: list[Execution | None] = []
    with running(FENCE) as execution:
        thread = threading.Thread(target=lambda: found.append(execution_of("job")))
        thread.start()
        thread.join()
    assert found == [execution]
    assert execution_of("job") is None
