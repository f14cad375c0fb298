"""However a task ends, whatever follows it comes to an end too; on real workers, in every pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.result import AsyncResult, GroupResult

from tests.acceptance.conftest import Service
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings

#: Each way to end: the state that its later steps read, and how often an errback is called.
AT_ONCE = {
    "returns": ("SUCCESS", 0),
    "raises": ("FAILURE", 1),
    "retries": ("FAILURE", 1),
    "ignores": ("REVOKED", 0),
    "rejects": ("FAILURE", 1),
    "exits": ("FAILURE", 1),
    "exhausts the memory": ("FAILURE", 1),
    "raises CancelledError": ("FAILURE", 1),
    "returns no JSON": ("FAILURE", 1),
    "returns too much": ("FAILURE", 1),
}
#: Those that need a child process.
IN_CHILDREN = {"dies": ("FAILURE", 1), "takes too long": ("FAILURE", 1)}
#: Those in which somebody else ends it: when, and how the job is enqueued for that.
FROM_OUTSIDE: dict[str, dict[str, Any]] = {
    "cancelled while scheduled": {"countdown": 3600},
    "cancelled while queued": {"queue": "nobodys"},
    "cancelled while running": {},
    "expires": {"queue": "nobodys", "expires": 1},
}
WAITS = {
    "cancelled while scheduled": State.SCHEDULED,
    "cancelled while queued": State.QUEUED,
    "cancelled while running": State.RUNNING,
}
WAYS = {
    "threads": [*AT_ONCE, *FROM_OUTSIDE],
    "prefork": [*AT_ONCE, *IN_CHILDREN, *FROM_OUTSIDE],
    "solo": [way for way in (*AT_ONCE, *FROM_OUTSIDE) if way != "cancelled while running"],
}


@pytest.fixture
def app(settings: Settings) -> Iterator[Any]:
    made = durable(Celery("producer", set_as_current=False), settings)
    yield made
    made.close()


class Table:
    """Canvases whose first task ends in some way, and what became of them.

    Attributes:
        sent: the result of each canvas, by way and name.
    """

    def __init__(self, service: Service, app: Any) -> None:
        self._service, self._app = service, app
        self.sent: dict[tuple[str, str], Any] = {}

    def _task(self, name: str, *args: Any, **options: Any) -> Any:
        return signature(f"ends.{name}", args=args, app=self._app, immutable=True, options=options)

    def _ending(self, way: str, **options: Any) -> Any:
        if way in FROM_OUTSIDE:
            more = FROM_OUTSIDE[way]
            return self._task("later", way, self._service.gate, **options, **more)
        if way == "retries":
            return self._task("retries", **options)
        limit = {"time_limit": 1} if way == "takes too long" else {}
        return self._task("at_once", way, **options, **limit)

    def _errbacks(self, word: str) -> list[Any]:
        kwargs = {"log": self._service.log, "word": word.replace(" ", "_")}
        return [
            signature(f"ends.{style}_errback", kwargs=kwargs, app=self._app)
            for style in ("old", "new")
        ]

    def send(self, way: str) -> None:
        """Every canvas, with a task that ends so."""

        def ending(name: str) -> Any:
            return self._ending(way, link_error=self._errbacks(f"{way}:{name}"))

        ok = self._task("ok")
        canvases = {
            "chain": chain(ending("chain"), ok, group(ok, ok), ok, chord([ok, ok], ok)),
            "replaced": chain(self._task("replaced", dict(ending("replaced"))), ok),
            "part": chord([ending("part"), ok], ok.clone().set(
                link_error=self._errbacks(f"{way}:body"))),
            "body": chain(group(ok, ok), ending("body_itself"), ok),
        }  # fmt: skip
        for name, canvas in canvases.items():
            self.sent[way, name] = canvas.apply_async()
        linked = self._task("ok", task_id=f"linked to {way}")
        self._ending(way, link=[linked]).apply_async()
        self.sent[way, "link"] = AsyncResult(f"linked to {way}", app=self._app)

    def interfere(self, ways: list[str]) -> None:
        """Cancel what waits to be cancelled, until nothing does any more."""
        wanted = {way: 5 for way in ways if way in WAITS}

        def look() -> bool:
            for way, state in WAITS.items():
                for job in self._service.client.jobs(task="ends.later", state=state, limit=100):
                    if f'"{way}"' in job.message.body.decode() and wanted.get(way):
                        self._service.client.cancel(job.id, "no")
                        wanted[way] -= 1
            return not any(wanted.values())

        self._service.until(look, 60, "all are cancelled")

    def states(self) -> dict[tuple[str, str], set[str]]:
        """What the canvases' later jobs read, once every job has ended."""
        given_out = {where: [one for one in every(result)] for where, result in self.sent.items()}
        unread = {one.id for ones in given_out.values() for one in ones}

        def all_read() -> bool:
            for state, n in self._service.client.counts(sorted(unread)).items():
                if not state.is_final and n:
                    return False
            return sum(self._service.client.counts(sorted(unread)).values()) == len(unread)

        try:
            self._service.until(all_read, 60, "every id is ready")
        except AssertionError:
            waiting = {
                (where, one.id): one.state
                for where, ones in given_out.items()
                for one in ones
                if not one.ready()
            }
            raise AssertionError(f"not ready: {waiting}") from None
        return {where: {one.state for one in last_of(self.sent[where])} for where in self.sent}


def every(result: Any) -> Iterator[Any]:
    """Every job's result that a caller can reach from a canvas's."""
    while result is not None:
        if isinstance(result, GroupResult):
            for one in result.results or ():
                yield from every(one)
        else:
            yield result
        result = result.parent


def last_of(result: Any) -> list[Any]:
    return list(result.results or ()) if isinstance(result, GroupResult) else [result]


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_whatever_follows_an_end_comes_to_an_end(service: Service, app: Any, pool: str) -> None:
    # Given a worker, a keeper, and canvases whose tasks end in every way
    ways = WAYS[pool]
    service.keeper()
    variables = {"WORKER_TASKS": "tests.acceptance.endings", "WORKER_LOST_LIMIT": "1"}
    service.worker(pool, {"threads": 12, "prefork": 4, "solo": 1}[pool], **variables)
    table = Table(service, app)
    for way in ways:
        table.send(way)
    table.interfere(ways)

    # Then every id that Celery gave out reads a state that is final
    states = table.states()

    # and the last of them says how it came to that
    expected: dict[tuple[str, str], set[str]] = {}
    for way in ways:
        after, _ = {**AT_ONCE, **IN_CHILDREN}.get(way, ("REVOKED", 0))
        expected |= {(way, name): {after} for name in ("chain", "replaced", "body", "link")}
        # a part that was ignored has a result, none; any other end of a part fails the chord
        expected[way, "part"] = {"SUCCESS" if way in ("returns", "ignores") else "FAILURE"}
    assert states == expected

    # and each errback was called as often as on stock Celery
    def called() -> Counter[str]:
        return Counter(line[0] for line in service.ran_any())

    wanted: Counter[str] = Counter()
    for way in ways:
        _, times = {**AT_ONCE, **IN_CHILDREN}.get(way, ("REVOKED", 0))
        names = {name: times for name in ("chain", "replaced", "part", "body_itself")}
        names["body"] = int(way not in ("returns", "ignores"))
        for name, count in names.items():
            for style in ("old", "new"):
                wanted[f"{style}:{way}:{name}".replace(" ", "_")] += count
    service.until(lambda: called().total() >= wanted.total(), 30, "errbacks are called")
    service.until(lambda: not open_jobs(service), 30, "nothing is left")
    assert called() == +wanted


def open_jobs(service: Service) -> list[str]:
    """What has not ended, at infinity or elsewhere."""
    open_states = (State.SCHEDULED, State.QUEUED, State.RUNNING)
    return [job.id for state in open_states for job in service.client.jobs(state=state, limit=100)]
