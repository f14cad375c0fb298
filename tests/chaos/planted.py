"""Violations to plant into a staged run: of what was accepted, recorded and moved."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.staged import CLIENT, KEEPER, Stage, success
from worker.ledger.change import cancel
from worker.ledger.dispatch import dispatch_due

Plant = Callable[[Stage], None]
#: Each plant with the names of the violations that it is; one, wherever one can be without another.
PLANTS: list[tuple[Plant, frozenset[str]]] = []


def plants(*names: str) -> Callable[[Plant], Plant]:
    """Enlist a plant that is caught by these names and no other."""

    def enlist(plant: Plant) -> Plant:
        PLANTS.append((plant, frozenset(names)))
        return plant

    return enlist


@plants("lost")
def an_accepted_job_is_not_there(stage: Stage) -> None:
    stage.producer.note("accepted", job="gone", kind="noop", key=None)


@plants("lost")
def an_accepted_job_waits_for_ever(stage: Stage) -> None:
    stage.accepted("noop")


@plants("lost")
def an_accepted_job_runs_for_ever(stage: Stage) -> None:
    stage.claim("w1", stage.accepted("noop"))


@plants("lost")
def a_tasks_child_is_not_there(stage: Stage) -> None:
    stage.execution("w2").note("accepted", job="gone", kind="noop", key=None, parent="p")


@plants("unfinished")
def an_unsure_job_waits_for_ever(stage: Stage) -> None:
    job = stage.enqueued("noop")
    stage.producer.note("unsure", job=job, kind="noop", key=None, error="away")


@plants("phantom")
def a_job_is_nobodys(stage: Stage) -> None:
    stage.succeed("w1", stage.enqueued("noop"), "noop")


@plants("phantom")
def a_refused_job_is_there(stage: Stage) -> None:
    stage.producer.note("refused", kind="noop", key="r", error="too large")
    stage.succeed("w1", stage.enqueued("noop", key="r"), "noop")


@plants("phantom")
def one_key_gives_two_jobs(stage: Stage) -> None:
    stage.succeed("w1", stage.accepted("noop", key="twice"), "noop")
    job = stage.enqueued("noop")
    stage.producer.note("accepted", job=job, kind="noop", key="twice")
    stage.succeed("w1", job, "noop")


@plants("recorded-twice")
def a_result_changes_after_the_end(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.sql(
        "w1", "UPDATE ledger.jobs SET result = result || ' ' WHERE id = %(job)s", job=fence.id
    )


@plants("recorded-twice")
def an_error_changes_after_the_end(stage: Stage) -> None:
    job = stage.accepted("failing")
    stage.fail("w1", job, "failing")
    stage.sql("w1", "UPDATE ledger.jobs SET error = 'other' WHERE id = %(job)s", job=job)


@plants("recorded-twice", "illegal-move")
def a_job_ends_three_times(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    for state in ("cancelled", "succeeded"):
        stage.sql(
            "w1", f"UPDATE ledger.jobs SET state = '{state}' WHERE id = %(job)s", job=fence.id
        )


@plants("stale-write")
def another_worker_writes_the_end(stage: Stage) -> None:
    stage.lease("w2")
    fence, result = stage.run("w1", stage.accepted("noop"), "noop")
    stage.finish("w2", success(fence, result))


@plants("stale-write", "false-rescue")  # it takes the job from a live lease, too
def the_keeper_writes_a_success(stage: Stage) -> None:
    fence, result = stage.run("w1", stage.accepted("noop"), "noop")
    stage.finish(KEEPER, success(fence, result))


@plants("stale-write")
def a_client_writes_a_success(stage: Stage) -> None:
    fence, result = stage.run("w1", stage.accepted("noop"), "noop")
    stage.finish(CLIENT, success(fence, result))


@plants("stale-write")
def another_worker_cancels(stage: Stage) -> None:
    stage.lease("w2")
    fence, _ = stage.run("w1", stage.accepted("noop"), "noop")
    cancel(stage.ledger("w2"), fence.id, "asked")
    stage.producer.note("cancelled", job=fence.id)


@plants("stale-write")
def the_result_is_an_earlier_attempts(stage: Stage) -> None:
    job = stage.accepted("sleep")
    zombie = stage.start("stopped", stage.claim("stopped", job), "sleep")
    stage.die("stopped")
    stage.rescue()
    fence = stage.claim_alone("next")
    stage.end("next", stage.start("next", fence, "sleep"))
    stage.finish("next", success(fence, stage.end("stopped", zombie)))


@plants("stale-write")
def the_result_is_of_no_execution(stage: Stage) -> None:
    fence, _ = stage.run("w1", stage.accepted("noop"), "noop")
    stage.finish("w1", success(fence, b'{"run": "invented"}'))


@plants("stale-write")
def the_result_has_no_token(stage: Stage) -> None:
    fence, _ = stage.run("w1", stage.accepted("noop"), "noop")
    stage.finish("w1", success(fence, b"\xff"))


@plants("stale-write")
def the_result_is_of_an_execution_without_an_end(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("noop"))
    said = stage.start("w1", fence, "noop")
    stage.finish("w1", success(fence, f'{{"run": "{said["run"]}"}}'.encode()))


@plants("stale-write")
def a_job_without_a_result_succeeds_unexecuted(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("ignoring"))
    stage.finish("w1", success(fence, None))


@plants("illegal-move")
def a_job_succeeds_unclaimed(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.sql(CLIENT, "UPDATE ledger.jobs SET state = 'succeeded' WHERE id = %(job)s", job=job)


@plants("illegal-move")
def a_claim_skips_an_attempt(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.sql(CLIENT, "UPDATE ledger.jobs SET attempt = 1 WHERE id = %(job)s", job=job)
    stage.succeed("w1", job, "noop")


@plants("illegal-move")
def a_job_is_final_from_the_start(stage: Stage) -> None:
    stage.producer.note("accepted", job="final", kind="noop", key=None)
    stage.sql(
        CLIENT,
        "INSERT INTO ledger.jobs (id, task, queue, list, priority, state, fingerprint, envelope,"
        " body) VALUES ('final', 'chaos.noop', 'celery', 'celery', 0, 'succeeded', '', '{}', '')",
    )


@plants("illegal-move")
def a_move_is_not_in_the_audit(stage: Stage) -> None:
    job = stage.accepted("noop", delay=0.001)
    with stage.unaudited():
        while not dispatch_due(stage.ledger(KEEPER), None):
            pass
    stage.succeed("w1", job, "noop")


@plants("illegal-move")
def the_last_move_is_not_in_the_audit(stage: Stage) -> None:
    fence, result = stage.run("w1", stage.accepted("noop"), "noop")
    with stage.unaudited():
        stage.finish("w1", success(fence, result))


@plants("illegal-move")
def a_claim_is_under_a_lease_that_is_gone(stage: Stage) -> None:
    lease = stage.lease("gone")
    stage.leave("gone")
    job = stage.accepted("noop")
    stage.sql(
        "gone",
        "UPDATE ledger.jobs SET state = 'running', attempt = 1, lease = %(lease)s, worker = 'gone'"
        " WHERE id = %(job)s",
        job=job,
        lease=lease,
    )
    said = {"job": job, "attempt": 1, "lease": lease, "run": "late", "kind": "noop"}
    stage.execution("gone").note("start", **said)
    stage.execution("gone").note("end", how="returned", **said)
    stage.sql(
        "gone",
        """UPDATE ledger.jobs SET state = 'succeeded', result = '{"run": "late"}'
        WHERE id = %(job)s""",
        job=job,
    )


@plants("illegal-move")
def a_job_is_deleted(stage: Stage) -> None:
    job = stage.enqueued("noop")
    stage.producer.note("unsure", job=job, kind="noop", key=None, error="away")
    stage.sql(CLIENT, "DELETE FROM ledger.jobs WHERE id = %(job)s", job=job)
