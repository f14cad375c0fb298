"""Commands that need no worker: a purge, a queue's length, a message taken by hand, a revoke."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chain
from celery.canvas import StampingVisitor  # type: ignore[attr-defined] # its stubs lack it
from kombu import Connection

from worker.client import Client
from worker.errors import InvalidRequest
from worker.jobs.continuations import CALL_ERRBACKS
from worker.jobs.states import State
from worker.ledger import bulk
from worker.runtime.install import durable
from worker.runtime.panel import handled
from worker.settings import Settings


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    made = durable(Celery("commands", set_as_current=False), settings)
    yield made
    made.close()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as opened:
        yield opened


def states(client: Client, ids: list[str]) -> list[State]:
    return [client.job(job_id).state for job_id in ids]


def sent(app: Celery, **options: Any) -> str:
    return str(app.send_task("tests.add", (1, 2), **options).id)


def purged_by_control(app: Celery) -> int:
    return int(app.control.purge())


def purged_by_channel(app: Celery) -> int:
    with app.connection_for_write() as connection:
        return int(connection.default_channel.queue_purge("celery"))


def purged_by_queue(app: Celery) -> int:
    with app.connection_for_write() as connection:
        return int(app.amqp.queues["celery"](connection.default_channel).purge())


@pytest.mark.parametrize("purge", [purged_by_control, purged_by_channel, purged_by_queue])
def test_what_a_purge_counts_is_cancelled(
    app: Celery, client: Client, settings: Settings, purge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given jobs that wait, now and for a time and by priority, in batches of two; and a message
    # of a producer without the ledger
    monkeypatch.setattr(bulk, "WINDOW", 2)
    monkeypatch.setattr(
        bulk, "_FIRST_PAGES", {s: bulk._page(s, is_first=True) for s in bulk._WALKS}
    )
    monkeypatch.setattr(
        bulk, "_NEXT_PAGES", {s: bulk._page(s, is_first=False) for s in bulk._WALKS}
    )
    waiting = [sent(app) for _ in range(5)] + [sent(app, priority=9)]
    waiting += [sent(app, countdown=600) for _ in range(3)]
    elsewhere = sent(app, queue="other")
    plain = Celery("plain", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    with plain, plain.connection_for_write() as connection:
        plain.send_task("tests.add", (1, 2), connection=connection)

    # When the queue is purged, then it says how many, and they do not run
    assert purge(app) == 10
    assert set(states(client, waiting)) == {State.CANCELLED}
    assert client.job(waiting[0]).error == "purged with its queue"
    assert client.job(elsewhere).state is State.QUEUED
    assert purge(app) == 0
    # And what comes after it runs
    assert client.job(sent(app)).state is State.QUEUED


def test_a_purge_leaves_what_runs_and_what_waits_for_other_jobs(
    app: Celery, client: Client
) -> None:
    parked, waiting = sent(app, countdown=600), sent(app)
    client.ledger.execute(
        "UPDATE ledger.jobs SET run_at = 'infinity' WHERE id = :id", {"id": parked}
    )

    assert app.control.purge() == 1

    assert states(client, [parked, waiting]) == [State.SCHEDULED, State.CANCELLED]


def test_what_was_to_follow_a_purged_job_is_cancelled_with_it(app: Celery, client: Client) -> None:
    steps = [app.signature("tests.add", (1,), immutable=True) for _ in range(3)]
    last: Any = chain(*steps, app=app).apply_async()

    assert app.control.purge() == 1

    ids = [last.id, last.parent.id, last.parent.parent.id]
    assert set(states(client, ids)) == {State.CANCELLED}


def test_a_deleted_queue_runs_nothing_more(app: Celery, client: Client) -> None:
    waiting = sent(app)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        app.amqp.queues["celery"](channel).declare()
        channel.queue_delete("celery")

    assert client.job(waiting).state is State.CANCELLED


def test_a_job_is_not_taken_by_hand(app: Celery, client: Client) -> None:
    waiting = sent(app)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        with pytest.raises(InvalidRequest, match=f"worker job show {waiting}"):
            channel.basic_get("celery")
        assert channel.queue_declare("celery", passive=True).message_count == 1


def test_a_connection_is_shown_by_what_it_speaks_to(app: Celery) -> None:
    with app.connection() as connection:
        assert connection.as_uri().startswith("redis://:**@127.0.0.1:")
        clone = connection.clone()
    assert type(clone.transport).__module__ == "worker.broker.transport"
    with Connection("redis://127.0.0.1") as plain:
        assert type(plain.transport).__module__ == "kombu.transport.redis"


@pytest.mark.parametrize("terminate", [False, True, 0, 1, None])
def test_revoke_takes_any_truth(app: Celery, client: Client, terminate: Any) -> None:
    one, other = sent(app), sent(app, countdown=600)

    app.control.revoke([one, other], terminate=terminate, signal=None)

    assert states(client, [one, other]) == [State.CANCELLED] * 2


class Tenant(StampingVisitor):  # type: ignore[misc] # Celery's class is not typed
    def __init__(self, name: str) -> None:
        self.name = name

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"tenant": self.name, "stamped_headers": ["tenant"]}


def test_revoked_stamps_cancel_what_waits(app: Celery, client: Client) -> None:
    ids = []
    for name in ("acme", "beta"):
        signature = app.signature("tests.add", (1, 2), countdown=600)
        signature.stamp(Tenant(name))
        ids.append(signature.apply_async().id)
    ids.append(sent(app))

    app.control.revoke_by_stamped_headers({"tenant": ["acme", "none"]})

    assert states(client, ids) == [State.CANCELLED, State.SCHEDULED, State.QUEUED]


def test_a_command_of_the_users_own_stays_theirs() -> None:
    from celery.worker.control import Panel

    def mine(state: Any) -> None: ...

    table = handled({**Panel.data, "revoke": mine})

    assert table["revoke"] is mine
    assert table["scheduled"].__module__ == "worker.runtime.panel"
    assert table["ping"] is Panel.data["ping"]
    assert json.dumps(sorted(table)) == json.dumps(sorted(Panel.data))


def test_an_errback_that_can_never_be_sent_is_no_job_without_end(app: Celery) -> None:
    # A queue bound to no exchange that the app declares is refused each time.
    errback = dict(app.signature("tests.told", exchange="none", routing_key="none"))
    call = {"request": {"id": "a", "root_id": "a"}, "errbacks": [errback], "error": "poison"}

    ended = app.tasks[CALL_ERRBACKS].apply(({**call, "result": None, "traceback": None},))

    assert ended.state == "FAILURE"
    assert isinstance(ended.result, InvalidRequest)


def test_a_queue_that_is_deleted_if_it_is_empty_keeps_what_waits_for_its_time(
    app: Celery, client: Client
) -> None:
    later = sent(app, countdown=600)
    with app.connection_for_write() as connection:
        queue = app.amqp.queues["celery"](connection.default_channel)
        queue.declare()

        queue.delete(if_empty=True)
        assert states(client, [later]) == [State.SCHEDULED]

        queue.delete()
        assert states(client, [later]) == [State.CANCELLED]
