"""The SQL guards and `MOVES` say the same, whatever happens to a job in whatever order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.ledger import given
from worker.errors import Conflict, LedgerError
from worker.jobs.job import Ended, Fence, Finish
from worker.jobs.states import MOVES, State, may_move
from worker.ledger.change import cancel, forget, replay
from worker.ledger.claim import claim, claim_suspect
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost, take_unsure
from worker.ledger.enqueue import enqueue, insert_ended
from worker.ledger.finish import finish
from worker.ledger.lease import close_lease, held
from worker.ledger.read import read_list
from worker.ledger.rescue import rescue
from worker.ledger.retention import expire_late

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
    ledger.execute("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 s'")
    expire_late(ledger, None)


def when_unrung(take: Callable[[Ledger], object]) -> Statement:
    def statement(ledger: Ledger, fence: Fence) -> None:
        given.age(ledger, "dispatched_at", 99999, JOB)
        take(ledger)

    return statement


def when_unreplaced(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE jobs SET run_at = 'infinity' WHERE state = 'scheduled'")
    ended = Ended(JOB, "tests.add", State.FAILED)
    ledger.run(lambda connection: insert_ended(connection, [ended]))


def when_never_enqueued(ledger: Ledger, fence: Fence) -> None:
    ledger.execute("UPDATE jobs SET list = '' WHERE attempt = 0")
    enqueue(ledger, [given.job(JOB, 2)])


#: Everything that changes a job.
STATEMENTS: dict[str, Statement] = {
    "enqueue": lambda ledger, fence: enqueue(ledger, [given.job(JOB, 1)]),
    "enqueue another": lambda ledger, fence: enqueue(ledger, [given.job(JOB, 2)]),
    "claim": lambda ledger, fence: claim(ledger, fence.lease, [JOB]),
    "claim a suspect": lambda ledger, fence: claim_suspect(ledger, fence.lease, ["celery"]),
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
        ledger.execute("UPDATE jobs SET suspect = :suspect", {"suspect": suspect})
        return nobody
    fence = given.running(ledger, JOB)
    ledger.execute("UPDATE jobs SET suspect = :suspect", {"suspect": suspect})
    if state is not State.RUNNING:
        finish(ledger, [Finish(fence, state, str(state))])
    return fence


@pytest.mark.parametrize("name", list(STATEMENTS))
def test_no_statement_makes_an_illegal_move(ledger: Ledger, name: str) -> None:
    for state, suspect in itertools.product(State, (False, True)):
        # Given a job in this state
        ledger.execute("TRUNCATE jobs, attempts, workers")
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
            ledger.execute("TRUNCATE jobs, attempts, workers")
            fence = bring_to(ledger, state, suspect=False)
            with suppress(LedgerError):
                statement(ledger, fence)
            made.add((state, given.state_of(ledger, JOB)))

    assert made >= {(source, target) for source, targets in MOVES.items() for target in targets}


@dataclass
class Known:
    """What the model knows of a job."""

    state: State
    attempt: int = 0
    result: bytes | None = None
    holder: str | None = None
    suspect: bool = False
    #: Every fence that was ever granted.
    fences: list[Fence] = field(default_factory=list)


IDS = st.sampled_from(["a", "b", "c", "d"])


class LedgerModel(RuleBasedStateMachine):
    """Jobs, workers and a keeper that do anything in any order; the ledger against a model."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        ledger.execute("TRUNCATE jobs, attempts, workers")
        self.leases = [given.lease(ledger) for _ in range(2)]
        self.jobs: dict[str, Known] = {}

    @rule(job_id=IDS, delay=st.sampled_from([None, 600.0]))
    def enqueue(self, job_id: str, delay: float | None) -> None:
        (answer,) = enqueue(self.ledger, [given.job(job_id, delay=delay)])
        assert not isinstance(answer, Conflict)
        assert answer.created == (job_id not in self.jobs)
        if answer.created:
            self.jobs[job_id] = Known(State.SCHEDULED if delay else State.QUEUED)

    @rule(ids=st.sets(IDS, min_size=1), worker=st.integers(0, 1))
    def claim(self, ids: set[str], worker: int) -> None:
        lease = self.leases[worker]
        expected = {
            job_id
            for job_id in ids & self.jobs.keys()
            if (self.jobs[job_id].state is State.QUEUED and not self.jobs[job_id].suspect)
            or (self.jobs[job_id].state is State.RUNNING and self.jobs[job_id].holder == lease)
        }
        granted = claim(self.ledger, lease, sorted(ids))
        assert {one.fence.id for one in granted} == expected
        for one in granted:
            self._grant(one.fence)

    @rule(worker=st.integers(0, 1))
    def claim_suspect(self, worker: int) -> None:
        waiting = {
            job_id for job_id, job in self.jobs.items() if job.state is State.QUEUED and job.suspect
        }
        found = claim_suspect(self.ledger, self.leases[worker], ["celery"])
        assert (found.fence.id in waiting) if found else not waiting
        if found:
            self._grant(found.fence)

    def _grant(self, fence: Fence) -> None:
        job = self.jobs[fence.id]
        if job.state is not State.RUNNING:
            job.attempt += 1
            job.fences.append(fence)
        job.state, job.holder = State.RUNNING, fence.lease
        assert fence == job.fences[-1] and fence.attempt == job.attempt

    @precondition(lambda self: any(job.fences for job in self.jobs.values()))
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "retry", "release"]))
    def finish(self, data: Any, how: str) -> None:
        fences = [fence for job in self.jobs.values() for fence in job.fences]
        fence = data.draw(st.sampled_from(fences))
        job = self.jobs[fence.id]
        result = f"{fence.attempt}".encode()
        end = {
            "succeed": given.success(fence, result),
            "fail": given.failure(fence),
            "retry": given.retry(fence),
            "release": Finish(fence, State.QUEUED, "released"),
        }[how]
        mine = job.state is State.RUNNING and job.fences[-1] == fence
        done = finish(self.ledger, [end])
        if mine:
            assert done.granted == {fence.id}
            job.state = end.state
            job.result = end.result
            job.suspect = job.suspect and how == "release"
            job.holder = None

    @rule(workers=st.sets(st.integers(0, 1), min_size=1), closing=st.booleans())
    def end_workers(self, workers: set[int], closing: bool) -> None:
        ending = [self.leases[worker] for worker in workers]
        lost = {job_id for job_id, job in self.jobs.items() if job.holder in ending}
        if closing:
            back = {job_id for lease in ending for job_id in close_lease(self.ledger, lease)}
            assert back == lost
        else:
            given.expire(self.ledger, *ending)
            assert set(rescue(self.ledger, None, 100).queued) == lost
        for job_id in lost:
            job = self.jobs[job_id]
            job.state, job.holder = State.QUEUED, None
            job.suspect = job.suspect or not closing
        for worker in workers:
            self.leases[worker] = given.lease(self.ledger)

    @rule(job_id=IDS)
    def cancel(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        with suppress(LedgerError):
            cancel(self.ledger, job_id, "not wanted")
        if job and may_move(job.state, State.CANCELLED):
            job.state, job.holder = State.CANCELLED, None

    @rule(job_id=IDS)
    def replay(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        with suppress(LedgerError):
            replay(self.ledger, job_id)
        if job and job.state in (State.FAILED, State.CANCELLED):
            job.state, job.suspect, job.result = State.QUEUED, False, None

    @rule()
    def dispatch(self) -> None:
        waiting = {job_id for job_id, job in self.jobs.items() if job.state is State.SCHEDULED}
        given.make_due(self.ledger, *waiting)
        assert {ring.id for ring in dispatch_due(self.ledger, None)} == waiting
        for job_id in waiting:
            self.jobs[job_id].state = State.QUEUED

    @invariant()
    def the_ledger_agrees(self) -> None:
        rows = {job.id: job for job in read_list(self.ledger)}
        assert {job_id: (row.state, row.attempt, row.suspect) for job_id, row in rows.items()} == {
            job_id: (job.state, job.attempt, job.suspect) for job_id, job in self.jobs.items()
        }
        for job_id, job in self.jobs.items():
            if job.state is State.SUCCEEDED:
                assert rows[job_id].result == job.result

    @invariant()
    def each_worker_holds_what_runs(self) -> None:
        for lease in self.leases:
            assert held(self.ledger, lease) == {
                (job_id, job.attempt) for job_id, job in self.jobs.items() if job.holder == lease
            }

    @invariant()
    def every_attempt_that_did_not_succeed_left_a_row(self) -> None:
        for job_id, job in self.jobs.items():
            told = job.attempt - (job.state in (State.RUNNING, State.SUCCEEDED))
            assert [number for number, _ in given.attempts_of(self.ledger, job_id)] == list(
                range(1, told + 1)
            )


def test_whatever_happens_the_ledger_agrees_with_the_model(ledger: Ledger) -> None:
    run_state_machine_as_test(
        lambda: LedgerModel(ledger),  # type: ignore[arg-type] # it calls what it is given
        settings=hypothesis.settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
