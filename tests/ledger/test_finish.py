from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace

import psycopg2
import pytest

from tests.ledger import given
from tests.proxy import Proxy
from worker.jobs.job import Ended, Fence, Finish
from worker.jobs.states import State
from worker.ledger.change import cancel
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.enqueue import enqueue
from worker.ledger.faults import Refused
from worker.ledger.finish import finish, note_progress
from worker.ledger.read import read
from worker.ledger.rescue import rescue


def rescued(ledger: Ledger, lease: str) -> None:
    given.expire(ledger, lease)
    rescue(ledger, None, 3)


def test_a_success_keeps_the_result_and_leaves_no_attempt(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    done = finish(ledger, [given.success(fence, b'"\\u0000 1e+22"', children='["c"]')])

    job = given.job_of(ledger, "a")
    assert done.granted == {"a"} and done.rings == ()
    assert (job.state, job.result, job.children) == (
        State.SUCCEEDED,
        b'"\\u0000 1e+22"',
        '["c"]',
    )
    assert job.finished_at is not None and job.started_at is not None
    assert job.finished_at >= job.started_at
    assert job.attempts == ()


def test_a_failure_keeps_its_evidence(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    finish(ledger, [given.failure(fence, "ValueError: no", traceback="Traceback …")])

    job = given.job_of(ledger, "a")
    (attempt,) = job.attempts
    assert (job.state, job.error) == (State.FAILED, "ValueError: no")
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "failed", "w1")
    assert (attempt.error, attempt.traceback) == ("ValueError: no", "Traceback …")
    assert attempt.started_at == job.started_at


def test_another_attempt_cannot_write_the_end(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    done = finish(ledger, [given.success(replace(fence, attempt=2))])

    assert done.granted == frozenset()
    assert given.state_of(ledger, "a") is State.RUNNING


def test_another_lease_cannot_write_the_end(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    done = finish(ledger, [given.success(replace(fence, lease=given.lease(ledger)))])

    assert done.granted == frozenset()
    assert given.state_of(ledger, "a") is State.RUNNING


def test_a_rescued_job_ignores_its_first_worker(ledger: Ledger) -> None:
    # Given a job that was rescued from its first worker
    first = given.running(ledger, "a")
    rescued(ledger, first.lease)

    # When the first worker finishes, before and while another one runs it
    assert finish(ledger, [given.success(first, b"1")]).granted == frozenset()
    ledger.execute("UPDATE ledger.jobs SET suspicion = 0")
    (second,) = claim(ledger, given.lease(ledger), ["a"])
    assert finish(ledger, [given.success(first, b"1")]).granted == frozenset()

    # Then only the second worker's result counts, also after that
    assert finish(ledger, [given.success(second.fence, b"2")]).granted == {"a"}
    assert finish(ledger, [given.success(first, b"1")]).granted == frozenset()
    assert given.job_of(ledger, "a").result == b"2"


def test_the_result_of_an_expired_lease_is_welcome_until_its_rescue(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    assert finish(ledger, [given.success(fence)]).granted == {"a"}
    assert given.state_of(ledger, "a") is State.SUCCEEDED


@pytest.mark.parametrize("make", [given.success, given.failure, given.retry])
def test_repeating_a_finish_counts_as_granted_and_writes_nothing_more(
    ledger: Ledger, make: Callable[..., Finish]
) -> None:
    end = make(given.running(ledger, "a"), outbox=(given.job("b"),))
    finish(ledger, [end])
    before = given.job_of(ledger, "a")

    again = finish(ledger, [end])

    assert again.granted == {"a"} and again.rings == ()
    assert given.job_of(ledger, "a") == before


def test_a_finish_whose_reply_is_lost_is_neither_lost_nor_doubled(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a network that swallows the reply to the next COMMIT
    first, second = (one.fence for one in given.claimed(ledger, "a", "b"))
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When a success with a link and a failure are written through it
    done = finish(door, [given.success(first, outbox=(given.job("c"),)), given.failure(second)])

    # Then both count, each once
    assert proxy.dropped.is_set()
    assert done.granted == {"a", "b"}
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    assert given.state_of(ledger, "c") is State.QUEUED
    assert given.attempts_of(ledger, "b") == [(1, "failed")]


def test_what_follows_a_job_comes_with_its_end(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    ended = Ended("e", "tests.add", State.FAILED, b"{}", "application/json", error="up the chain")

    done = finish(
        ledger,
        [given.success(fence, outbox=(given.job("b"), given.job("c", delay=60)), ended=(ended,))],
    )

    assert [ring.id for ring in done.rings] == ["b"]
    assert given.state_of(ledger, "b") is State.QUEUED
    assert given.state_of(ledger, "c") is State.SCHEDULED
    assert given.state_of(ledger, "e") is State.FAILED
    assert given.job_of(ledger, "e").error == "up the chain"


def test_a_stale_finish_publishes_nothing(ledger: Ledger) -> None:
    # Given an attempt whose job was rescued, beside one whose was not
    stale, welcome = given.running(ledger, "a"), given.running(ledger, "b")
    rescued(ledger, stale.lease)
    ended = Ended("e", "tests.add", State.FAILED)

    # When both finish in one batch, each with what follows it
    done = finish(
        ledger,
        [
            given.success(stale, outbox=(given.job("after-a"),), ended=(ended,)),
            given.success(welcome, outbox=(given.job("after-b"),)),
        ],
    )

    # Then only what follows the welcome one comes to be
    assert done.granted == {"b"}
    assert [ring.id for ring in done.rings] == ["after-b"]
    assert read(ledger, "after-a") is None and read(ledger, "e") is None


def test_what_follows_is_rolled_back_with_the_end(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    with pytest.raises(Refused):
        finish(ledger, [given.success(fence, outbox=(replace(given.job("b"), task="\0"),))])

    assert given.state_of(ledger, "a") is State.RUNNING
    assert read(ledger, "b") is None


def test_a_retry_waits_with_its_new_message_and_time(ledger: Ledger) -> None:
    fence = given.running(ledger, "a", queue="q")
    again = given.job("a", 7, task="tests.sub", queue="other", priority=3)

    done = finish(ledger, [given.retry(fence, 60, error="Boom: x", replacement=again)])

    job = given.job_of(ledger, "a")
    assert done.rings == ()
    assert job.state is State.SCHEDULED and job.run_at is not None
    assert (job.task, job.queue, job.priority) == ("tests.sub", "other", 3)
    assert json.loads(job.message.body)[0] == [7]
    assert job.attempts[0].outcome == "retried"
    # Then it runs as its second attempt, from its new list
    given.make_due(ledger, "a")
    (ring,) = dispatch_due(ledger, None)
    assert ring.list == "other\x06\x163"
    (second,) = claim(ledger, given.lease(ledger), ["a"])
    assert second.fence.attempt == 2


def test_a_retry_at_once_is_rung_for(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    done = finish(ledger, [Finish(fence, State.QUEUED, "retried", replacement=given.job("a", 7))])

    assert [ring.id for ring in done.rings] == ["a"]


def test_a_finish_after_a_cancel_is_stale(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    cancel(ledger, "a", "not wanted")

    assert finish(ledger, [given.success(fence)]).granted == frozenset()
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert given.attempts_of(ledger, "a") == [(1, "cancelled")]


def test_a_release_is_no_loss(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    done = finish(ledger, [Finish(fence, State.QUEUED, "released", error="drain")])

    job = given.job_of(ledger, "a")
    assert [ring.id for ring in done.rings] == ["a"]
    assert (job.lost, job.suspect, job.attempts[0].outcome) == (0, False, "released")


def test_each_child_lost_alone_counts(ledger: Ledger) -> None:
    # Given a job whose child process dies, again and again
    given.enqueued(ledger, "a")
    for number in (1, 2, 3):
        (one,) = claim(ledger, given.lease(ledger), ["a"])
        assert one.lost == number - 1
        finish(ledger, [Finish(one.fence, State.QUEUED, "lost", error="SIGKILL")])
        assert given.job_of(ledger, "a").lost == number

    # Then it is still nobody else's to judge, and its evidence is kept
    job = given.job_of(ledger, "a")
    assert (job.state, job.suspect) == (State.QUEUED, False)
    assert given.attempts_of(ledger, "a") == [(1, "lost"), (2, "lost"), (3, "lost")]
    assert {attempt.error for attempt in job.attempts} == {"SIGKILL"}


def test_an_ordinary_end_clears_the_count_of_losses(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET lost = 2, suspicion = 2")

    finish(ledger, [given.retry(fence)])

    job = given.job_of(ledger, "a")
    assert (job.lost, job.suspect) == (0, False)


@pytest.mark.parametrize("outcome", ["lost", "released", "postponed"])
def test_what_did_not_end_stays_as_suspect_as_it_was(ledger: Ledger, outcome: str) -> None:
    fence = given.running(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET suspicion = 2")

    done = finish(ledger, [Finish(fence, State.QUEUED, outcome)])

    assert done.granted == {"a"} and done.rings == ()  # an isolated process asks for it
    assert ledger.execute("SELECT suspicion FROM ledger.jobs") == [(2,)]


def test_progress_is_the_running_attempts_alone(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    note_progress(ledger, "a", fence.attempt, fence.lease, b"50", "HALF")
    note_progress(ledger, "a", fence.attempt + 1, fence.lease, b"99", "STALE")
    note_progress(ledger, "a", fence.attempt, "nobody", b"99", "STALE")

    job = given.job_of(ledger, "a")
    assert (job.progress, job.progress_state) == (b"50", "HALF")
    finish(ledger, [given.success(fence)])
    note_progress(ledger, "a", fence.attempt, fence.lease, b"99", "LATE")
    assert given.job_of(ledger, "a").progress == b"50"


def test_what_a_job_says_of_itself_stands_until_it_retries(ledger: Ledger) -> None:
    # Given a job that is given back, then claimed again
    fence = given.running(ledger, "a")
    note_progress(ledger, "a", fence.attempt, fence.lease, b"50", "HALF")
    finish(ledger, [Finish(fence, State.QUEUED, "released")])
    (again,) = claim(ledger, given.lease(ledger), ["a"])

    # Then its state stands, as in a result store: a task that was told to abort must find it
    assert given.job_of(ledger, "a").progress == b"50"

    # And a retry stores a state and an exception of its own, which the next release leaves
    finish(ledger, [Finish(again.fence, State.QUEUED, "retried", b"{}", "application/json")])
    (last,) = claim(ledger, given.lease(ledger), ["a"])
    finish(ledger, [Finish(last.fence, State.QUEUED, "released")])
    job = given.job_of(ledger, "a")
    assert (job.progress, job.progress_state, job.result) == (None, None, b"{}")


def test_opposite_batches_never_deadlock(
    ledger: Ledger, open_ledger: Callable[..., Ledger], url: str
) -> None:
    # Given two workers that handle the same jobs in opposite orders
    ids = [f"j{number:03}" for number in range(200)]  # long enough to overlap
    doors = [open_ledger(), open_ledger()]
    enqueue(ledger, [given.job(job_id) for job_id in ids])
    lease = given.lease(ledger)

    # When they claim and finish them, 80 rounds long
    for _ in range(80):
        given.all_at_once(
            [
                lambda: claim(doors[0], lease, ids),
                lambda: claim(doors[1], lease, ids[::-1]),
            ]
        )
        attempt = given.job_of(ledger, ids[0]).attempt
        ends = [Finish(Fence(job_id, attempt, lease), State.QUEUED, "released") for job_id in ids]
        given.all_at_once(
            [
                functools.partial(finish, doors[0], ends),
                functools.partial(finish, doors[1], ends[::-1]),
            ]
        )

    # Then Postgres never had to break a deadlock; a session reports it when it ends
    for door in (*doors, ledger):
        door.close()
    server, _, name = url.replace("+psycopg2", "").rpartition("/")
    connection = psycopg2.connect(f"{server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:

        def sessions() -> int:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (name,))
            return int((cursor.fetchone() or [0])[0])

        given.until(lambda: sessions() == 0)
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = %s", (name,))
        assert cursor.fetchone() == (0,)
    connection.close()


def test_what_cannot_follow_a_job_is_said_and_its_end_stands(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a link that has the id of another job
    given.enqueued(ledger, "link")
    fence = given.running(ledger, "a")

    # When the job finishes
    done = finish(ledger, [given.success(fence, outbox=(given.job("link", 7), given.job("b")))])

    # Then its end stands, the other link runs, and the log names both jobs
    assert done.granted == {"a"} and [ring.id for ring in done.rings] == ["b"]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "Job link, to follow job a, is not enqueued" in record.getMessage()


def test_a_loss_that_the_worker_judged_is_written_as_it_is_and_counted(ledger: Ledger) -> None:
    # Given a job that was lost before
    fence = given.running(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET lost = 2")
    ended = Ended("later", "tests.add", State.FAILED)

    # When the worker ends it as poison, with what follows from that
    end = Finish(
        fence,
        State.FAILED,
        "lost",
        b"{}",
        "application/json",
        error="lost for the third time",
        outbox=(given.job("errback"),),
        ended=(ended,),
    )
    assert finish(ledger, [end]).granted == {"a"}

    # Then all of it is kept, and the loss counts
    job = given.job_of(ledger, "a")
    assert (job.state, job.lost, job.result) == (State.FAILED, 3, b"{}")
    assert job.error == "lost for the third time" and job.finished_at is not None
    assert given.attempts_of(ledger, "a") == [(1, "lost")]
    assert given.state_of(ledger, "errback") is State.QUEUED
    assert given.state_of(ledger, "later") is State.FAILED


def test_repeating_a_loss_that_made_poison_counts_as_granted(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    end = Finish(fence, State.FAILED, "lost", error="SIGKILL")
    finish(ledger, [end])

    assert finish(ledger, [end]).granted == {"a"}
    assert given.job_of(ledger, "a").lost == 1
