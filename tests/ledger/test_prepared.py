"""What is prepared is planned anew before it is old, and sent whole where it cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from tests.ledger import given
from worker.jobs.job import Claim, Enqueued
from worker.jobs.states import State
from worker.ledger import prepared
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.prepared import PLANNED, Prepared

#: Found by ids; `jobs` is read from end to end only where it has next to no pages.
_LOOK = Prepared(text("SELECT task FROM jobs WHERE id = ANY(CAST(:ids AS text[]))"))
NOBODY = {"ids": "{nobody}"}


@pytest.fixture
def door(ledger: Ledger, open_ledger: Callable[..., Ledger]) -> Ledger:
    """A door with one connection."""
    return open_ledger()


def kept(door: Ledger) -> list[str]:
    """The names of what its connection has prepared."""
    return [row.name for row in door.execute("SELECT name FROM pg_prepared_statements")]


def a_life(door: Ledger, lease: str) -> State:
    """What a job comes to that is enqueued, claimed and ends, by what is prepared."""
    (answer,) = enqueue(door, [given.job()])
    assert isinstance(answer, Enqueued)
    (granted,) = claim(door, lease, [answer.id])
    finish(door, [given.success(granted.fence)])
    return given.state_of(door, answer.id)


def test_each_connection_prepares_a_statement_once(
    door: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    lease = given.lease(door)
    for other in (door, door, open_ledger()):
        assert a_life(other, lease) is State.SUCCEEDED
        assert len(kept(other)) == 3  # the insert, the claim, the success


def test_in_a_transaction_nothing_is_prepared(door: Ledger) -> None:
    with door.transaction() as connection:
        assert _LOOK.execute(connection, NOBODY).all() == []
    assert kept(door) == []


def test_a_plan_is_dropped_once_it_is_old(door: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a plan that was made for a small table
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(prepared, "time", SimpleNamespace(monotonic=lambda: clock.now))
    assert door.rows_at_once(_LOOK, NOBODY) == []
    assert "Seq Scan" in plan(door)

    # When the table grows, Postgres keeps it
    enqueue(door, [given.job() for _ in range(3000)])
    clock.now += PLANNED / 2
    assert door.rows_at_once(_LOOK, NOBODY) == []
    assert "Seq Scan" in plan(door)

    # And we do not
    clock.now += PLANNED
    assert door.rows_at_once(_LOOK, NOBODY) == []
    assert "Seq Scan" not in plan(door)


def plan(door: Ledger) -> str:
    """Of what the door has prepared."""
    (name,) = kept(door)
    rows = door.execute(f"EXPLAIN EXECUTE {name}('{{a}}')")
    return "\n".join(line for (line,) in rows)


def forget(door: Ledger) -> None:
    """A pooler gave the connection to another server process than the last time."""
    door.execute("DEALLOCATE ALL")


def take_the_names(door: Ledger) -> None:
    """A pooler gave it to one where another client's stand."""
    others = kept(door)
    door.engine.dispose()
    for name in others:
        door.execute(f"PREPARE {name} AS SELECT 1")


@pytest.mark.parametrize("trick", [forget, take_the_names])
def test_behind_a_pooler_each_statement_is_sent_whole(
    door: Ledger, trick: Callable[[Ledger], None]
) -> None:
    # Given a door that has prepared its statements, and a pooler's trick
    lease = given.lease(door)
    assert a_life(door, lease) is State.SUCCEEDED
    trick(door)
    before = kept(door)

    # Then everything works as before, and nothing more is prepared
    assert a_life(door, lease) is State.SUCCEEDED
    assert a_life(door, lease) is State.SUCCEEDED
    assert kept(door) == before


def test_what_a_pooler_refuses_has_claimed_nothing_twice(door: Ledger) -> None:
    lease = given.lease(door)
    first, second = given.enqueued(door, "a", "b")
    assert attempts(claim(door, lease, [first])) == [1]
    forget(door)
    assert attempts(claim(door, lease, [second])) == [1]


def attempts(granted: list[Claim]) -> list[int]:
    return [one.fence.attempt for one in granted]
