from __future__ import annotations

import pytest

from tests.ledger import given
from worker.errors import LeaseLost
from worker.jobs.states import State
from worker.ledger import retention as retention_module
from worker.ledger.change import cancel
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.read import counts, read, read_list
from worker.ledger.retention import drop_old, expire_late

DAY = 86400


def drop(ledger: Ledger, succeeded_days: float = 7, failed_days: float = 30) -> int:
    return drop_old(ledger, None, succeeded_days=succeeded_days, failed_days=failed_days)


def test_each_kind_of_end_is_kept_for_its_own_time(ledger: Ledger) -> None:
    # Given jobs that ended eight days ago, and jobs that did not end
    for name, end in (("succeeded", given.success), ("failed", given.failure)):
        finish(ledger, [end(given.running(ledger, name))])
    given.enqueued(ledger, "cancelled")
    cancel(ledger, "cancelled", "not wanted")
    given.enqueued(ledger, "queued")
    given.enqueued(ledger, "scheduled", delay=60)
    given.running(ledger, "running")
    given.age(ledger, "finished_at", 8 * DAY, "succeeded", "failed", "cancelled")
    given.age(ledger, "created_at", 99 * DAY, "queued", "scheduled", "running")

    # Then the success is over its time, the others a while later, the rest never
    assert drop(ledger) == 1
    assert read(ledger, "succeeded") is None
    given.age(ledger, "finished_at", 30 * DAY, "failed", "cancelled")
    assert drop(ledger) == 2
    assert {job.id for job in read_list(ledger)} == {"queued", "scheduled", "running"}
    assert ledger.execute("SELECT * FROM ledger.attempts") == []


def test_it_is_dropped_in_batches_oldest_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 2)
    fences = [one.fence for one in given.claimed(ledger, "a", "b", "c")]
    finish(ledger, [given.success(fence) for fence in fences])
    for number, job_id in enumerate("cba"):
        given.age(ledger, "finished_at", (10 + number) * DAY, job_id)

    assert drop(ledger) == 2
    assert [job.id for job in read_list(ledger)] == ["c"]
    assert (drop(ledger), drop(ledger)) == (1, 0)


def test_what_somebody_else_has_locked_is_left_for_later(ledger: Ledger) -> None:
    from sqlalchemy import text

    fences = [one.fence for one in given.claimed(ledger, "a", "b")]
    finish(ledger, [given.failure(fence) for fence in fences])
    given.age(ledger, "finished_at", 60 * DAY, "a", "b")
    with ledger.transaction() as connection:
        connection.execute(text("SELECT 1 FROM ledger.jobs WHERE id = 'a' FOR UPDATE"))

        assert drop(ledger) == 1

    assert drop(ledger) == 1


def test_what_was_not_started_in_its_time_is_cancelled_with_the_reason(ledger: Ledger) -> None:
    given.enqueued(ledger, "late", "at once", "in time", expires=60)
    given.enqueued(ledger, "waiting", expires=60, delay=600)
    given.running(ledger, "running", expires=60)
    given.age(ledger, "expires_at", 120, "late", "at once", "waiting", "running")
    given.age(ledger, "dispatched_at", 180, "late")

    expired = expire_late(ledger, None)

    # The doorbell of the one that was late is in its list, or told a worker while there was time.
    assert (expired.count, {ring.id for ring in expired.rings}) == (3, {"at once", "waiting"})
    for job_id in ("late", "at once", "waiting"):
        job = given.job_of(ledger, job_id)
        assert (job.state, job.error) == (State.CANCELLED, "expired before it was started")
    assert counts(ledger) == {State.CANCELLED: 3, State.QUEUED: 1, State.RUNNING: 1}


def test_without_the_lead_nothing_is_dropped(ledger: Ledger) -> None:
    nobody = Leadership("keeper", "nobody", 5)

    with pytest.raises(LeaseLost):
        expire_late(ledger, nobody)
    with pytest.raises(LeaseLost):
        drop_old(ledger, nobody, succeeded_days=1, failed_days=1)
