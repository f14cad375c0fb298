"""The announcer: tells Celery's listeners, such as Flower, what happens, apart from the jobs.

Celery sends a task's events from the thread that runs it, and every thread waits for the others'.
A Redis that is a few milliseconds away then bounds a worker to some hundred jobs a second, and one
that is silent stops it. Here a thread sends, and what it cannot send in time is dropped: events
are for watching, the ledger has the truth.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from celery import Celery
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

#: Events kept while Redis is slow or away, and characters in them; the oldest are dropped beyond.
MOST = 10_000
MOST_CHARACTERS = 16_000_000
#: Events in one message, and characters after which no more are added to it.
BATCH = 500
BATCH_CHARACTERS = 500_000
#: Seconds that events are gathered for, so that a busy worker sends few messages.
GATHER = 0.05
#: Seconds between tries while Redis is away.
AWAY_PAUSE = 2.0
#: Seconds for which no event is made after nobody has heard the last ones: each job has three.
UNHEARD_PAUSE = 1.0


class _Event(NamedTuple):
    kind: str
    fields: dict[str, Any]
    characters: int


class Announcer:
    """Stands where Celery's event dispatcher stands for requests: `enabled` and `send`.

    Args:
        app: a durable app.
        hostname: the worker's node name.
        dispatcher: Celery's own event dispatcher, which says whether events are wanted; `None`
            while the worker has no broker connection.
    """

    def __init__(self, app: Celery, hostname: str, dispatcher: Callable[[], Any]) -> None:
        self._app, self._hostname, self._dispatcher = app, hostname, dispatcher
        self._events: deque[_Event] = deque()
        self._characters = 0
        self._lock = threading.Lock()  # never held while Redis is asked for anything
        self._there_are = threading.Event()
        self._is_over = False
        self._batch: list[_Event] = []  # taken, and not known to be sent
        self._own: Any = None
        self._unheard_until = 0.0
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Start the thread; nothing when it runs."""
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and close its connection, once what was handed over is sent."""
        self._is_over = True
        self._there_are.set()

    def flush(self, seconds: float) -> bool:
        """Wait until what was handed over is sent, at most `seconds`; whether it is."""
        until = time.monotonic() + seconds
        while not self._is_all_sent():
            if time.monotonic() >= until or not self._thread.is_alive():
                return False
            time.sleep(0.01)
        return True

    def _is_all_sent(self) -> bool:
        with self._lock:
            return not self._events and not self._batch

    @property
    def enabled(self) -> bool:
        """Whether somebody wants events of tasks, as far as is known: who begins to listen is
        noticed within `UNHEARD_PAUSE`."""
        if time.monotonic() < self._unheard_until:
            return False
        dispatcher = self._dispatcher()
        if dispatcher is None or not dispatcher.enabled:
            return False
        return not dispatcher.groups or "task" in dispatcher.groups

    def send(self, event: str, **fields: Any) -> None:
        """Hand over an event; returns at once."""
        characters = sum(len(value) for value in fields.values() if isinstance(value, str))
        added = _Event(event, {"timestamp": time.time(), **fields}, characters)
        with self._lock:
            self._events.append(added)
            self._characters += characters
            while len(self._events) > MOST or self._characters > MOST_CHARACTERS:
                self._characters -= self._events.popleft().characters
        self._there_are.set()

    def _run(self) -> None:
        is_away = False
        while not self._is_over:
            self._there_are.wait()
            self._there_are.clear()
            time.sleep(GATHER)
            try:
                self._send_all()
                is_away = False
            except Exception as exc:  # whatever Redis or kombu make of it: jobs go on
                if not is_away:
                    logger.warning("Events are late or lost: %r", exc)
                is_away = True
                if not self._is_redis_away(exc):
                    self._batch = []  # it would never be sent
                self._close()
                time.sleep(AWAY_PAUSE)
                self._there_are.set()
        self._close()

    def _send_all(self) -> None:
        while self._take():
            if self._own is None:
                self._own = self._open()
            for event in self._batch:
                self._own.send(event.kind, **event.fields)
            self._own.flush()
            self._batch = []
            if self._own.producer.channel.heard == 0:
                self._unheard_until = time.monotonic() + UNHEARD_PAUSE

    def _take(self) -> list[_Event]:
        """The batch that is to be sent: the one before, when it was not, or else the next."""
        characters = 0
        with self._lock:
            while self._events and len(self._batch) < BATCH and characters < BATCH_CHARACTERS:
                self._batch.append(self._events.popleft())
                characters += self._batch[-1].characters
            self._characters -= characters
        return self._batch

    def _open(self) -> Any:
        # Not for writing: such a connection bears that Redis is away, and would log it each time.
        connection = self._app.connection_for_read()
        connection.ensure_connection(max_retries=0)  # else kombu comes to wait for half a minute
        return self._app.events.Dispatcher(
            connection,
            hostname=self._hostname,
            buffer_while_offline=False,  # else it keeps them without a bound
            buffer_group=frozenset({"task"}),
            buffer_limit=BATCH + 1,
        )

    def _is_redis_away(self, exc: Exception) -> bool:
        away: tuple[type[Exception], ...] = self._app.connection_for_read().connection_errors
        return isinstance(exc, (OperationalError, *away))

    def _close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            with suppress(Exception):  # it is broken already
                own.connection.close()
