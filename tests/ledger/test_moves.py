"""The SQL guards and `MOVES` say the same; in whatever order things happen, see test_model.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.ledger import given
from worker.errors import LedgerError
from worker.jobs.job import Ended, Fence, Finish
from worker.jobs.states import MOVES, State, may_move
from worker.ledger.bulk import cancel_batch, replay_batch
from worker.ledger.change import cancel, forget, replay
from worker.ledger.claim import claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost, take_unsure
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.lease import close_lease
from worker.ledger.rescue import rescue
from worker.ledger.retention import expire_late
from worker.ledger.strangers import put_off

JOB = "a"
Statement = Callable[[Ledger, Fence], object]


def end_as(state: State, outcome: str, delay: float | None = None) -> Statement:
    return lambda ledger, fence: finish(ledger, [Finish(fence, state, outcome, delay=delay)])


def after_expiry(ledger: Ledger, fence: Fence) -> None:
    given.expire(ledger, fence.lease)
    rescue(ledger, None, 1)


def when_due(ledger: Ledger, fence: Fence) -> None:
    given.make_due(ledger, JOB)
    dispatch_due(ledger, None)


def when_late(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE ledger.jobs SET expires_at = clock_timestamp() - interval '1 s'")
    expire_late(ledger, None)


def when_unrung(take: Callable[[Ledger], object]) -> Statement:
    def statement(ledger: Ledger, fence: Fence) -> None:
        given.age(ledger, "dispatched_at", 99999, JOB)
        take(ledger)

    return statement


def when_unreplaced(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE ledger.jobs SET run_at = 'infinity' WHERE state = 'scheduled'")
    ended = Ended(JOB, "tests.add", State.FAILED)
    ledger.run(lambda connection: insert_ended(connection, [ended]))


def when_never_enqueued(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE ledger.jobs SET list = '' WHERE attempt = 0")
    enqueue(ledger, [given.job(JOB, 2)])


def when_awaited_for_later(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE ledger.jobs SET run_at = 'infinity' WHERE finished_at IS NOT NULL")
    enqueue(ledger, [given.job(JOB, 3, delay=60)])


#: Everything that changes a job.
STATEMENTS: dict[str, Statement] = {
    "enqueue": lambda ledger, fence: enqueue(ledger, [given.job(JOB, 1)]),
    "enqueue another": lambda ledger, fence: enqueue(ledger, [given.job(JOB, 2)]),
    "claim": lambda ledger, fence: claim(ledger, fence.lease, [JOB]),
    "claim a suspect": lambda ledger, fence: claim_suspects(
        ledger, fence.lease, ["celery"], 1, idle=True
    ),
    "put off": lambda ledger, fence: put_off(ledger, [JOB], ["no such task"]),
    "succeed": end_as(State.SUCCEEDED, "succeeded"),
    "fail": end_as(State.FAILED, "failed"),
    "retry": end_as(State.SCHEDULED, "retried", 60),
    "retry at once": end_as(State.QUEUED, "retried"),
    "release": end_as(State.QUEUED, "released"),
    "revoke": end_as(State.CANCELLED, "cancelled"),
    "close the lease": lambda ledger, fence: close_lease(ledger, fence.lease),
    "rescue": after_expiry,
    "dispatch": when_due,
    "ring for the lost": when_unrung(lambda ledger: take_lost(ledger, None, "celery", None, 1)),
    "ring in doubt": when_unrung(lambda ledger: take_unsure(ledger, None, "celery")),
    "expire": when_late,
    "cancel": lambda ledger, fence: cancel(ledger, JOB, "not wanted"),
    "replay": lambda ledger, fence: replay(ledger, JOB),
    "end unreplaced": when_unreplaced,
    "enqueue after all": when_never_enqueued,
    "enqueue after all, for later": when_awaited_for_later,
    "cancel many": lambda ledger, fence: cancel_batch(ledger, [JOB], list(State), "not wanted"),
    "replay many": lambda ledger, fence: replay_batch(ledger, [JOB], list(State)),
    "forget": lambda ledger, fence: forget(ledger, JOB),
}


def bring_to(ledger: Ledger, state: State, *, suspect: bool) -> Fence:
    """The job in `state`, and the fence of its last attempt or one that it never had."""
    nobody = Fence(JOB, 1, given.lease(ledger))
    if state is State.SCHEDULED:
        given.enqueued(ledger, JOB, delay=60)
    elif state is State.QUEUED:
        given.enqueued(ledger, JOB)
    if state in (State.SCHEDULED, State.QUEUED):
        ledger.execute("UPDATE ledger.jobs SET suspicion = :level", {"level": int(suspect)})
        return nobody
    fence = given.running(ledger, JOB)
    ledger.execute("UPDATE ledger.jobs SET suspicion = :level", {"level": int(suspect)})
    if state is not State.RUNNING:
        finish(ledger, [Finish(fence, state, str(state))])
    return fence


@pytest.mark.parametrize("name", list(STATEMENTS))
def test_no_statement_makes_an_illegal_move(ledger: Ledger, name: str) -> None:
    for state, suspect in itertools.product(State, (False, True)):
        # Given a job in this state
        ledger.execute("TRUNCATE ledger.jobs, ledger.attempts, ledger.workers")
        fence = bring_to(ledger, state, suspect=suspect)
        before = given.job_of(ledger, JOB).attempt

        # When the statement is made; it may say no, and an illegal move raises another error
        with suppress(LedgerError):
            STATEMENTS[name](ledger, fence)

        # Then the job moved legally or not at all, and only a claim began an attempt
        after = given.job_of(ledger, JOB)
        assert after.state is state or may_move(state, after.state)
        claimed = after.state is State.RUNNING and state is not State.RUNNING
        assert after.attempt == before + claimed


def test_every_legal_move_is_some_statements(ledger: Ledger) -> None:
    made: set[tuple[State, State]] = set()
    for state in State:
        for statement in STATEMENTS.values():
            ledger.execute("TRUNCATE ledger.jobs, ledger.attempts, ledger.workers")
            fence = bring_to(ledger, state, suspect=False)
            with suppress(LedgerError):
                statement(ledger, fence)
            made.add((state, given.state_of(ledger, JOB)))
            # A step of the clock is known by when a waiting job's times were computed.
            assert not ledger.execute(
                "SELECT FROM ledger.jobs"
                " WHERE state IN ('scheduled', 'queued') AND dispatched_at IS NULL"
            )

    assert made >= {(source, target) for source, targets in MOVES.items() for target in targets}
