"""What an attempt collects until it ends. Rules 15, 16, 18."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace

from worker.jobs.job import Ended, Fence, Message, NewJob
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger.database import Ledger
from worker.ledger.read import read_many
from worker.runtime.execution import Execution, clean, current, running
from worker.runtime.publish import Publisher
from worker.settings import Settings

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


def test_what_many_later_steps_share_is_held_once() -> None:
    execution = Execution(FENCE)
    for number in range(3):  # each step's exception is encoded anew
        result, told = bytes([1]) * 5000, "".join(["Trace"] * 1000)
        execution.note_ended(
            Ended(f"step {number}", "test.add", State.FAILED, result, "json", None, told)
        )
    first, *others = execution.ended
    assert [one.id for one in others] == ["step 1", "step 2"]
    for other in others:
        assert other.result is first.result
        assert other.traceback is first.traceback


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


def test_a_context_that_outlives_the_attempt_or_its_thread_publishes_rows(
    settings: Settings,
) -> None:
    # A task that starts something of asyncio's hands its context on: to other threads, for ever.
    ledger = Ledger(settings.database_url.get_secret_value())
    publish = Publisher(ledger, 1 << 20)
    meanwhile, afterwards = _job(), _job()
    with running(FENCE) as execution:
        execution.ending = True
        context = copy_context()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(context.run, publish, meanwhile).result() is not None
        assert publish(_job()) is None

    assert context.run(current) is None
    assert context.run(publish, afterwards) is not None
    assert len(execution.outbox) == 1
    assert len(read_many(ledger, [meanwhile.id, afterwards.id])) == 2
    ledger.close()


def test_texts_become_what_postgres_can_hold() -> None:
    assert clean("a\0b", 100) == "a\\0b"
    assert clean("\ud800", 100) == "?"
    assert clean(None, 5) is None
    long = clean("x" * 1000, 100)
    assert long is not None
    assert len(long) <= 100


def test_a_canvas_that_replaces_the_task_starts_with_its_end_and_not_before(
    settings: Settings,
) -> None:
    # Given a running task, and the first step of the canvas by which it replaces itself
    ledger = Ledger(settings.database_url.get_secret_value())
    publish = Publisher(ledger, 1 << 20)
    step = _job()
    envelope = json.loads(step.message.envelope)
    envelope["headers"]["replaced_task_nesting"] = 1
    step = replace(step, message=Message(json.dumps(envelope), step.message.body))
    child = _job()
    with running(FENCE) as execution:
        # When both this step and a plain child are published
        assert publish(step) is None
        assert publish(child) is not None
        execution.await_replacement()
        end = execution.finish()
    # Then the child is a row, and the step becomes one with the task's end
    assert [job.id for job in read_many(ledger, [step.id, child.id])] == [child.id]
    assert end.outbox == (step,)
    ledger.close()


def test_what_joins_a_chord_that_replaces_the_task_comes_with_its_end(settings: Settings) -> None:
    # Given a running task, and what Celery sends of a chord by which it replaces itself; an attempt
    # that died in between would leave what looks for ever for parts that were never enqueued
    ledger = Ledger(settings.database_url.get_secret_value())
    publish = Publisher(ledger, 1 << 20)
    joining, other = (
        new_job("celery.chord_unlock", ["group", {"task": "test.add", "options": options}])
        for options in ({"replaced_task_nesting": 1}, {})
    )
    with running(FENCE) as execution:
        assert publish(joining) is None
        assert publish(other) is not None
        execution.await_replacement()
        assert execution.finish().outbox == (joining,)
    ledger.close()
