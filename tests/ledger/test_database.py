from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.ledger import given
from tests.ledger.test_migrate import as_setting
from tests.ledger.test_schema import emptied, ledger_at, upgrade
from tests.proxy import Proxy
from tests.servers import Databases
from worker.errors import LedgerError, LedgerUnavailable
from worker.jobs.job import Finish, Message
from worker.jobs.states import State
from worker.ledger import prepared, session, silence
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.ledger.faults import NotDone, Refused
from worker.ledger.finish import finish
from worker.ledger.migrate import check_schema, migrate
from worker.ledger.prepared import Prepared
from worker.ledger.silence import Patience, patient

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
    ledger.execute("UPDATE ledger.jobs SET envelope = :secret", {"secret": SECRET})

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


@pytest.mark.parametrize("each_time", [True, False], ids=["at-each-use", "once"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda door: door.run(lambda connection: connection.scalar(text("SELECT 1"))),
        lambda door: door.run_each(lambda connection: connection.scalar(text("SELECT 1"))),
        lambda door: door.rows(text("SELECT 1 AS one"))[0].one,
        lambda door: (door.rows_at_once(Prepared("one", text("SELECT 1")), {}) or [(1,)])[0][0],
    ],
    ids=["run", "run_each", "rows", "rows_at_once"],
)
def test_a_dead_connection_that_is_due_to_be_judged_is_replaced(
    ledger: Ledger,
    open_ledger: Callable[..., Ledger],
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Ledger], Any],
    each_time: bool,
) -> None:
    monkeypatch.setattr(session, "LOOK_EVERY", 0.0)
    door = open_ledger()
    ((pid,),) = door.execute("SELECT pg_backend_pid()")
    if not each_time:
        monkeypatch.setattr(session, "LOOK_EVERY", 60.0)
    ledger.execute("SELECT pg_terminate_backend(:pid, 5000)", {"pid": pid})

    assert ask(door) == 1
    assert ask(door) == 1


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
        pytest.raises(NotDone, match="statement timeout"),
    ):
        door.execute("SELECT pg_sleep(2.5)")


@pytest.mark.parametrize(
    "state", ["57014", "55P03", "58030", "58P01", "XX000", "XX001", "57P01", "53100"]
)
def test_what_postgres_reports_as_its_own_trouble_is_no_fault_of_ours(
    ledger: Ledger, state: str
) -> None:
    with pytest.raises(LedgerUnavailable):
        ledger.execute(f"DO $$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '{state}'; END $$")


def test_a_statement_that_takes_too_long_leaves_nothing_behind(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a transaction that holds a lock, and a statement in it that takes too long
    door = open_ledger(timeout=1.0)
    given.enqueued(ledger, "a")
    with pytest.raises(NotDone), door.transaction() as connection:
        connection.execute(text("UPDATE ledger.jobs SET task = 'b' WHERE id = 'a'"))
        connection.execute(text("SELECT pg_sleep(600)"))

    # Then nobody waits for the lock
    ledger.execute("SELECT id FROM ledger.jobs WHERE id = 'a' FOR UPDATE NOWAIT")


def test_patience_is_for_the_block_and_the_thread(open_ledger: Callable[..., Ledger]) -> None:
    door = open_ledger(timeout=1.0)
    with patient(2):
        assert len(door.execute("SELECT pg_sleep(3)")) == 1
    (row,) = door.execute("SELECT current_setting('statement_timeout') AS bound")
    assert row.bound == "2s"


def test_an_operators_own_shorter_limit_stays(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    (row,) = ledger.execute("SELECT current_database() AS name")
    for own, bound in (("300ms", "300ms"), ("1h", "10s"), ("0", "10s")):
        ledger.execute(f"ALTER DATABASE \"{row.name}\" SET statement_timeout = '{own}'")
        (found,) = open_ledger().execute("SELECT current_setting('statement_timeout') AS bound")
        assert found.bound == bound


def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone(url: str) -> None:
    # Given a watched connection, whose descriptor another socket has got meanwhile
    address = url.replace("+psycopg2", "")
    connection: Any = Patience(5.0).connection(address)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.dup2(ours.fileno(), connection.fileno())

        # When the watch would shut it
        silence._shut(connection)

        # Then that one still works
        ours.send(b"alive")
        assert theirs.recv(5) == b"alive"
    connection.close()


def test_a_migration_does_not_keep_others_waiting_behind_it(databases: Databases) -> None:
    # Given an old schema, and somebody who reads a table of it for long
    address = emptied(databases)
    door, other = ledger_at(address), ledger_at(address)
    upgrade(door, "0001")
    migrating = threading.Thread(target=migrate, args=(as_setting(address),))
    with door.transaction() as reader:
        reader.execute(text("SELECT count(*) FROM ledger.jobs"))

        # When it is migrated
        migrating.start()
        given.until(lambda: given.waits_for_a_lock(other))

        # Then others that come for the table have their turn
        assert len(other.execute("SELECT count(*) FROM ledger.jobs")) == 1
        assert migrating.is_alive()

    # And the migration has its own when the reader is gone
    given.join([migrating])
    check_schema(other)
    door.close()
    other.close()


def test_a_connection_that_keeps_its_statements_for_a_commit_is_given_to_nobody(
    ledger: Ledger,
) -> None:
    # Given a connection left as a signal in the middle of `transaction` could leave it
    ledger.execute("CREATE TABLE kept (value int)")
    with ledger.engine.connect() as connection:
        left: Any = connection.connection.dbapi_connection
    left.autocommit = False
    # When something is written
    ledger.execute("INSERT INTO kept VALUES (1)")
    # Then it is written for everybody, by another connection
    assert [row.value for row in ledger.execute("SELECT value FROM kept")] == [1]
    assert left.closed


def test_a_connection_that_is_left_in_a_transaction_is_given_to_nobody(ledger: Ledger) -> None:
    # Given one left as two signals in the middle of `transaction` could leave it
    ledger.execute("CREATE TABLE left_behind (value int)")
    with ledger.engine.connect() as connection:
        left: Any = connection.connection.dbapi_connection
    left.autocommit = False
    left.cursor().execute("INSERT INTO left_behind VALUES (1)")
    # When the ledger is used
    ledger.execute("INSERT INTO left_behind VALUES (2)")
    # Then nothing of it is seen
    assert [row.value for row in ledger.execute("SELECT value FROM left_behind")] == [2]
    assert left.closed


@pytest.mark.parametrize("count", [1, 3])
def test_a_cursor_is_kept_unless_it_holds_much(ledger: Ledger, count: int) -> None:
    statement = Prepared("kept", text("SELECT number FROM generate_series(1, :count) AS number"))
    for _ in range(3):
        rows = ledger.rows_at_once(statement, {"count": count})
        assert rows == [(number,) for number in range(1, count + 1)]
    raw: Any = ledger.engine.raw_connection()
    assert (prepared._CURSOR in raw.info) is (count == 1)
    raw.close()


def test_a_cursor_goes_with_its_connection(ledger: Ledger) -> None:
    own = Prepared("own", text("SELECT pg_backend_pid()"))
    first = ledger.rows_at_once(own, {})
    assert ledger.rows_at_once(own, {}) == first is not None

    assert (
        ledger.rows_at_once(
            Prepared("end", text("SELECT pg_terminate_backend(:pid)")), {"pid": first[0][0]}
        )
        is None
    )

    assert ledger.rows_at_once(own, {}) not in (None, first)


def test_a_cursor_bears_an_error(ledger: Ledger) -> None:
    divided = Prepared("divided", text("SELECT 1 / CAST(:by AS int)"))
    assert ledger.rows_at_once(divided, {"by": 1}) == [(1,)]
    with pytest.raises(Refused):
        ledger.rows_at_once(divided, {"by": 0})
    assert ledger.rows_at_once(divided, {"by": 1}) == [(1,)]
