"""Violations to plant into a staged run: of what follows other jobs, and of what expires."""

from __future__ import annotations

import time

from tests.chaos.planted import plants
from tests.chaos.staged import CLIENT, Stage
from worker.jobs.states import State
from worker.ledger.change import cancel


@plants("early-step")
def a_chains_step_runs_before_its_parent_has_succeeded(stage: Stage) -> None:
    parent = stage.accepted("noop")
    stage.succeed("w1", stage.follower("noop", parent), "noop")
    stage.succeed("w1", parent, "noop")


@plants("early-step")
def a_chords_body_runs_before_its_last_part(stage: Stage) -> None:
    parts = [stage.accepted("noop") for _ in range(2)]
    body = stage.follower("noop", *parts)
    stage.succeed("w1", parts[0], "noop")
    stage.succeed("w1", body, "noop")
    stage.succeed("w1", parts[1], "noop")


@plants("early-step")
def an_errback_runs_before_the_failure(stage: Stage) -> None:
    parent = stage.accepted("failing")
    stage.succeed("w1", stage.follower("noop", parent, upon="failure"), "noop")
    stage.fail("w1", parent, "failing")


@plants("early-step", "illegal-move", "wrong-end")  # it was enqueued, and has succeeded
def a_step_runs_after_a_failure(stage: Stage) -> None:
    parent = stage.accepted("failing")
    stage.fail("w1", parent, "failing")
    stage.succeed("w1", stage.follower("noop", parent), "noop")


@plants("lost")
def a_step_of_a_failed_chain_is_never_ended(stage: Stage) -> None:
    parent = stage.accepted("failing")
    stage.follows("never", "noop", parent)
    stage.fail("w1", parent, "failing")


@plants("lost", "waits-in-vain")
def a_replaced_job_waits_for_ever(stage: Stage) -> None:
    stage.replaced("w1", stage.accepted("replacing"))


@plants("missing-step")
def a_link_never_comes(stage: Stage) -> None:
    parent = stage.accepted("noop")
    stage.follows("never", "noop", parent, is_given=False)
    stage.succeed("w1", parent, "noop")


@plants("missing-step")
def an_errback_never_comes(stage: Stage) -> None:
    parent = stage.accepted("failing")
    stage.follows("never", "noop", parent, upon="failure", is_given=False)
    stage.fail("w1", parent, "failing")


@plants("recorded-twice", "illegal-move")
def a_chords_body_is_recorded_twice(stage: Stage) -> None:
    part = stage.accepted("noop")
    stage.succeed("w1", part, "noop")
    body = stage.follower("noop", part)
    stage.succeed("w1", body, "noop")
    for state in (State.FAILED, State.SUCCEEDED):
        stage.sql("w1", f"UPDATE ledger.jobs SET state = '{state}' WHERE id = %(job)s", job=body)


@plants("illegal-move", "dead-letter-without-evidence", "wrong-end")
def a_step_is_ended_though_its_parent_succeeded(stage: Stage) -> None:
    parent = stage.accepted("noop")
    stage.follows("given-up", "noop", parent)
    stage.ended("given-up", error="an earlier step failed")
    stage.succeed("w1", parent, "noop")


@plants("unfinished")
def what_joins_a_chord_waits_for_ever(stage: Stage) -> None:
    part = stage.accepted("noop")
    stage.succeed("w1", part, "noop")
    stage.enqueued("noop", task="celery.chord_unlock", kwargs={"result": [[[part, None], None]]})


@plants("started-late")
def an_expired_job_is_started(stage: Stage) -> None:
    job = stage.expiring(0.5)
    stage.age(job, 10)
    stage.succeed("w1", job, "expiring")


@plants("started-late")
def a_step_of_the_clock_does_not_forgive_all(stage: Stage) -> None:
    job = stage.expiring(0.5)
    stage.age(job, 10)
    stage.nemesis.note("step", seconds=-3600.0, t=time.monotonic() - 5)
    stage.succeed("w1", job, "expiring")


@plants("expired-early")
def a_job_is_cancelled_before_it_expires(stage: Stage) -> None:
    cancel(stage.ledger(CLIENT), stage.expiring(60), "expired before it was started")
