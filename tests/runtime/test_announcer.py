"""Events reach Celery's own receiver, and nobody waits for the Redis that they go by."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from tests.proxy import Proxy, proxied
from worker.runtime import durable
from worker.runtime.announcer import BATCH, MOST, MOST_CHARACTERS, Announcer
from worker.settings import Settings

#: WORKER_CONNECT_TIMEOUT_SECONDS: how long a call to a silent Redis would wait.
TIMEOUT = 30.0


class Listener:
    """Celery's receiver of events, in a thread, as Flower has one."""

    def __init__(self, app: Celery) -> None:
        self.heard: list[dict[str, Any]] = []
        self._app, self._changed = app, threading.Condition()
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self._take})
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listen; whatever is sent from here on is heard."""
        self._thread.start()
        with self._app.connection_for_write() as connection:
            sender = self._app.events.Dispatcher(connection)
            while not self.heard:  # Redis does not tell when a subscription is made
                sender.send("test-probe")
                time.sleep(0.02)

    def numbers(self) -> list[int]:
        """The numbers of the events that were heard, in their order."""
        return [event["number"] for event in self.heard if "number" in event]

    def await_number(self, number: int, seconds: float = 60.0) -> dict[str, Any]:
        """The event of this number, once it is heard."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.numbers(), seconds)
        return next(event for event in self.heard if event.get("number") == number)

    def close(self) -> None:
        """Listen no more."""
        self._receiver.should_stop = True
        self._thread.join(10)
        self._connection.close()

    def _run(self) -> None:
        self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _take(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.heard.append(event)
            self._changed.notify_all()


class Wanted:
    """A dispatcher of a worker that is asked for events."""

    def __init__(self, *groups: str, enabled: bool = True) -> None:
        self.groups, self.enabled = set(groups), enabled


def app_at(redis_url: str) -> Celery:
    # No event touches Postgres.
    settings = Settings.load(
        database_url="postgresql://nobody@127.0.0.1/nothing",
        redis_url=redis_url,
        connect_timeout_seconds=TIMEOUT,
    )
    return durable(Celery("announcer", set_as_current=False), settings)


@pytest.fixture
def line(redis_url: str) -> Iterator[Proxy]:
    """The network between the announcer and Redis."""
    with proxied(redis_url) as proxy:
        yield proxy


@pytest.fixture
def announcer(line: Proxy) -> Announcer:
    made = Announcer(app_at(line.url), "a@host", Wanted)
    made.start()
    return made


@pytest.fixture
def listener(redis_url: str) -> Iterator[Listener]:
    """Has a way to Redis of its own."""
    made = Listener(app_at(redis_url))
    made.start()
    yield made
    made.close()


def connected(announcer: Announcer, listener: Listener) -> None:
    """The announcer has a connection, over which events go, and knows that the first is gone."""
    announcer.send("task-first", number=-1)
    listener.await_number(-1)
    until(
        lambda: not announcer._batch, "the announcer has Redis's answer"
    )  # else it sends it again


def test_events_arrive_in_their_order_and_with_their_times(
    announcer: Announcer, listener: Listener
) -> None:
    count = 2 * BATCH + 7
    before = time.time()
    for number in range(count):
        announcer.send("task-counted", number=number, uuid=str(number))
    after = time.time()
    last = listener.await_number(count - 1)

    assert listener.numbers() == list(range(count))
    events = [event for event in listener.heard if event["type"] == "task-counted"]
    times = [event["timestamp"] for event in events]
    assert times == sorted(times) and before <= times[0] and times[-1] <= after
    clocks = [event["clock"] for event in events]
    assert clocks == sorted(set(clocks))
    assert (last["hostname"], last["uuid"]) == ("a@host", str(count - 1))


def test_who_flushes_knows_that_all_is_sent_and_waits_with_a_bound(
    announcer: Announcer, listener: Listener, line: Proxy
) -> None:
    connected(announcer, listener)
    announcer.send("task-counted", number=1)
    assert announcer.flush(30)  # its thread may end from here on
    listener.await_number(1)
    line.blackhole()
    announcer.send("task-counted", number=2)
    started = time.monotonic()
    assert not announcer.flush(0.2)
    assert time.monotonic() - started < TIMEOUT / 2


def test_nobody_who_sends_waits_for_a_silent_redis(
    announcer: Announcer, listener: Listener, line: Proxy
) -> None:
    connected(announcer, listener)
    line.blackhole()
    began = time.monotonic()
    for number in range(4 * BATCH):
        announcer.send("task-counted", number=number)
    assert time.monotonic() - began < TIMEOUT  # what the first of them would have waited
    line.heal()
    listener.await_number(4 * BATCH - 1)
    assert listener.numbers() == [-1, *range(4 * BATCH)]


def test_events_of_an_outage_come_late_and_once_it_is_told(
    announcer: Announcer, listener: Listener, line: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    connected(announcer, listener)
    line.refuse()
    announcer.send("task-counted", number=0)
    until(lambda: bool(caplog.records), "the announcer says that Redis is away")
    announcer.send("task-counted", number=1)
    line.heal()
    listener.await_number(1)
    announcer.send("task-counted", number=2)
    listener.await_number(2)
    assert listener.numbers() == [-1, 0, 1, 2]
    (told,) = [record for record in caplog.records if record.name.startswith("worker.")]
    assert told.getMessage().startswith("Events are late or lost: ")


def test_only_so_many_events_are_kept_and_the_oldest_go(
    announcer: Announcer, listener: Listener, line: Proxy
) -> None:
    connected(announcer, listener)
    line.blackhole()
    most, more = MOST + BATCH, 3 * BATCH  # one batch may be on its way
    for number in range(most + more):
        announcer.send("task-counted", number=number)
    line.heal()
    listener.await_number(most + more - 1)
    kept = listener.numbers()[1:]
    assert MOST <= len(kept) <= most
    assert kept[-MOST:] == list(range(most + more - MOST, most + more))


def test_only_so_many_characters_are_kept(
    announcer: Announcer, listener: Listener, line: Proxy
) -> None:
    connected(announcer, listener)
    line.blackhole()
    long = MOST_CHARACTERS // 8
    for number in range(20):
        announcer.send("task-failed", number=number, traceback="x" * long)
    announcer.send("task-failed", number=20, traceback="x" * (MOST_CHARACTERS + 1))
    announcer.send("task-succeeded", number=21)
    line.heal()
    listener.await_number(21)
    assert len(listener.numbers()) <= 1 + 1 + 8 + 1
    assert 20 not in listener.numbers()  # it alone is too long


def test_an_event_that_cannot_be_encoded_does_not_hold_up_those_after_it(
    announcer: Announcer, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    announcer.send("task-counted", number=0, result=object())
    until(lambda: bool(caplog.records), "the announcer says that an event is lost")
    announcer.send("task-counted", number=1)
    listener.await_number(1)
    assert listener.numbers() == [1]


@pytest.mark.parametrize(
    ("dispatcher", "enabled"),
    [
        (None, False),  # the worker has no connection yet
        (Wanted(), True),  # of every group
        (Wanted("worker"), False),
        (Wanted("worker", "task"), True),
        (Wanted(enabled=False), False),
    ],
)
def test_events_are_wanted_when_celerys_dispatcher_says_so(
    dispatcher: Wanted | None, enabled: bool, redis_url: str
) -> None:
    assert Announcer(app_at(redis_url), "a@host", lambda: dispatcher).enabled is enabled


def until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait until `true()`; a log has no event to wait on."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def test_nothing_is_announced_while_nobody_listens_and_a_new_listener_is_found(
    announcer: Announcer, redis_url: str
) -> None:
    # Given events that nobody hears
    assert announcer.enabled
    announcer.send("task-counted", number=0)
    # Then none are wanted
    until(lambda: not announcer.enabled, "it notices that nobody listens")
    # Until a listener is there, whom it notices by itself
    listener = Listener(app_at(redis_url))
    listener.start()
    until(lambda: announcer.enabled, "it tries again")
    announcer.send("task-counted", number=1)
    listener.await_number(1)
    assert announcer.enabled, "it is heard"
    listener.close()
