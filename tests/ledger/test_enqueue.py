from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import Conflict, LedgerUnavailable, MalformedId
from worker.jobs.job import Ended, Enqueued, Finish, Message, NewJob
from worker.jobs.states import State
from worker.ledger import enqueue as enqueue_module
from worker.ledger import insert as insert_module
from worker.ledger.change import cancel, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue, enqueue_in_parts
from worker.ledger.faults import Refused
from worker.ledger.finish import finish
from worker.ledger.read import counts


def answers(ledger: Ledger, *jobs: NewJob, atomic: bool = False) -> list[Enqueued]:
    found = enqueue(ledger, jobs, atomic=atomic)
    assert all(isinstance(answer, Enqueued) for answer in found), found
    return [answer for answer in found if isinstance(answer, Enqueued)]


def test_a_job_that_is_due_waits_in_its_list_with_a_doorbell(ledger: Ledger) -> None:
    (answer,) = answers(ledger, given.job("a", priority=4))

    assert answer.created and answer.ring is not None
    assert (answer.ring.id, answer.ring.list) == ("a", "celery\x06\x163")
    assert given.state_of(ledger, "a") is State.QUEUED


def test_a_job_with_a_future_time_waits_as_a_row_without_a_doorbell(ledger: Ledger) -> None:
    (answer,) = answers(ledger, given.job("a", delay=60))

    job = given.job_of(ledger, "a")
    assert answer == Enqueued("a", True, None)
    assert job.state is State.SCHEDULED and job.run_at is not None
    assert 59 < (job.run_at - job.created_at).total_seconds() < 61


def test_a_time_that_is_past_is_now(ledger: Ledger) -> None:
    (answer,) = answers(ledger, replace(given.job("a"), delay=-5.0))

    assert answer.ring is not None
    assert given.state_of(ledger, "a") is State.QUEUED


def test_each_doorbell_has_a_higher_number_than_the_one_before(ledger: Ledger) -> None:
    rings = [answer.ring for _ in range(3) for answer in answers(ledger, given.job())]

    numbers = [ring.seq for ring in rings if ring]
    assert len(numbers) == 3 and numbers == sorted(set(numbers))


def test_an_identical_repeat_is_answered_with_the_job_that_is_there(ledger: Ledger) -> None:
    job = given.job("a", 1)
    answers(ledger, job)

    assert answers(ledger, job) == [Enqueued("a", False, None)]
    assert counts(ledger) == {State.QUEUED: 1}


def test_an_identical_repeat_in_one_batch_is_one_job(ledger: Ledger) -> None:
    job = given.job("a", 1)

    first, second = answers(ledger, job, job)

    assert first.created and first.ring is not None
    assert second == Enqueued("a", False, None)


def test_another_request_with_a_known_id_is_a_conflict(ledger: Ledger) -> None:
    answers(ledger, given.job("a", 1))

    (answer,) = enqueue(ledger, [given.job("a", 2)])

    assert isinstance(answer, Conflict) and "'a' belongs to another job" in str(answer)
    assert json.loads(given.job_of(ledger, "a").message.body)[0] == [1]


def test_two_requests_with_one_id_in_one_batch_are_a_conflict(ledger: Ledger) -> None:
    found = enqueue(ledger, [given.job("a", 1), given.job("a", 2)])

    created = [answer for answer in found if isinstance(answer, Enqueued)]
    assert len(created) == 1 and len(found) == 2
    kept = json.loads(given.job_of(ledger, "a").message.body)[0]
    assert kept == [1 + found.index(created[0])]  # whom it was told to is whose it is


def test_a_key_makes_one_job_of_many_requests(ledger: Ledger) -> None:
    (first,) = answers(ledger, given.job("a", 1, key="k"))
    (second,) = answers(ledger, given.job("b", 1, key="k"))

    assert first.created
    assert second == Enqueued("a", False, None)
    assert counts(ledger) == {State.QUEUED: 1}


def test_a_key_with_another_payload_is_a_conflict(ledger: Ledger) -> None:
    answers(ledger, given.job("a", 1, key="k"))

    (answer,) = enqueue(ledger, [given.job("b", 2, key="k")])

    assert isinstance(answer, Conflict) and "key 'k' belongs to job a" in str(answer)


def test_fifty_producers_with_one_key_make_one_job(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    doors = [open_ledger() for _ in range(50)]

    found = given.all_at_once(
        [lambda door=door: answers(door, given.job(None, 1, key="k"))[0] for door in doors]  # type: ignore[misc] # a lambda's default
    )

    assert len({answer.id for answer in found}) == 1
    assert sum(answer.created for answer in found) == 1
    assert sum(answer.ring is not None for answer in found) == 1
    assert counts(ledger) == {State.QUEUED: 1}


def test_atomic_is_all_or_none(ledger: Ledger) -> None:
    answers(ledger, given.job("b", 1))

    with pytest.raises(Conflict, match="'b'"):
        enqueue(ledger, [given.job("a"), given.job("b", 2), given.job("c")], atomic=True)

    assert counts(ledger) == {State.QUEUED: 1}


def test_without_atomic_a_conflict_stands_alone(ledger: Ledger) -> None:
    answers(ledger, given.job("b", 1))

    found = enqueue(ledger, [given.job("a"), given.job("b", 2), given.job("c")])

    assert [type(answer) for answer in found] == [Enqueued, Conflict, Enqueued]
    assert counts(ledger) == {State.QUEUED: 3}


def test_five_thousand_jobs_are_answered_in_their_order(ledger: Ledger) -> None:
    jobs = [given.job(None, number) for number in range(5000)]

    found = answers(ledger, *jobs)

    assert [answer.id for answer in found] == [job.id for job in jobs]
    assert counts(ledger) == {State.QUEUED: 5000}


def test_five_thousand_jobs_are_all_or_none(ledger: Ledger) -> None:
    answers(ledger, given.job("a", 1))
    jobs = [given.job(None, number) for number in range(4999)]

    with pytest.raises(Conflict):
        enqueue(ledger, [*jobs, given.job("a", 2)], atomic=True)

    assert counts(ledger) == {State.QUEUED: 1}


def test_large_jobs_are_not_sent_in_one_message(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Postgres takes no message above 1 GB: a thousand jobs of a megabyte each would be one.
    sizes: list[int] = []
    real = insert_module.insert_rows

    def insert_rows(
        connection: Connection, arrays: dict[str, str]
    ) -> list[tuple[str, str, int | None]]:
        rows = real(connection, arrays)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(enqueue_module, "insert_rows", insert_rows)
    large = [
        replace(given.job(f"j{number}"), message=Message("{}", bytes(6 << 20)))
        for number in range(5)
    ]

    assert [answer.id for answer in answers(ledger, *large)] == [job.id for job in large]
    assert sizes == [2, 2, 1]


def test_answers_come_batch_by_batch_and_in_order(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue_module, "BATCH", 2)
    jobs = [given.job(f"j{number}") for number in range(7)]

    parts = list(enqueue_in_parts(ledger, jobs))

    assert [len(part) for part in parts] == [2, 2, 2, 1]
    told = [answer for part in parts for answer in part if isinstance(answer, Enqueued)]
    assert [answer.id for answer in told] == [job.id for job in jobs]
    numbers = [answer.ring.seq for answer in told if answer.ring]
    assert numbers == sorted(numbers), "they run in the order in which they were sent"
    assert len(numbers) == 7


def test_a_lone_job_that_meets_a_deadlock_is_tried_again(ledger: Ledger) -> None:
    # Given a Postgres that ends the first insert as it ends one of two in a deadlock
    ledger.execute("CREATE SEQUENCE inserts")
    ledger.execute("""
        CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('inserts') = 1 THEN
                RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
            END IF;
            RETURN new;
        END $$
    """)
    ledger.execute(
        "CREATE TRIGGER meet BEFORE INSERT ON ledger.jobs FOR EACH ROW EXECUTE FUNCTION meet()"
    )

    assert [answer.id for answer in answers(ledger, given.job("a"))] == ["a"]
    assert ledger.execute("SELECT last_value FROM inserts")[0].last_value == 2


@pytest.mark.parametrize("bad", [{"message": Message("a NUL: \0", b"")}, {"task": "\ud800"}])
def test_after_a_batch_that_failed_none_is_inserted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any]
) -> None:
    # Given four batches, of which the second is refused by Postgres, or cannot even be written
    monkeypatch.setattr(enqueue_module, "BATCH", 2)
    jobs = [given.job(f"j{number}") for number in range(8)]
    jobs[3] = replace(jobs[3], **bad)
    # When they are enqueued
    parts = enqueue_in_parts(ledger, jobs)
    assert [answer.id for answer in next(parts)] == ["j0", "j1"]  # type: ignore[union-attr] # no conflict
    with pytest.raises(Refused):
        next(parts)
    # Then nothing after the first is there
    assert counts(ledger) == {State.QUEUED: 2}


@pytest.mark.parametrize("bad", ["x" * 6000, "a\0b", "", "\ud800"])
def test_an_id_that_the_ledger_cannot_hold_stops_the_whole_request(
    ledger: Ledger, bad: str
) -> None:
    with pytest.raises(MalformedId):
        enqueue(ledger, [given.job("a"), replace(given.job(), id=bad)])

    assert counts(ledger) == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "a\0b"},
        {"task": "\ud800"},
        {"priority": 1 << 40},
        {"list": "".join(map(chr, range(1000, 9000)))},  # too large for an index, uncompressible
    ],
)
@pytest.mark.parametrize("beside", [0, 1, 3])
def test_what_postgres_cannot_hold_is_refused_and_no_outage(
    ledger: Ledger, bad: dict[str, object], beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A caller keeps what an outage stopped, and tries again for ever.
    monkeypatch.setattr(enqueue_module, "BATCH", 2)  # alone, beside another, in the second of two
    refused = replace(given.job("a"), **bad)  # type: ignore[arg-type] # by name
    with pytest.raises(Refused):
        enqueue(ledger, [*(given.job() for _ in range(beside)), refused])


@pytest.mark.parametrize(
    "body",
    [
        b'[[1e+22], {}, {"callbacks": null}]',
        b"[[NaN, Infinity], {}, {}]",
        b'[["\\u0000"], {}, {}]',
        b'[[1.0, 10000000000000000000000], {"b": 1, "a": 2, "b": 3}, {}]',
        bytes(range(256)),
        b"",
    ],
)
def test_a_message_is_kept_byte_by_byte(ledger: Ledger, body: bytes) -> None:
    envelope = '{"headers": {"x": 1e+22, "nan": NaN, "nul": "\\u0000"},  "b": 1, "a": 2}'
    answers(ledger, replace(given.job("a"), message=Message(envelope, body)))

    assert given.job_of(ledger, "a").message == Message(envelope, body)


def test_a_commit_whose_reply_is_lost_makes_one_job_and_one_answer(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a network that swallows the reply to the next COMMIT
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When a job is enqueued through it
    (answer,) = answers(door, given.job("a", 1))

    # Then the producer is told of the job, and there is one
    assert proxy.dropped.is_set()
    assert answer.id == "a"
    assert counts(ledger) == {State.QUEUED: 1}


def test_a_ledger_that_is_away_accepts_nothing(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    door = open_ledger(proxy.url)
    proxy.refuse()

    with pytest.raises(LedgerUnavailable):
        enqueue(door, [given.job("a")])

    proxy.heal()
    answers(door, given.job("a"))
    assert counts(ledger) == {State.QUEUED: 1}


def test_a_connection_that_died_while_idle_is_not_noticed(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    door = open_ledger(proxy.url)
    answers(door, given.job("a"))
    proxy.cut()

    answers(door, given.job("b"))

    assert counts(ledger) == {State.QUEUED: 2}


def test_the_last_step_of_a_replacement_fills_the_job_that_waits_for_it(ledger: Ledger) -> None:
    # Given a job that replaced itself by a canvas
    awaiting(ledger)
    assert given.job_of(ledger, "a").run_at is None

    # When the canvas's last step brings its message
    (answer,) = answers(ledger, given.job("a", 2, task="tests.sum", queue="q"))

    # Then it runs under the same id
    job = given.job_of(ledger, "a")
    assert answer.created and answer.ring is not None and answer.ring.list == "q"
    assert (job.state, job.task, job.queue) == (State.QUEUED, "tests.sum", "q")


def awaiting(ledger: Ledger) -> None:
    """A job `a` that replaced itself by a canvas, of which no last step has come yet."""
    fence = given.running(ledger, "a")
    finish(ledger, [Finish(fence, State.SCHEDULED, "replaced", delay=float("inf"))])


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_job_whose_replacement_failed_ends_with_it(ledger: Ledger, state: State) -> None:
    # Given a job that awaits the last step of a canvas
    awaiting(ledger)

    # When an earlier step of it fails, inside its own finish
    ended = Ended("a", "tests.sum", state, b"{}", "application/json", "up the chain", "Traceback …")
    finish(ledger, [given.failure(given.running(ledger, "step"), ended=(ended,))])

    # Then the job has ended, with that reason; it keeps its own message and can be replayed
    job = given.job_of(ledger, "a")
    assert (job.state, job.result, job.error, job.traceback) == (
        state,
        b"{}",
        "up the chain",
        "Traceback …",
    )
    assert job.finished_at is not None and job.task == "tests.add"
    assert replay(ledger, "a").list == "celery"


@pytest.mark.parametrize("delay", [None, 60.0])
def test_a_job_that_awaits_nothing_is_not_ended_from_elsewhere(
    ledger: Ledger, delay: float | None
) -> None:
    given.enqueued(ledger, "a", delay=delay)
    before = given.job_of(ledger, "a")

    ledger.run(lambda c: insert_ended(c, [Ended("a", "tests.add", State.FAILED)]))

    assert given.job_of(ledger, "a") == before


def test_nobody_but_a_worker_lets_an_awaiting_job_succeed(ledger: Ledger) -> None:
    awaiting(ledger)

    ledger.run(lambda c: insert_ended(c, [Ended("a", "tests.add", State.SUCCEEDED, b"1")]))

    assert given.state_of(ledger, "a") is State.SCHEDULED


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_the_rest_of_a_chain_runs_once_its_failed_step_is_replayed(
    ledger: Ledger, state: State
) -> None:
    # Given a chain whose first step failed, and its second one with it, never enqueued
    first = given.running(ledger, "first")
    ended = Ended("then", "tests.add", state, b"{}", "application/json", "up the chain", "…")
    finish(ledger, [given.failure(first, ended=(ended,))])
    assert given.state_of(ledger, "then") is state

    # When the first step is replayed, and succeeds
    replay(ledger, "first")
    (second,) = claim(ledger, given.lease(ledger), ["first"])
    then = given.job("then", 7, priority=3, expires=60)
    done = finish(ledger, [given.success(second.fence, outbox=(then,))])

    # Then the second step is queued, with nothing left of its end, and runs
    job = given.job_of(ledger, "then")
    assert [(ring.id, ring.list) for ring in done.rings] == [("then", "celery\x06\x163")]
    assert (job.state, job.result, job.result_type) == (State.QUEUED, None, None)
    assert (job.error, job.traceback, job.finished_at) == (None, None, None)
    assert job.message == then.message and job.expires_at is not None
    assert len(claim(ledger, given.lease(ledger), ["then"])) == 1


def test_a_step_that_ran_is_not_revived_by_a_repeat(ledger: Ledger) -> None:
    finish(ledger, [given.failure(given.running(ledger, "a"))])

    assert answers(ledger, given.job("a")) == [Enqueued("a", False, None)]
    assert given.state_of(ledger, "a") is State.FAILED


def test_a_cancelled_job_is_not_revived_by_a_repeat(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    cancel(ledger, "a", "not wanted")

    assert answers(ledger, given.job("a")) == [Enqueued("a", False, None)]
    assert given.state_of(ledger, "a") is State.CANCELLED


def test_jobs_are_numbered_as_they_come_whatever_their_keys(ledger: Ledger) -> None:
    # A number is compared with the list's front, and doorbells are pushed in this order.
    jobs = [given.job(None, key=key) for key in ("c", "a", "b")]
    rings = [answer.ring for answer in enqueue(ledger, jobs) if isinstance(answer, Enqueued)]
    assert [ring.id for ring in rings if ring] == [job.id for job in jobs]
    numbers = [ring.seq for ring in rings if ring]
    assert numbers == sorted(numbers)
