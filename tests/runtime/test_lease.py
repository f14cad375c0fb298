"""The lease's thread: renewal, reconciliation, the deadline before a start. Rules 8, 9, 11, 13."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from worker.errors import LedgerUnavailable
from worker.jobs.job import Fence, Finish
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.lease import held
from worker.ledger.read import read
from worker.runtime import clock as clock_module
from worker.runtime import lease as lease_module
from worker.runtime.claims import Claims, Phase
from worker.runtime.clock import LeaseClock, now, share
from worker.runtime.lease import Lease, LeaseTerms
from worker.runtime.trace import run_claimed
from worker.settings import Settings


@dataclass
class Holder:
    """A lease with an inventory, driven by hand: no thread runs."""

    ledger: Ledger
    claims: Claims = field(default_factory=lambda: Claims(lambda: 8))
    clock: LeaseClock = field(default_factory=LeaseClock)
    finished: list[Finish] = field(default_factory=list)
    stale: list[Fence] = field(default_factory=list)
    healthy: bool = True

    def __post_init__(self) -> None:
        self.lease = Lease(
            self.ledger,
            LeaseTerms("holder", lambda: ["celery"], 5.0),
            self.claims,
            self.clock,
            lambda: self.healthy,
            self.finished.append,
            self.stale.extend,
            lambda: None,
        )
        self.lease.open()

    def claim_one(self) -> Fence:
        """A job claimed under the lease and entered in the inventory."""
        job = new_job("test.add", [1, 1])
        enqueue(self.ledger, [job])
        assert self.lease.id is not None
        self.claims.reserve([job.id])
        (granted,) = claim(self.ledger, self.lease.id, [job.id])
        self.claims.grant(granted.fence)
        return granted.fence

    def expiry(self) -> float:
        """When the lease expires, in seconds of the database's clock."""
        (row,) = self.ledger.execute(
            "SELECT extract(epoch FROM expires_at) AS at FROM ledger.workers"
        )
        return float(row.at)


@pytest.fixture
def holder(settings: Settings) -> Iterator[Holder]:
    ledger = Ledger(settings.database_url.get_secret_value())
    yield Holder(ledger)
    ledger.close()


def test_what_the_ledger_says_is_ours_and_nobody_holds_is_given_back(holder: Holder) -> None:
    # Given a claim that this process has forgotten
    forgotten = holder.claim_one()
    kept = holder.claim_one()
    holder.claims.drop([forgotten.id])
    # When it is seen once it may be a claim under way; seen twice it is an orphan
    holder.lease._renew()
    assert holder.finished == []
    holder.lease._renew()
    (given_back,) = holder.finished
    assert (given_back.fence, given_back.state) == (forgotten, State.QUEUED)
    assert given_back.outcome == "released"
    assert kept not in [end.fence for end in holder.finished]


def test_an_earlier_attempt_that_a_failover_brought_back_is_given_back(holder: Holder) -> None:
    # Given the second attempt of a job, and an older ledger that knows of the first one only
    first = holder.claim_one()
    second = Fence(first.id, 2, first.lease)
    holder.claims.drop([first.id])
    holder.claims.reserve([first.id])
    holder.claims.grant(second)
    holder.claims.move(second, Phase.STARTED)
    # When it is seen twice, it is nobody's: the second one's end will be refused
    holder.lease._renew()
    assert holder.finished == []
    holder.lease._renew()
    assert [(end.fence, end.outcome) for end in holder.finished] == [(first, "released")]
    assert holder.stale == [second, second]


def test_a_job_that_was_cancelled_is_reported_stale(holder: Holder) -> None:
    fence = holder.claim_one()
    holder.claims.move(fence, Phase.STARTED)
    holder.lease._renew()
    assert holder.stale == []
    holder.ledger.execute(
        "UPDATE ledger.jobs SET state = 'cancelled', lease = NULL WHERE id = :id", {"id": fence.id}
    )
    holder.lease._renew()
    assert holder.stale == [fence]


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.HANDED])
def test_a_job_that_was_cancelled_before_its_start_is_not_started(
    holder: Holder, phase: Phase
) -> None:
    # Given two jobs that wait here for their start
    cancelled, kept = holder.claim_one(), holder.claim_one()
    for fence in (cancelled, kept):
        holder.claims.move(fence, phase)
    holder.ledger.execute(
        "UPDATE ledger.jobs SET state = 'cancelled', lease = NULL WHERE id = :id",
        {"id": cancelled.id},
    )
    # When the lease is renewed
    holder.lease._renew()
    # Then the one that was cancelled is not started any more
    assert not holder.clock.may_start(cancelled)
    assert holder.clock.may_start(kept)


def test_nothing_more_is_started_before_it_is_known_what_was_cancelled(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lease that is renewed, and a ledger that goes away before it said what is held
    fence = holder.claim_one()
    holder.clock.extend(fence.lease, now() - 0.001)

    def away(ledger: Ledger, lease: str) -> set[tuple[str, int]]:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(lease_module, "held", away)
    with pytest.raises(LedgerUnavailable):
        holder.lease._renew()
    # Then nothing may be started, until it says so
    assert not holder.clock.may_start(fence)
    monkeypatch.undo()
    holder.lease._renew()
    assert holder.clock.may_start(fence)


def test_a_worker_that_makes_no_progress_does_not_renew(holder: Holder) -> None:
    before = holder.expiry()
    holder.healthy = False
    holder.lease._renew()
    assert holder.expiry() == before
    holder.healthy = True
    holder.lease._renew()
    assert holder.expiry() > before


def test_a_lost_lease_is_replaced_and_its_jobs_are_not_started(holder: Holder) -> None:
    # Given a claimed job and one handed to the pool, and a lease that the keeper ended
    unstarted, handed = holder.claim_one(), holder.claim_one()
    holder.claims.move(handed, Phase.HANDED)
    old = holder.lease.id
    assert old is not None
    assert holder.clock.may_start(handed)
    holder.ledger.execute("DELETE FROM ledger.workers")
    # When the worker tries to renew
    holder.lease._renew()
    # Then it has another lease, and nothing of the old one may be started
    assert holder.lease.id != old
    assert holder.lease.is_held
    assert not holder.clock.may_start(handed)
    assert holder.claims.fence_of(unstarted.id) is None
    assert set(holder.stale) == {unstarted, handed}
    assert held(holder.ledger, str(holder.lease.id)) == set()


def test_what_the_new_lease_has_claimed_already_is_not_forgotten(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lease that the keeper ended, and a fetcher that is quick to claim under the next one
    unstarted = holder.claim_one()
    holder.ledger.execute("DELETE FROM ledger.workers")
    opened, claimed = Lease.open, []

    def open_and_lose_the_gil(lease: Lease) -> None:
        opened(lease)
        claimed.append(holder.claim_one())

    monkeypatch.setattr(Lease, "open", open_and_lose_the_gil)
    # When the worker takes the next one
    holder.lease._renew()
    # Then it holds what it claimed under that, and nothing of the old one
    assert [entry.fence for entry in holder.claims.entries()] == claimed
    assert unstarted not in claimed


def test_what_is_given_back_is_not_started_by_this_process(holder: Holder) -> None:
    clock = LeaseClock(holder.claims.may_run)
    fence = holder.claim_one()
    clock.extend(fence.lease, now() + 60)
    assert clock.may_start(fence)
    assert holder.claims.move(fence, Phase.ENDED, among={Phase.CLAIMED})
    assert not clock.may_start(fence)


def test_the_deadline_is_looked_at_after_the_inventory(holder: Holder) -> None:
    # Given a process that is stopped at the inventory's lock, until its lease is over
    fence = holder.claim_one()

    def wait_out_the_lease(asked: Fence) -> bool:
        clock.extend(asked.lease, now() - 0.001)
        return True

    clock = LeaseClock(wait_out_the_lease)
    clock.extend(fence.lease, now() + 60)
    # Then it does not start what it had asked for
    assert not clock.may_start(fence)


def test_the_deadline_of_a_later_lease_lets_nothing_of_an_earlier_one_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, time = LeaseClock(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(clock_module, "now", lambda: time.now)
    clock.extend("lease-1", 10.0)
    read = clock._lease

    # Given a process that is stopped while it looks, past its lease, and then gets another
    def read_and_be_stopped() -> str:
        lease = read()
        monkeypatch.setattr(clock, "_lease", read)
        time.now = 100.0
        clock.extend("lease-2", 200.0)
        return lease

    monkeypatch.setattr(clock, "_lease", read_and_be_stopped)
    assert not clock.may_start(Fence("job", 1, "lease-1"))
    assert clock.may_start(Fence("job", 2, "lease-2"))


def test_what_was_started_meanwhile_is_not_given_back_as_unstarted(holder: Holder) -> None:
    fence = holder.claim_one()
    holder.claims.move(fence, Phase.HANDED)
    holder.claims.move(fence, Phase.STARTED)
    assert not holder.claims.move(fence, Phase.ENDED, among={Phase.CLAIMED, Phase.HANDED})
    assert holder.claims.move(fence, Phase.ENDED)


def test_after_an_away_ledger_nothing_is_claimed_before_a_renewal(holder: Holder) -> None:
    holder.lease.report_away()
    assert not holder.lease.is_held
    assert not holder.lease.wait(0)
    holder.lease._renew()
    assert holder.lease.is_held


@pytest.mark.parametrize(
    ("lease", "until"),
    [("lease-1", lambda: now() - 0.001), ("lease-2", lambda: now() + 60)],
    ids=["past the deadline", "claimed under an earlier lease"],
)
def test_a_job_is_not_started_past_its_lease(lease: str, until: Callable[[], float]) -> None:
    clock = LeaseClock()
    share(clock)
    clock.extend(lease, until())
    started = run_claimed(clock, Fence("job", 1, "lease-1"), "no.such", {}, b"", None, None)
    assert started.finish is None


def test_a_task_that_its_process_does_not_know_is_put_off_and_has_not_failed() -> None:
    # As in a child of prefork, when the worker has learned the task after it was started.
    clock = LeaseClock()
    share(clock)
    clock.extend("lease-1", now() + 60)
    ended = run_claimed(clock, Fence("job", 3, "lease-1"), "no.such", {}, b"", None, None).finish
    assert ended is not None
    assert (ended.state, ended.outcome, ended.delay) == (State.SCHEDULED, "released", 4.0)
    assert "'no.such' was registered after this process" in str(ended.error)


def test_the_deadline_counts_from_when_the_renewal_was_sent(holder: Holder) -> None:
    sent = now()
    holder.lease._renew()
    assert holder.lease.id is not None
    (until,) = LeaseClock._DEADLINE.unpack_from(holder.clock._shared)
    assert sent < until < sent + 5.0 + (now() - sent)
    assert until <= now() + 5.0 * 0.9


def test_an_end_leaves_the_inventory_only_when_it_is_settled(holder: Holder) -> None:
    fence = holder.claim_one()
    assert holder.claims.free() == 7
    holder.claims.move(fence, Phase.ENDED)
    assert holder.claims.free() == 8, "its slot is free"
    assert holder.claims.fence_of(fence.id) == fence, "and it is still ours"
    assert not holder.claims.move(fence, Phase.ENDED), "a second end is dropped"
    holder.claims.settle(fence)
    assert holder.claims.fence_of(fence.id) is None


def test_waiting_for_a_slot_ends_when_a_job_does(holder: Holder) -> None:
    claims = Claims(lambda: 1)
    fence = Fence("a", 1, "l")
    claims.reserve(["a"])
    claims.grant(fence)
    started = time.monotonic()
    assert claims.wait_for_slots(1, 0.05) == 0
    assert time.monotonic() - started >= 0.05
    claims.move(fence, Phase.ENDED)
    assert claims.wait_for_slots(1, 5) == 1
    assert read(holder.ledger, "a") is None
