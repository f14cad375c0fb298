"""Violations to plant into a staged run: of executions, evidence, ends and leases."""

from __future__ import annotations

import time

from tests.chaos.planted import plants
from tests.chaos.staged import CLIENT, KEEPER, Stage, success
from worker.jobs.job import Finish
from worker.jobs.states import State
from worker.ledger.change import cancel


@plants("double-run")
def a_job_runs_under_two_live_leases(stage: Stage) -> None:
    job = stage.accepted("sleep")
    first = stage.claim("w1", job)
    said = stage.start("w1", first, "sleep")
    stage.finish("w1", Finish(first, State.QUEUED, "released", error="given back while it runs"))
    second = stage.claim("w2", job)
    beside = stage.start("w2", second, "sleep")
    stage.cancelled(job)
    later = time.monotonic() + 1
    stage.end("w1", said, t=later)
    stage.end("w2", beside, t=later)


@plants("unclaimed-run")
def an_execution_was_never_granted(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.end("w1", stage.start("w1", fence, "noop", lease="nobody's"))
    stage.end("w1", stage.start("w1", fence, "noop", attempt=7))


@plants("unclaimed-run")
def an_execution_begins_before_it_is_granted(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("noop"))
    said = stage.start("w1", fence, "noop", t=time.monotonic() - 1)
    stage.finish("w1", success(fence, stage.end("w1", said)))


@plants("unclaimed-run")
def an_attempt_is_executed_twice(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.end("w1", stage.start("w1", fence, "noop"))


@plants("unaccounted-attempt")
def an_attempt_leaves_no_outcome(stage: Stage) -> None:
    job = stage.accepted("flaky")
    stage.retry("w1", job, "flaky")
    stage.succeed("w1", job, "flaky")
    stage.sql("w1", "DELETE FROM ledger.attempts WHERE job_id = %(job)s", job=job)


@plants("dead-letter-without-evidence")
def a_dead_letter_has_no_error(stage: Stage) -> None:
    stage.fail("w1", stage.accepted("failing"), "failing", error=None)


@plants("dead-letter-without-evidence")
def a_dead_letter_has_no_traceback(stage: Stage) -> None:
    stage.fail("w1", stage.accepted("failing"), "failing", traceback=None)


@plants("dead-letter-without-evidence")
def a_job_is_poison_too_soon(stage: Stage) -> None:
    job = stage.accepted("dying")
    for loss in (1, 2):
        stage.lose_child("w1", job, "dying", poison=loss == 2)


@plants("dead-letter-without-evidence")
def a_loss_does_not_say_when_it_began(stage: Stage) -> None:
    job = stage.accepted("dying")
    for loss in (1, 2, 3):
        stage.lose_child("w1", job, "dying", poison=loss == 3)
    stage.sql("w1", "UPDATE ledger.attempts SET started_at = NULL WHERE number = 2")


@plants("innocent-condemned")
def an_innocent_is_poison(stage: Stage) -> None:
    job = stage.accepted("noop")
    for loss in (1, 2, 3):
        stage.lose_child("w1", job, "noop", poison=loss == 3)


@plants("wrong-end")
def a_job_fails_that_should_succeed(stage: Stage) -> None:
    stage.fail("w1", stage.accepted("noop"), "noop")


@plants("wrong-end")
def a_job_succeeds_that_should_fail(stage: Stage) -> None:
    stage.succeed("w1", stage.accepted("failing"), "failing")


@plants("wrong-end")
def a_poison_only_fails(stage: Stage) -> None:
    stage.fail("w1", stage.accepted("dying"), "dying")


@plants("wrong-end")
def a_job_is_cancelled_unasked(stage: Stage) -> None:
    cancel(stage.ledger(CLIENT), stage.accepted("noop"), "nobody asked")


@plants("wrong-end")
def a_cancelled_job_succeeds(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.producer.note("cancelled", job=fence.id)


@plants("wrong-end")
def a_kind_is_unknown(stage: Stage) -> None:
    stage.succeed("w1", stage.accepted("surprise"), "surprise")


@plants("false-rescue")
def a_lease_is_ended_before_it_expired(stage: Stage) -> None:
    fence = stage.claim("alive", stage.accepted("sleep"))
    stage.sql(KEEPER, "DELETE FROM ledger.workers WHERE lease = %(lease)s", lease=fence.lease)
    stage.rescue()
    stage.rerun("next", "sleep")


@plants("false-rescue")
def an_idle_lease_is_ended_before_it_expired(stage: Stage) -> None:
    lease = stage.lease("alive")
    stage.sql(KEEPER, "DELETE FROM ledger.workers WHERE lease = %(lease)s", lease=lease)


@plants("false-rescue")
def a_lease_is_cut_short_and_ended(stage: Stage) -> None:
    fence = stage.claim("alive", stage.accepted("sleep"))
    stage.sql(
        KEEPER,
        "UPDATE ledger.workers SET expires_at = clock_timestamp() WHERE lease = %(lease)s",
        lease=fence.lease,
    )
    stage.rescue()
    stage.rerun("next", "sleep")


@plants("false-rescue")
def a_job_is_taken_while_its_lease_stands(stage: Stage) -> None:
    fence = stage.claim("alive", stage.accepted("sleep"))
    stage.finish(KEEPER, Finish(fence, State.QUEUED, "lost", error="it seemed so"))
    stage.succeed("w1", fence.id, "sleep")
