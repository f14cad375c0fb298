"""Retention blocks nobody, and asks for less when a batch takes too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from tests.keeper.conftest import posted
from tests.ledger import given
from worker.jobs.states import State
from worker.keeper.cleaner import Cleaner
from worker.keeper.keeper import Post
from worker.ledger import retention as retention_module
from worker.ledger.change import cancel, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.faults import NotDone
from worker.ledger.finish import finish
from worker.ledger.groups import read_group, save_group
from worker.ledger.leader import Leadership
from worker.ledger.read import counts, read_list
from worker.ledger.retention import drop_old
from worker.settings import Settings

DAY = 86400


def ended(ledger: Ledger, *ids: str) -> None:
    """Failed jobs, long past their time."""
    fences = [one.fence for one in given.claimed(ledger, *ids)]
    finish(ledger, [given.failure(fence) for fence in fences])
    given.age(ledger, "finished_at", 60 * DAY, *ids)


@pytest.fixture
def post(settings_for: Callable[..., Settings]) -> Iterator[Post]:
    """A post where Postgres ends a statement after two seconds."""
    yield from posted(settings_for(connect_timeout_seconds=1))


def test_while_a_batch_is_deleted_everybody_else_goes_on(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a batch that is deleted and not committed yet
    ended(ledger, "old")
    ended(ledger, "kept")
    given.age(ledger, "finished_at", -59 * DAY, "kept")
    given.enqueued(ledger, "waits", "unwanted")
    other = open_ledger(timeout=0.5)
    with ledger.transaction() as connection:
        statement = retention_module._DROP_ENDED_BADLY
        assert connection.execute(statement, {"days": 30, "batch": 9}).rowcount == 1

        # When others enqueue, claim, finish, cancel, replay, list and clean, then nobody waits
        given.enqueued(other, "new")
        claims = claim(other, given.lease(other), ["new", "waits"])
        assert finish(other, [given.success(one.fence) for one in claims]).granted == {
            "new",
            "waits",
        }
        cancel(other, "unwanted", "not wanted")
        replay(other, "kept")
        assert len(read_list(other)) == 5
        assert drop_old(other, None, succeeded_days=30, failed_days=30) == 0

    assert [job.id for job in read_list(ledger, state=State.QUEUED)] == ["kept"]


def test_a_saved_group_that_is_in_use_is_left_for_later(ledger: Ledger) -> None:
    save_group(ledger, "a", b"1")
    save_group(ledger, "b", b"2")
    ledger.execute("UPDATE ledger.groups SET created_at = created_at - interval '60 days'")
    with ledger.transaction() as connection:
        connection.execute(text("SELECT FROM ledger.groups WHERE id = 'a' FOR UPDATE"))
        drop_old(ledger, None, succeeded_days=7, failed_days=30)

    assert (read_group(ledger, "a"), read_group(ledger, "b")) == (b"1", None)


def test_between_two_kinds_the_lead_may_be_taken(ledger: Ledger) -> None:
    # Given a leader that is replaced as soon as a transaction of its own has ended
    leads, follows = (Leadership("keeper", holder, 600) for holder in ("leads", "follows"))
    assert leads.take(ledger)
    ended(ledger, "a")
    checks: list[str] = []

    class Replaced(Leadership):
        def check(self, connection: object) -> None:
            checks.append(self.holder)
            super().check(connection)  # type: ignore[arg-type] # a Connection

    watching = Replaced(leads.name, leads.holder, leads.seconds)
    drop_old(ledger, watching, succeeded_days=7, failed_days=7)

    # Then it is asked whether it leads before each kind
    assert checks == ["leads"] * 3
    assert not follows.take(ledger)


def test_a_batch_that_takes_too_long_is_halved(post: Post, ledger: Ledger) -> None:
    # Given old jobs whose attempts somebody keeps locked
    ended(ledger, "a", "b")
    asked: list[int] = []
    cleaner = Cleaner()
    with ledger.transaction() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT FROM ledger.attempts FOR UPDATE"))
        for _ in range(3):
            asked.append(cleaner._effort.size)
            with pytest.raises(NotDone):
                cleaner.run(post)

    # Then each try asks for half as many, and the next one for more again
    assert asked == [1000, 500, 250]
    assert not cleaner.run(post)
    assert cleaner._effort.size == 250
    assert counts(ledger) == {}
