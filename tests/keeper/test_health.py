from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.ledger import given
from tests.processes import Processes
from tests.proxy import Proxy, proxied
from worker.errors import BrokerUnavailable
from worker.keeper.keeper import Duty, Keeper, Post
from worker.settings import Settings
from worker.telemetry.watchdog import EXIT_WEDGED


class Stuck:
    """A duty whose round lasts until it is let go."""

    every = 0.01

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def run(self, post: Post) -> bool:
        self.entered.set()
        self.gate.wait()
        return False


class Asking:
    """A duty that asks Postgres, and Redis when told so."""

    every = 0.01

    def __init__(self) -> None:
        self.rounds = 0
        self.fault: Exception | None = None

    def run(self, post: Post) -> bool:
        post.ledger.execute("SELECT 1")
        if self.fault is not None:
            raise self.fault
        self.rounds += 1
        return False


@contextmanager
def kept(settings: Settings, *duties: Duty) -> Iterator[Keeper]:
    """A keeper that runs in a thread, and soon takes a round to be too long."""
    keeper = Keeper(settings, duties)
    keeper.health.limit = 1.0
    assert keeper.health.ready() == ("The keeper is starting.",)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        yield keeper
    finally:
        keeper.stop()
        for duty in duties:
            if isinstance(duty, Stuck):
                duty.gate.set()
        given.join([thread])


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with proxied(database_url) as made:
        yield made


def test_a_duty_that_is_stuck_while_postgres_answers_fails_liveness(settings: Settings) -> None:
    stuck = Stuck()
    with kept(settings, stuck, Asking()) as keeper:
        assert stuck.entered.wait(given.PATIENCE)
        faults = given.until(keeper.health.live)
        assert faults == ("A round of Stuck has taken over 1 s though Postgres answers.",)
        assert set(faults) <= set(keeper.health.ready())
        # And no more, once it is through
        stuck.gate.set()
        given.until(lambda: keeper.health.live() == keeper.health.ready() == ())


def test_a_silent_postgres_is_no_reason_to_start_a_keeper_again(
    settings_for: Callable[..., Settings], proxy: Proxy
) -> None:
    asking = Asking()
    settings = settings_for(database_url=proxy.url, connect_timeout_seconds=1)
    with kept(settings, asking) as keeper:
        given.until(lambda: asking.rounds and not keeper.health.ready())
        proxy.blackhole()
        seen: list[tuple[str, ...]] = []

        def late() -> bool:
            seen.append(keeper.health.live())
            return bool(keeper.health._late(keeper.health.limit))

        given.until(late)
        given.until(lambda: "Postgres does not answer." in keeper.health.ready())
        assert set(seen) == {()}
        proxy.heal()
        given.until(lambda: not keeper.health.ready())


def test_a_duty_that_finds_redis_away_is_told_and_forgotten(settings: Settings) -> None:
    asking = Asking()
    with kept(settings, asking) as keeper:
        given.until(lambda: asking.rounds)
        asking.fault = BrokerUnavailable("redis://user:secret@host is away")
        given.until(lambda: keeper.health.ready() == ("Redis does not answer, or refuses.",))
        asking.fault = None
        given.until(lambda: keeper.health.ready() == ())
        assert keeper.health.live() == ()


_WEDGED = """
from tests.keeper.test_health import Stuck
from worker.keeper import health
from worker.keeper.keeper import Keeper
from worker.settings import Settings
health.Health.__init__.__defaults__ = (1.0,)
Keeper(Settings.load(), [Stuck()]).run()
"""


def test_a_keeper_that_stays_stuck_ends(processes: Processes) -> None:
    process = processes([sys.executable, "-c", _WEDGED])
    assert process.wait(60) == EXIT_WEDGED
    assert "A round of Stuck has taken over 1 s" in process.output
