"""Violations to plant into a staged run: of how attempts begin, end, are noted and counted."""

from __future__ import annotations

import time
from typing import Any

from tests.chaos.attempt_rules import ABOUT
from tests.chaos.planted import plants
from tests.chaos.staged import KEEPER, Stage, success
from worker.jobs.job import Fence, Finish
from worker.jobs.states import State

_NOTE = (
    "INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker)"
    " VALUES (%(job)s, %(number)s, %(outcome)s, %(lease)s, %(worker)s)"
)


def note(stage: Stage, worker: str, fence: Fence, outcome: str, number: int | None = None) -> None:
    """Write an attempt's row past the ledger's own code."""
    told = {"job": fence.id, "number": number or fence.attempt, "lease": fence.lease}
    stage.sql(worker, _NOTE, outcome=outcome, worker=worker, **told)


def released(fence: Fence) -> Finish:
    """The attempt was given back."""
    return Finish(fence, State.QUEUED, "released", error="given back")


def retried(
    stage: Stage, kind: str, arguments: dict[str, Any] | None = None, *, times: int = 1
) -> None:
    """A job that asked for another attempt so many times, and then succeeded."""
    job = stage.accepted(kind, arguments)
    for _ in range(times):
        stage.retry("w1", job, kind)
    stage.succeed("w1", job, kind)


@plants("unearned-end")
def a_failure_was_never_executed(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("failing"))
    end = Finish(fence, State.FAILED, "failed", error="ValueError: no", traceback="Traceback")
    stage.finish("w1", end)


@plants("unearned-end")
def what_returned_is_recorded_as_failed(stage: Stage) -> None:
    fence, _ = stage.run("w1", stage.accepted("failing"), "failing")
    end = Finish(fence, State.FAILED, "failed", error="ValueError: no", traceback="Traceback")
    stage.finish("w1", end)


@plants("unearned-end")
def a_retry_was_never_executed(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.retry_recorded("w1", stage.claim("w1", job))
    stage.succeed("w1", job, "noop")


@plants("unearned-end")
def a_retry_is_written_at_once_before_it_is_asked_for(stage: Stage) -> None:
    job = stage.accepted("noop")
    fence = stage.claim("w1", job)
    stage.end("w1", stage.start("w1", fence, "noop"), "retried", t=time.monotonic() + 1)
    stage.retry_recorded("w1", fence)
    stage.cancelled(job)


@plants("unearned-end")
def an_old_attempts_retry_is_written_over_the_new_one_by_the_same_worker(stage: Stage) -> None:
    job = stage.accepted("sleep")
    old = stage.claim("w1", job)
    said = stage.start("w1", old, "sleep")
    stage.finish("w1", released(old))
    new = stage.claim("w1", job)
    now = time.monotonic()
    beside = stage.start("w1", new, "sleep", t=now)
    stage.end("w1", said, "retried", t=now)
    stage.retry_recorded("w1", new)
    stage.end("w1", beside, t=now)
    stage.succeed("w1", job, "sleep")


@plants("executions")
def a_flaky_job_succeeds_at_once(stage: Stage) -> None:
    stage.succeed("w1", stage.accepted("flaky"), "flaky")


@plants("executions")
def a_flaky_job_succeeds_too_soon(stage: Stage) -> None:
    retried(stage, "flaky", {"failures": 2})


@plants("executions")
def a_flaky_job_is_retried_too_often(stage: Stage) -> None:
    retried(stage, "flaky", {"failures": 1}, times=2)


@plants("executions")
def a_countdown_is_ignored(stage: Stage) -> None:
    retried(stage, "retrying", {"failures": 1, "countdown": 30.0})


@plants("attempt-mismatch")
def a_success_is_noted_as_lost(stage: Stage) -> None:
    note(stage, "w1", stage.succeed("w1", stage.accepted("noop"), "noop"), "lost")


@plants("attempt-mismatch")
def an_attempt_is_noted_that_was_never_granted(stage: Stage) -> None:
    note(stage, "w1", stage.succeed("w1", stage.accepted("noop"), "noop"), "released", number=7)


@plants("attempt-mismatch")
def a_retry_is_noted_as_given_back(stage: Stage) -> None:
    retried(stage, "noop")
    stage.sql("w1", "UPDATE ledger.attempts SET outcome = 'released'")


@plants("attempt-mismatch")
def a_retry_is_noted_under_another_lease(stage: Stage) -> None:
    retried(stage, "noop")
    stage.sql("w1", "UPDATE ledger.attempts SET lease = 'another'")


@plants("attempt-mismatch")
def an_attempt_is_lost_and_no_process_died(stage: Stage) -> None:
    job = stage.accepted("noop")
    fence, _ = stage.run("w1", job, "noop")
    stage.finish("w1", Finish(fence, State.QUEUED, "lost", error="it seemed so"))
    stage.succeed("w1", job, "noop")


@plants("attempt-mismatch")
def an_attempt_is_lost_unexecuted_and_no_process_died(stage: Stage) -> None:
    job = stage.accepted("noop")
    end = Finish(stage.claim("w1", job), State.QUEUED, "lost", error="it seemed so")
    stage.finish("w1", end)
    stage.succeed("w1", job, "noop")


@plants("unaccounted-attempt")
def an_attempt_that_was_cancelled_leaves_no_outcome(stage: Stage) -> None:
    fence, _ = stage.run("w1", stage.accepted("sleep"), "sleep")
    stage.cancelled(fence.id)
    stage.sql("w1", "DELETE FROM ledger.attempts")


@plants("miscounted-loss")
def losses_are_counted_that_never_were(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.sql("w1", "UPDATE ledger.jobs SET lost = 7 WHERE id = %(job)s", job=fence.id)


@plants("miscounted-loss")
def losses_are_counted_past_the_audit(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    with stage.unaudited():
        stage.sql("w1", "UPDATE ledger.jobs SET lost = 2 WHERE id = %(job)s", job=fence.id)


@plants("miscounted-loss")
def what_is_given_back_counts_as_lost(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("noop"))
    stage.sql(
        "w1", "UPDATE ledger.jobs SET state = 'queued', lost = 1 WHERE id = %(job)s", job=fence.id
    )
    note(stage, "w1", fence, "released")
    stage.succeed("w1", fence.id, "noop")


@plants("miscounted-loss")
def a_loss_beside_another_is_counted(stage: Stage) -> None:
    fences = [stage.claim("dead", stage.accepted("noop")) for _ in range(2)]
    stage.die("dead")
    stage.sql(
        KEEPER,
        "DELETE FROM ledger.workers WHERE name = 'dead';"
        " UPDATE ledger.jobs SET state = 'queued', lost = 1 WHERE id = ANY(%(jobs)s)",
        jobs=[fence.id for fence in fences],
    )
    for fence in fences:
        note(stage, "dead", fence, "lost")
        stage.succeed("w1", fence.id, "noop")


@plants("miscounted-loss")
def a_success_keeps_the_losses_before_it(stage: Stage) -> None:
    job = stage.accepted("dying_once")
    stage.lose_child("w1", job, "dying_once")
    _, result = stage.run("w1", job, "dying_once")
    stage.sql(
        "w1",
        "UPDATE ledger.jobs SET state = 'succeeded', result = %(result)s WHERE id = %(job)s",
        job=job,
        result=result,
    )


@plants("miscounted-loss")
def a_job_at_the_limit_of_losses_is_tried_again(stage: Stage) -> None:
    job = stage.accepted("dying_once")
    for _ in range(3):
        stage.lose_child("w1", job, "dying_once")
    stage.succeed("w1", job, "dying_once")


@plants("late-start")
def a_zombie_starts_what_has_ended_elsewhere(stage: Stage) -> None:
    fence = stage.claim("zombie", stage.accepted("sleep"))
    stage.die("zombie")
    stage.rescue()
    stage.rerun("next", "sleep")
    later = time.monotonic() + 1
    stage.end("zombie", stage.start("zombie", fence, "sleep", t=later), t=later)


@plants("late-start")
def a_stopped_process_starts_half_of_what_it_held(stage: Stage) -> None:
    fences = [stage.claim("stopped", stage.accepted("sleep")) for _ in range(2 * ABOUT + 2)]
    stage.die("stopped")
    stage.rescue()
    for number in range(len(fences)):
        stage.rerun(f"next-{number}", "sleep")
    stage.stop("stopped", 60)
    later = time.monotonic() + 1
    for fence in fences[: ABOUT + 1]:
        stage.end("stopped", stage.start("stopped", fence, "sleep", t=later), t=later)


@plants("late-start")
def what_was_given_back_is_started(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("sleep"))
    stage.finish("w1", released(fence))
    stage.cancelled(fence.id)
    later = time.monotonic() + 1
    stage.end("w1", stage.start("w1", fence, "sleep", t=later), t=later)


@plants("late-start")
def what_was_cancelled_is_started_a_lease_later(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("sleep"))
    stage.cancelled(fence.id)
    later = time.monotonic() + 700
    stage.end("w1", stage.start("w1", fence, "sleep", t=later), t=later)


@plants("stale-write")
def a_success_is_written_before_it_is_returned(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("noop"))
    said = stage.start("w1", fence, "noop")
    stage.finish("w1", success(fence, stage.end("w1", said, t=time.monotonic() + 1)))
