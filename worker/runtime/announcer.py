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
from typing import Any

from celery import Celery

logger = logging.getLogger(__name__)

#: Events kept while Redis is slow or away; the oldest are dropped beyond.
MOST = 10_000
#: Events in one message.
BATCH = 500
#: Seconds that events are gathered for, so that a busy worker sends few messages.
GATHER = 0.05
#: Seconds between tries while Redis is away.
AWAY_PAUSE = 2.0


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
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MOST)
        self._there_are = threading.Event()
        self._own: Any = None
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Start the thread; nothing when it runs."""
        if not self._thread.is_alive():
            self._thread.start()

    @property
    def enabled(self) -> bool:
        """Whether somebody wants events of tasks."""
        dispatcher = self._dispatcher()
        if dispatcher is None or not dispatcher.enabled:
            return False
        return not dispatcher.groups or "task" in dispatcher.groups

    def send(self, event: str, **fields: Any) -> None:
        """Hand over an event; returns at once."""
        self._events.append((event, {"timestamp": time.time(), **fields}))
        self._there_are.set()

    def _run(self) -> None:
        is_away = False
        while True:
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
                self._close()
                time.sleep(AWAY_PAUSE)
                self._there_are.set()

    def _send_all(self) -> None:
        while self._events:
            if self._own is None:
                self._own = self._open()
            for _ in range(BATCH):
                try:
                    event, fields = self._events.popleft()
                except IndexError:
                    break
                self._own.send(event, **fields)
            self._own.flush()

    def _open(self) -> Any:
        return self._app.events.Dispatcher(
            self._app.connection_for_write(),
            hostname=self._hostname,
            buffer_while_offline=False,  # else it keeps them without a bound
            buffer_group=frozenset({"task"}),
            buffer_limit=BATCH + 1,
        )

    def _close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            with suppress(Exception):  # it is broken already
                own.connection.close()
