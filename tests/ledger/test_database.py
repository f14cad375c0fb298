from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from sqlalchemy.exc import DBAPIError

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import LedgerError, LedgerUnavailable
from worker.jobs.job import Finish, Message
from worker.jobs.states import State
from worker.ledger.database import Ledger, Refused
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish

SECRET = "s3cret"


def told(error: BaseException) -> str:
    """All that a log would have of `error`: its text, its causes', and the traceback."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "bad",
    [
        {"priority": 1 << 40},  # out of range
        {"list": "".join(map(chr, range(1000, 9000)))},  # too large for an index
        {"task": "a\0b"},
    ],
)
def test_a_refusal_tells_nothing_of_the_payload(ledger: Ledger, bad: dict[str, object]) -> None:
    message = Message(SECRET, SECRET.encode())

    with pytest.raises(Refused) as caught:
        enqueue(ledger, [replace(given.job("a"), message=message, **bad)])  # type: ignore[arg-type] # by name

    assert SECRET not in told(caught.value)
    assert SECRET.encode().hex() not in told(caught.value)


def test_a_row_against_a_constraint_is_not_quoted(ledger: Ledger) -> None:
    # Postgres's detail is "Failing row contains (…)", with the message and the result in it.
    fence = given.running(ledger, "a")
    ledger.execute("UPDATE jobs SET envelope = :secret", {"secret": SECRET})

    with pytest.raises(Refused) as caught:
        finish(ledger, [Finish(fence, State.SCHEDULED, "retried", error=SECRET)])

    assert SECRET not in told(caught.value)


def test_a_fault_in_a_statement_tells_nothing_of_its_parameters(ledger: Ledger) -> None:
    with pytest.raises(DBAPIError) as caught:
        ledger.execute("SELECT no_such_function(),\n :secret", {"secret": SECRET})

    assert SECRET not in told(caught.value)


def test_an_outage_tells_nothing_of_the_payload(ledger: Ledger) -> None:
    with pytest.raises(LedgerError) as caught, ledger.transaction() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid()), %s", (SECRET,))

    assert SECRET not in told(caught.value)


def test_a_standby_counts_as_away_and_is_left_for_the_primary(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a connection to what takes no writes any more, as after a failover
    (row,) = ledger.execute("SELECT current_database() AS name")
    ledger.execute(f'ALTER DATABASE "{row.name}" SET default_transaction_read_only = on')
    door = open_ledger()
    with pytest.raises(LedgerUnavailable, match="takes no writes"):
        enqueue(door, [given.job("a")])

    # When new connections lead to the primary
    ledger.execute(f'ALTER DATABASE "{row.name}" RESET default_transaction_read_only')

    # Then the same door does
    enqueue(door, [given.job("a")])
    assert given.state_of(ledger, "a") is State.QUEUED


def test_a_postgres_that_takes_a_statement_and_says_nothing_is_away(
    proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a connection whose bytes are taken and never answered: no timeout of a socket sees that
    door = given.connected(open_ledger(proxy.url, timeout=1.0))
    proxy.blackhole()

    # Then a statement, or a commit, fails when it has waited for two such timeouts
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            door.execute("SELECT 1")
        assert time.monotonic() - began < 10  # for ever, but for the bound

    # and the door leads in again when Postgres answers
    proxy.heal()
    assert len(door.execute("SELECT 1")) == 1


def test_a_statement_that_takes_its_time_is_not_cut_short(
    open_ledger: Callable[..., Ledger],
) -> None:
    door = open_ledger(timeout=1.0)
    assert len(door.execute("SELECT pg_sleep(1.2)")) == 1
    assert len(door.execute("SELECT pg_sleep(1.2)")) == 1  # each has the whole time


def test_a_migration_may_take_longer_than_any_answer(url: str) -> None:
    with closing(Ledger(url, connections=1, connect_timeout=1.0, waits_for_ever=True)) as door:
        assert len(door.execute("SELECT pg_sleep(2.5)")) == 1
    with (
        closing(Ledger(url, connections=1, connect_timeout=1.0)) as door,
        pytest.raises(LedgerUnavailable, match="has not answered for 2 s"),
    ):
        door.execute("SELECT pg_sleep(2.5)")
