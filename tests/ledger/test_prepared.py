"""What is prepared is planned anew before it is old, and sent whole where it cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from tests.ledger import given
from worker.jobs.job import Claim, Enqueued
from worker.jobs.states import State
from worker.ledger import prepared, session
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.prepared import PLANNED, Prepared

#: Found by ids; `jobs` is read from end to end only where it has next to no pages.
_LOOK = Prepared("look", text("SELECT task FROM ledger.jobs WHERE id = ANY(CAST(:ids AS text[]))"))
NOBODY = {"ids": "{nobody}"}
_PERCENT = Prepared("percent", text("SELECT '100%' WHERE CAST(:name AS text) LIKE '%a%'"))
_OF_ANOTHER_PROCESS = session._SET_BOUNDS.replace("pg_backend_pid()", "pg_backend_pid() + 1")


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

    # When the table grows, Postgres keeps it (where it did not just analyse the table)
    door.execute("ALTER TABLE ledger.jobs SET (autovacuum_enabled = off)")
    assert door.rows_at_once(_LOOK, NOBODY) == []
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
def test_where_nothing_is_kept_each_statement_is_sent_whole(
    door: Ledger, trick: Callable[[Ledger], None]
) -> None:
    # Given a door that has prepared its statements, and a trick of a pooler that is not known
    lease = given.lease(door)
    assert a_life(door, lease) is State.SUCCEEDED
    trick(door)
    before = kept(door)

    # Then everything works as before, and nothing more is prepared
    assert a_life(door, lease) is State.SUCCEEDED
    assert a_life(door, lease) is State.SUCCEEDED
    assert kept(door) == before


def test_several_connections_are_found_out_one_by_one(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    door = open_ledger(connections=3)
    lease = given.lease(door)
    with ThreadPoolExecutor(3) as threads:
        together = Barrier(3)

        def forgetful(_: int) -> None:
            with door.transaction() as connection:
                together.wait(10)  # so that each has a connection of its own
                connection.execute(text("SELECT 1"))

        list(threads.map(forgetful, range(3)))
        assert set(threads.map(lambda _: a_life(door, lease), range(30))) == {State.SUCCEEDED}
        for _ in range(3):
            forget(door)
        assert set(threads.map(lambda _: a_life(door, lease), range(30))) == {State.SUCCEEDED}


def test_a_pooler_that_gives_numbers_of_its_own_is_known_from_the_start(
    door: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection on which the server's process is not the one that was named at its start,
    # as PgBouncer's clients have it: each is given a random number to cancel by
    monkeypatch.setattr(session, "_SET_BOUNDS", _OF_ANOTHER_PROCESS)

    # Then nothing is prepared, no error is met, and no setting is left behind
    assert a_life(door, given.lease(door)) is State.SUCCEEDED
    assert kept(door) == []
    assert [row[0] for row in door.execute("SHOW plan_cache_mode")] == ["auto"]


@pytest.mark.parametrize(
    ("change", "state"),
    [("ALTER envelope TYPE varchar", "0A000"), ("DROP COLUMN extra", "42703")],
    ids=["what a claim returns has another type", "a column that is asked for is gone"],
)
def test_a_table_that_changes_costs_an_error_and_no_job(
    door: Ledger, caplog: pytest.LogCaptureFixture, change: str, state: str
) -> None:
    # Given what was prepared on the tables as they were
    lease = given.lease(door)
    assert a_life(door, lease) is State.SUCCEEDED
    door.execute("ALTER TABLE ledger.jobs ADD COLUMN extra int")
    looked = Prepared("extra", text("SELECT id FROM ledger.jobs WHERE extra = 1"))
    assert door.rows_at_once(looked, {}) == []

    # When they are changed, as no migration of ours does
    door.execute(f"ALTER TABLE ledger.jobs {change}")

    # Then the connection is sent whole statements, which do what can be done
    with caplog.at_level("INFO", "worker.ledger.prepared"):
        assert state == "0A000" or door.rows_at_once(looked, {}) is None
        assert a_life(door, lease) is State.SUCCEEDED
    assert f"SQLSTATE {state}" in caplog.text


@pytest.mark.parametrize("ask", ["at once", "in the usual way"])
def test_a_percent_sign_is_one(door: Ledger, ask: str) -> None:
    found = (
        door.rows_at_once(_PERCENT, {"name": "tests.add"})
        if ask == "at once"
        else door.run_each(lambda connection: list(_PERCENT.execute(connection, {"name": "a"})))
    )
    assert found is not None
    assert [tuple(row) for row in found] == [("100%",)]


def test_what_is_refused_has_claimed_nothing_twice(door: Ledger) -> None:
    lease = given.lease(door)
    first, second = given.enqueued(door, "a", "b")
    assert attempts(claim(door, lease, [first])) == [1]
    forget(door)
    assert attempts(claim(door, lease, [second])) == [1]


def attempts(granted: list[Claim]) -> list[int]:
    return [one.fence.attempt for one in granted]
