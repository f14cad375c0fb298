"""Violations to plant into a staged run: jobs that wait for what will never come."""

from __future__ import annotations

import json
from typing import Any

from tests.chaos.planted import plants
from tests.chaos.staged import KEEPER, Stage


def step(job: str) -> dict[str, Any]:
    """A job, as Celery names it in another one's message."""
    return {"task": "chaos.noop", "kwargs": {}, "options": {"task_id": job}, "subtask_type": None}


def say(stage: Stage, job: str, body: list[Any], task: str = "chaos.failing") -> None:
    """Give a job's message this body."""
    statement = "UPDATE ledger.jobs SET body = %(body)s, task = %(task)s WHERE id = %(job)s"
    stage.sql(KEEPER, statement, body=json.dumps(body).encode(), task=task, job=job)


@plants("waits-in-vain")
def a_failed_chains_next_step_is_not_there(stage: Stage) -> None:
    job = stage.accepted("failing")
    stage.fail("w1", job, "failing")
    say(stage, job, [[], {}, {"chain": [step("never")]}])


@plants("waits-in-vain")
def what_nests_in_a_later_step_is_not_there(stage: Stage) -> None:
    job = stage.accepted("failing")
    stage.fail("w1", job, "failing")
    header = {"subtask_type": "group", "kwargs": {"tasks": [step("in the header")]}, "options": {}}
    chord = {"subtask_type": "chord", "kwargs": {"header": header, "body": step("the body")},
             "options": {"task_id": "the group"}}  # fmt: skip
    say(stage, job, [[], {}, {"chain": [chord]}])


@plants("waits-in-vain")
def the_body_of_a_cancelled_chord_is_not_there(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.cancelled(job)
    say(stage, job, [["group", step("body")], {}, {}], "celery.chord_unlock")


@plants("waits-in-vain", "lost")
def a_job_waits_for_a_replacement_that_ended(stage: Stage) -> None:
    job = stage.accepted("noop", delay=3600)
    stage.sql(KEEPER, "UPDATE ledger.jobs SET run_at = 'infinity' WHERE id = %(job)s", job=job)
