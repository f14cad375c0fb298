from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from tests.ledger import given
from tests.processes import Processes
from worker.broker.doorbells import Doorbells, ring_of
from worker.errors import LedgerUnavailable
from worker.jobs.states import State
from worker.keeper.duties import all_duties
from worker.keeper.keeper import LEAD_SECONDS, Duty, Keeper, Post
from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership
from worker.settings import Settings


@contextmanager
def kept(settings: Settings, *duties: Duty) -> Iterator[Keeper]:
    """A keeper that runs in a thread; stopped with the block."""
    keeper = Keeper(settings, duties)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        yield keeper
    finally:
        keeper.stop()
        given.join([thread])


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.database_url.get_secret_value())
    yield ledger
    ledger.close()


def leaders(ledger: Ledger) -> list[str]:
    """Who holds a lead that is not over."""
    rows = ledger.execute("SELECT holder FROM ledger.leaders WHERE expires_at > clock_timestamp()")
    return [row.holder for row in rows]


class Counting:
    """A duty that counts its rounds, and fails in each of the first as it is told."""

    every = 0.01

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.rounds = 0

    def run(self, post: Post) -> bool:
        self.rounds += 1
        if self.faults:
            raise self.faults.pop()
        return False


def test_of_two_keepers_one_does_the_duties(settings: Settings) -> None:
    first, second = Counting(), Counting()
    with kept(settings, first) as leader:
        given.until(lambda: leader.leads and first.rounds)
        with kept(settings, second) as other:
            rounds = first.rounds
            given.until(lambda: first.rounds > rounds + 20)
            assert leader.leads and not other.leads
            assert second.rounds == 0


def test_the_second_takes_over_from_one_that_stops(settings: Settings) -> None:
    with kept(settings) as first:
        given.until(lambda: first.leads)
        duty = Counting()
        with kept(settings, duty) as second:
            asked = time.monotonic()
            first.stop()
            given.until(lambda: second.leads and duty.rounds)
            assert time.monotonic() - asked < LEAD_SECONDS  # it resigned: nobody waits it out


def test_a_bad_round_does_not_end_the_keeper(settings: Settings) -> None:
    duty = Counting(ZeroDivisionError("a bug"), LedgerUnavailable("away"))
    with kept(settings, duty) as keeper:
        given.until(lambda: duty.rounds > 5)
        assert duty.faults == []  # both were raised
        assert keeper.leads


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
def test_the_second_takes_over_from_one_that_is_killed_or_stopped(
    settings: Settings,
    ledger: Ledger,
    processes: Processes,
    ending: signal.Signals,
) -> None:
    # Given a keeper that leads, in a process of its own
    process = processes([sys.executable, "-m", "worker", "keeper"])
    (holder,) = given.until(lambda: ledger.execute("SELECT holder FROM ledger.leaders"))

    # When it is killed, or stopped: then it cannot resign
    process.send(ending)

    # Then another one leads as soon as the lead is over, and dispatches
    with kept(settings, *all_duties()) as second:
        given.enqueued(ledger, "a", delay=0.1)
        given.until(lambda: second.leads, LEAD_SECONDS + given.PATIENCE)
        given.until(lambda: given.state_of(ledger, "a") is State.QUEUED)
        assert ledger.execute("SELECT holder FROM ledger.leaders") != [holder]
        if ending is signal.SIGSTOP:
            # And the first, continued, does not take it back
            process.send(signal.SIGCONT)
            given.enqueued(ledger, "b", delay=0.1)
            given.until(lambda: given.state_of(ledger, "b") is State.QUEUED)
            assert ledger.execute("SELECT holder FROM ledger.leaders") != [holder]


def test_a_whole_keeper_rescues_dispatches_and_rings(
    settings: Settings, ledger: Ledger, post_of: Callable[[], Post]
) -> None:
    # Given a due job, a dead worker's job, and a job whose doorbell was lost
    given.enqueued(ledger, "due", delay=0.1)
    given.enqueued(ledger, "unrung")
    given.expire(ledger, given.running(ledger, "orphan").lease)

    # When the keeper keeps
    with kept(settings, *all_duties()):
        given.until(lambda: given.state_of(ledger, "due") is State.QUEUED)
        given.until(lambda: given.job_of(ledger, "orphan").suspect)

        # Then doorbells ring for what may run
        post = post_of()
        found: set[str] = set()

        def both() -> bool:
            for item in post.doorbells.pop(["celery"], 10):
                ring = ring_of(item.list, item.entry)
                assert ring is not None
                found.add(ring.id)
            return len(found) >= 2

        given.until(both)
        assert found == {"due", "unrung"}


def test_a_cancelled_statement_does_not_end_the_keeper(settings: Settings, ledger: Ledger) -> None:
    with kept(settings) as keeper:
        given.until(lambda: keeper.leads)
        (holder,) = leaders(ledger)
        # When somebody cancels the statement that extends the lead
        with ledger.transaction() as connection:
            connection.execute(text("LOCK TABLE ledger.leaders"))
            given.until(
                lambda: ledger.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
            given.until(lambda: not keeper.leads)
        # Then it leads again
        given.until(lambda: keeper.leads)
        assert leaders(ledger) == [holder]


def test_a_fault_in_taking_the_lead_does_not_end_the_keeper(
    settings: Settings, ledger: Ledger
) -> None:
    with kept(settings) as keeper:
        given.until(lambda: keeper.leads)
        (holder,) = leaders(ledger)
        ledger.execute("ALTER TABLE ledger.leaders RENAME COLUMN holder TO somebody")
        given.until(lambda: not keeper.leads)
        assert given.until(keeper.health.ready) == ("the lead fails; the log says why.",)
        ledger.execute("ALTER TABLE ledger.leaders RENAME COLUMN somebody TO holder")
        given.until(lambda: keeper.leads)
        assert leaders(ledger) == [holder]
        assert keeper.health.ready() == ()


def test_a_round_that_takes_too_long_gets_more_time(
    settings_for: Callable[..., Settings], ledger: Ledger
) -> None:
    # Given a Postgres that takes longer over each dispatch than an answer may
    ledger.execute("""
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(3); RETURN NEW; END $$
    """)
    ledger.execute("""
        CREATE TRIGGER dawdle BEFORE UPDATE ON ledger.jobs
        FOR EACH ROW WHEN (NEW.state = 'queued') EXECUTE FUNCTION dawdle()
    """)
    given.enqueued(ledger, "a", delay=0.1)

    with kept(settings_for(connect_timeout_seconds=1.0), *all_duties()):
        given.until(lambda: given.state_of(ledger, "a") is State.QUEUED, 2 * given.PATIENCE)
    assert given.state_of(ledger, "a") is State.QUEUED


@pytest.fixture
def post_of(settings: Settings) -> Iterator[Callable[[], Post]]:
    """A post without the lead, opened when asked for."""
    opened: list[Post] = []

    def open_post() -> Post:
        opened.append(
            Post(
                Ledger(settings.database_url.get_secret_value()),
                Doorbells(settings.redis_url.get_secret_value()),
                Leadership("keeper", "nobody", 5),
                settings,
            )
        )
        return opened[-1]

    yield open_post
    for post in opened:
        post.ledger.close()
        post.doorbells.close()
