"""One side of the comparison: servers, workers, and what a row asks them."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import celery
import redis
from celery import Celery

from tests import servers
from tests.parity.app import make
from tests.parity.tasks import define
from tests.processes import Processes

SIDES: Final = ("stock", "durable")
# What is typed of canvas gets in the way of rows: each result here has what its kind has.
chain: Any = celery.chain
chord: Any = celery.chord
group: Any = celery.group

#: Seconds that a row waits for anything.
PATIENCE: Final = 20.0
#: The queue of the prefork worker; the threads worker has Celery's default queue.
PREFORK: Final = "prefork"


class Side:
    """What rows act on.

    Attributes:
        name: `stock` or `durable`.
        app: a producer's app.
        t: the tasks of `app`, by name.
        note: a Redis database for notes of tasks and signal handlers.
        threads, prefork: the node names of the two workers.
    """

    def __init__(self, name: str, app: Celery, tasks: SimpleNamespace, note: Any) -> None:
        self.name, self.app, self.t, self.note = name, app, tasks, note
        self.threads, self.prefork = f"threads@{name}", f"prefork@{name}"
        self.heard: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def key(self) -> str:
        """A word that no other row uses."""
        return uuid.uuid4().hex[:12]

    def until(self, asked: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """What `asked()` answers once it is true, or at the end of the time."""
        deadline = time.monotonic() + seconds
        while True:
            answer = asked()
            if answer or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)  # a store has no event to wait on

    def state(self, result: Any, wanted: str) -> str:
        """The state of `result`, as soon as it is `wanted`, or what it is at the end."""
        self.until(lambda: result.state == wanted)
        return str(result.state)

    def begun(self, gate: str) -> int:
        """The pid of the task that waits at `gate`, once it does."""
        return int((self.note.blpop([f"begun:{gate}"], timeout=PATIENCE) or ("", 0))[1])

    def open(self, gate: str) -> None:
        """Let the task at `gate` go on."""
        self.note.rpush(f"gate:{gate}", 1)

    def notes(self, key: str, count: int, seconds: float = PATIENCE) -> list[str]:
        """At least `count` notes under `key`, or what there is at the end."""
        self.until(lambda: self.note.llen(key) >= count, seconds)
        return list(self.note.lrange(key, 0, -1))

    def error(self, result: Any) -> BaseException:
        """The exception that `get` raises."""
        try:
            result.get(timeout=PATIENCE)
        except Exception as exc:
            return exc
        raise AssertionError(f"{result} raised nothing")

    def raised(self, call: Callable[[], Any]) -> str:
        """The name of the exception that `call` raises; empty for none."""
        try:
            call()
        except Exception as exc:
            return type(exc).__name__
        return ""

    def events(self, job_id: str, *kinds: str) -> list[dict[str, Any]]:
        """The events of a job, once all of `kinds` have come, or what there is at the end."""
        self.until(lambda: set(kinds) <= {event["type"] for event in list(self.heard[job_id])})
        return list(self.heard[job_id])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note every event that has a job's id."""

        def on_event(event: dict[str, Any]) -> None:
            self.heard[event.get("uuid", "")].append(event)

        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"*": on_event})
            # One capture: whatever is sent between two is lost, as Redis keeps no events.
            capture = {"limit": None, "timeout": None, "wakeup": False}
            listener = threading.Thread(target=receiver.capture, kwargs=capture)
            listener.start()
            try:
                yield
            finally:
                receiver.should_stop = True
                listener.join()

    def inspect(self) -> Any:
        """`app.control.inspect` of the threads worker."""
        return self.app.control.inspect([self.threads], timeout=3.0)


@contextmanager
def both(folder: Path) -> Iterator[dict[str, Side]]:
    """The two sides, each with a worker of threads and one of processes; started together."""
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres(servers.memory()))
        stores = {side: stack.enter_context(servers.redis_server()) for side in SIDES}
        _migrate(postgres.url)
        note = stores["stock"].url_of(9)
        variables = {
            "DATABASE_URL": postgres.url,
            "PARITY_SCRATCH": note,
            "WORKER_LEASE_SECONDS": "5",
            "WORKER_RING_GRACE_SECONDS": "1",
            "WORKER_DRAIN_SECONDS": "2",
        }
        kept = {name: os.environ.get(name) for name in (*variables, "REDIS_URL")}
        stack.callback(_restore, kept)
        os.environ.update(variables)
        processes = Processes(folder, {**os.environ})
        stack.callback(processes.kill_all)
        started, sides = [], {}
        for name in SIDES:
            broker, results = stores[name].url_of(0), stores[name].url_of(1)
            side = {"PARITY_SIDE": name, "PARITY_BROKER": broker, "PARITY_RESULTS": results}
            os.environ["REDIS_URL"] = broker
            side["REDIS_URL"] = broker
            for node, pool, slots, queue in (
                (f"threads@{name}", "threads", "8", "celery"),
                (f"prefork@{name}", "prefork", "2", PREFORK),
            ):
                argv = [sys.executable, "-m", "celery", "-A", "tests.parity.app", "worker", "-E"]
                argv += ["-P", pool, "-c", slots, "-Q", queue, "-n", node, "-l", "info"]
                started.append(processes(argv, side))
            app = make(name, broker, results)
            stack.callback(app.close)
            client: Any = redis.Redis.from_url(note, decode_responses=True)
            stack.callback(client.close)
            sides[name] = Side(name, app, define(app), client)
            if name == "durable":
                started.append(processes([sys.executable, "-m", "worker", "keeper"], side))
        for process in started:
            process.wait_for_line("ready." if "celery" in process.argv else "Leading", 60)
        stack.callback(_forget_subscriptions, sides["stock"].app)
        for side_of in sides.values():
            stack.enter_context(side_of.listening())
        yield sides


def _restore(kept: dict[str, str | None]) -> None:
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _forget_subscriptions(app: Celery) -> None:
    """Let the results of `app`'s Redis backend be collected when their Redis is gone.

    A result unsubscribes when it is collected. The backend keeps each one whose `get` timed out,
    and the traceback of a failed test keeps others: the request would be made, twenty times, in
    whatever test runs at that moment.
    """
    app.backend.result_consumer.subscribed_to.clear()


def _migrate(url: str) -> None:
    from worker.ledger.migrate import migrate
    from worker.settings import Settings

    settings = Settings.load(database_url=url, redis_url="redis://127.0.0.1")
    migrate(settings.database_url.get_secret_value())
