"""Violations to plant into a staged run: of what was read before a restart, and of the logs."""

from __future__ import annotations

from typing import Any

from tests.chaos.planted import plants
from tests.chaos.staged import CLIENT, Stage, success
from worker.ledger.change import cancel


@plants("rolled-back")
def an_end_that_was_read_is_undone_in_the_ledger_and_the_audit(stage: Stage) -> None:
    job = stage.accepted("noop")
    cancel(stage.ledger(CLIENT), job, "nobody said so")
    stage.read(job)
    with stage.unaudited():
        stage.sql(
            CLIENT,
            "UPDATE ledger.jobs SET state = 'queued', error = NULL WHERE id = %(job)s;"
            " DELETE FROM audit_moves WHERE job = %(job)s AND new_state = 'cancelled'",
            job=job,
        )
    stage.succeed("w1", job, "noop")


@plants("rolled-back")
def a_result_that_was_read_is_another_now(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("noop"), "noop")
    stage.producer.note("read", job=fence.id, state="succeeded", digest="0" * 64)


@plants("rolled-back")
def a_result_that_was_read_is_gone(stage: Stage) -> None:
    fence = stage.succeed("w1", stage.accepted("ignoring"), "ignoring")
    stage.producer.note("read", job=fence.id, state="succeeded", digest="0" * 64)


@plants("rolled-back")
def an_accepted_job_is_not_to_be_found(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.producer.note("read", job=job, state="missing", digest=None)
    stage.succeed("w1", job, "noop")


@plants("dishonest-log")
def a_line_is_no_json(stage: Stage) -> None:
    with (stage.folder / "producer-p1.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "event": "acc{"t": 2}\n')


@plants("dishonest-log")
def an_event_lacks_a_field(stage: Stage) -> None:
    stage.nemesis.note("kill", worker="w1")


@plants("dishonest-log")
def fields_are_of_the_wrong_kind(stage: Stage) -> None:
    good: dict[str, Any] = {"job": "a", "attempt": 1, "lease": "l", "run": "r", "kind": "noop"}
    wrong: list[dict[str, Any]] = [
        {"attempt": "x"}, {"attempt": True}, {"attempt": 2**31}, {"job": None}, {"run": []},
        {"kind": "\0"}, {"lease": "\ud800"}, {"t": "now"}, {"t": 10**400}, {"t": float("nan")},
    ]  # fmt: skip
    for fields in wrong:
        stage.execution("w1").note("start", **{**good, **fields})
    stage.execution("w1").note("end", how="slept", **good)
    odd: list[Any] = [[], {"failures": "1"}, {"countdown": -float("inf")}]
    for arguments in odd:
        stage.producer.note("accepted", job="a", kind="noop", key=None, arguments=arguments)
    stage.producer.note("read", job="a", state="odd", digest=None)
    with (stage.folder / "nemesis.jsonl").open("ab") as file:
        file.write(b'[]\n"x"\n{"t": 1, "event": {}}\n' + b"[" * 100_000 + b"\n\xff\n")


@plants("dishonest-log")
def a_producer_says_nothing(stage: Stage) -> None:
    (stage.folder / "producer-p2.jsonl").touch()


@plants("dishonest-log")
def an_execution_ends_that_never_began(stage: Stage) -> None:
    said = {"job": "a", "attempt": 1, "lease": "l", "run": "r", "kind": "noop"}
    stage.execution("w2").note("end", how="returned", **said)


@plants("dishonest-log")
def an_execution_ends_as_another_job(stage: Stage) -> None:
    fence = stage.claim("w1", stage.accepted("noop"))
    said = stage.start("w1", fence, "noop")
    stage.finish("w1", success(fence, stage.end("w1", said, job="another")))
