"""Jobs run in Celery's pool of threads without a future for each."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator

import pytest
from celery.concurrency import thread as celery_thread
from celery.concurrency.thread import TaskPool

from worker.runtime.threads import NoThread, Threads, without_futures

PATIENCE = 30.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(2)
    yield made
    made.shutdown(cancel_futures=True)


class Gate:
    """Jobs that tell that they have begun, and then wait."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.begun.release()
        assert self.opened.wait(PATIENCE)


def test_as_many_run_at_once_as_there_may_be_threads_and_no_more(threads: Threads) -> None:
    gate = Gate()
    for _ in range(3):
        threads.submit(gate.pass_through)
    assert gate.begun.acquire(timeout=PATIENCE) and gate.begun.acquire(timeout=PATIENCE)
    assert not gate.begun.acquire(timeout=0.1), "two threads, two jobs"
    gate.opened.set()
    assert gate.begun.acquire(timeout=PATIENCE)
    assert len(threads._threads) == 2


def test_a_thread_survives_what_fails_in_it_and_says_so(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    for _ in range(2):  # one for each thread
        threads.submit(int, "no number")
    threads.submit(done.set)
    assert done.wait(PATIENCE)
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {record.getMessage() for record in told} == {"A job's thread failed outside of the job"}
    assert all(record.exc_info and record.exc_info[0] is ValueError for record in told)


def test_what_has_not_begun_is_dropped_at_the_end_and_what_runs_is_waited_for() -> None:
    threads, gate, late = Threads(1), Gate(), threading.Event()
    threads.submit(gate.pass_through)
    assert gate.begun.acquire(timeout=PATIENCE)
    threads.submit(late.set)
    ending = threading.Thread(target=threads.shutdown, kwargs={"cancel_futures": True})
    ending.start()
    gate.opened.set()
    ending.join(PATIENCE)
    assert not ending.is_alive() and not late.is_set()
    with pytest.raises(NoThread, match="shut down"):
        threads.submit(late.set)


def test_a_job_runs_in_another_thread_where_no_more_can_be_started(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThread, match="can't start"):
            threads.submit(done.set)
    threads.submit(int)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        threads.submit(done.set)
        assert done.wait(PATIENCE)
    assert len(threads._threads) == 1


def test_celerys_pool_runs_in_it() -> None:
    # Given Celery's pool of threads
    pool = TaskPool(3)
    without_futures(pool)
    assert isinstance(pool.executor, Threads)  # type: ignore[attr-defined] # it has one
    ended: list[str] = []
    done = threading.Event()

    def end(value: str) -> None:
        ended.append(value)
        done.set()

    # When it is handed a job
    accepted: list[int] = []
    pool.apply_async(
        str.upper, args=("a",), callback=end, accept_callback=lambda pid, _: accepted.append(pid)
    )
    # Then it runs, and Celery's words about the pool are right
    assert done.wait(PATIENCE)
    assert ended == ["A"] and len(accepted) == 1
    assert pool._get_info()["threads"] == 1  # type: ignore[attr-defined] # it has it
    pool.on_stop()


def test_a_pool_that_runs_something_already_is_left_as_it_is() -> None:
    pool = TaskPool(1)
    done = threading.Event()
    pool.apply_async(lambda: None, callback=lambda _: done.set())
    assert done.wait(PATIENCE)
    without_futures(pool)
    assert not isinstance(pool.executor, Threads)  # type: ignore[attr-defined] # it has one
    pool.on_stop()


def test_celery_uses_of_its_executor_what_is_there() -> None:
    source = inspect.getsource(celery_thread)
    assert source.count("self.executor") == source.count("self.executor = ") + sum(
        source.count(f"self.executor.{name}")
        for name in ("submit(", "shutdown(cancel_futures=True)", "_threads)")
    )
    assert "self.get = self.f.result" in source
