"""What an attempt collects until it ends. Rules 15, 16, 18."""

from __future__ import annotations

from worker.jobs.job import Ended, Fence, NewJob
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.runtime.execution import Execution, clean, current, running

FENCE = Fence("job", 2, "lease")


def _job(delay: float | None = None) -> NewJob:
    return new_job("test.add", [1, 1], delay=delay)


def test_a_success_carries_what_was_published_after_the_return() -> None:
    execution = Execution(FENCE)
    execution.outbox.append(_job())
    execution.succeed(b"1", "application/json", None)
    end = execution.finish()
    assert (end.state, end.fence, len(end.outbox)) == (State.SUCCEEDED, FENCE, 1)


def test_a_failure_drops_what_a_success_had_published() -> None:
    # The callbacks were published, and then the result could not be encoded.
    execution = Execution(FENCE)
    execution.outbox.append(_job())
    execution.fail(b"{}", "application/json", "EncodeError: no", None)
    execution.outbox.append(_job())  # an errback
    execution.ended.append(Ended("later", "test.add", State.FAILED))
    end = execution.finish()
    assert (end.state, len(end.outbox), len(end.ended)) == (State.FAILED, 1, 1)


def test_a_retry_wins_over_a_later_return_and_keeps_its_reason() -> None:
    execution = Execution(FENCE)
    execution.retry = _job(delay=3.0)
    execution.note_retry("ValueError: x", "tb")
    execution.succeed(b"1", "application/json", None)
    end = execution.finish()
    assert (end.state, end.outcome, end.delay) == (State.SCHEDULED, "retried", 3.0)
    assert end.replacement is execution.retry
    assert end.error == "ValueError: x"
    assert end.result is None


def test_a_retry_without_delay_is_queued_at_once() -> None:
    execution = Execution(FENCE)
    execution.retry = _job()
    assert execution.finish().state is State.QUEUED


def test_a_second_retry_replaces_the_first() -> None:
    execution = Execution(FENCE)
    execution.retry = _job(delay=1.0)
    execution.retry = second = _job(delay=2.0)
    assert execution.finish().replacement is second


def test_the_running_attempt_is_known_only_while_it_runs() -> None:
    assert current() is None
    with running(FENCE) as execution:
        assert current() is execution
    assert current() is None


def test_texts_become_what_postgres_can_hold() -> None:
    assert clean("a\0b", 100) == "a\\0b"
    assert clean("\ud800", 100) == "?"
    assert clean(None, 5) is None
    long = clean("x" * 1000, 100)
    assert long is not None
    assert len(long) <= 100
