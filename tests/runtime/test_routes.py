"""A job goes to the queue that its app declares, whatever Redis remembers of bindings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from kombu import Connection, Exchange, Producer, Queue, binding
from kombu.common import Broadcast

from worker.broker.routing import Binding, Routing
from worker.client import Client
from worker.errors import ConfigurationError, InvalidRequest
from worker.jobs.job import Claim, Fence, Message
from worker.runtime import durable
from worker.runtime.consumer import LedgerConsumer
from worker.runtime.routes import refuse_unserved
from worker.settings import Settings

MEDIA = Exchange("media", type="direct")
NEWS = Exchange("news", type="topic")
EVERYBODY = Exchange("everybody", type="fanout")


def queues() -> list[Queue]:
    return [
        Queue("plain"),
        Queue("video", MEDIA, routing_key="video"),
        Queue("sport", NEWS, routing_key="sport.#"),
        Queue("culture", NEWS, routing_key="culture.*"),
        Queue("both", [binding(MEDIA, routing_key="photo"), binding(NEWS, routing_key="photo.*")]),
        Queue("paris", NEWS, routing_key="*.paris"),
        Broadcast("bulletin"),
    ]


def route(name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
    return (
        {"exchange": "news", "routing_key": "sport.golf"} if name == "routed.by.function" else None
    )


def make_app(settings: Settings, **conf: Any) -> Celery:
    app = Celery("routes", set_as_current=False)
    app.conf.update(
        task_queues=queues(),
        task_default_queue="plain",
        task_routes=[
            {
                "routed.to.queue": "sport",
                "routed.to.exchange": {"exchange": "news", "routing_key": "sport.ball"},
                "routed.to.direct": {"exchange": "media", "routing_key": "photo"},
            },
            route,
        ],
        **conf,
    )

    @app.task(name="noop", shared=False)
    def noop(*_: Any) -> None:
        pass

    return durable(app, settings)


#: How a job is addressed, and the queue that it must wait in.
WAYS: dict[str, tuple[Callable[[Celery], Any], str]] = {
    "default": (lambda app: app.send_task("t"), "plain"),
    "queue, direct": (lambda app: app.send_task("t", queue="video"), "video"),
    "queue, topic": (lambda app: app.send_task("t", queue="sport", routing_key="sport.x"), "sport"),
    "exchange, direct": (
        lambda app: app.send_task("t", exchange="media", routing_key="video"), "video",
    ),
    "exchange, topic": (
        lambda app: app.send_task("t", exchange="news", routing_key="sport.a.b"), "sport",
    ),
    "exchange and its type": (
        lambda app: app.send_task(
            "t", exchange="news", routing_key="culture.x", exchange_type="topic"
        ),
        "culture",
    ),
    "one of several bindings": (
        lambda app: app.send_task("t", exchange="media", routing_key="photo"), "both",
    ),
    "a queue nobody declared": (lambda app: app.send_task("t", queue="new"), "new"),
    "the default exchange, of which Celery takes the route's queue": (
        lambda app: app.send_task("t", exchange="", routing_key="x"), "plain",
    ),
    "a queue object": (
        lambda app: app.send_task("t", queue=Queue("own", NEWS, routing_key="own.#"),
                                  routing_key="own.x"),
        "own",
    ),
    "a route to a queue": (lambda app: app.send_task("routed.to.queue", routing_key="sport.q"),
                           "sport"),
    "a route to a topic": (lambda app: app.send_task("routed.to.exchange"), "sport"),
    "a route to an exchange": (lambda app: app.send_task("routed.to.direct"), "both"),
    "a router": (lambda app: app.send_task("routed.by.function"), "sport"),
    "a task's options": (
        lambda app: app.send_task(
            "noop", exchange="news", routing_key="sport.y", countdown=60, reply_to="me"
        ),
        "sport",
    ),
    "a step of a chain": (
        lambda app: chain(app.tasks["noop"].si().set(exchange="media", routing_key="video"),
                          app.tasks["noop"].si()).apply_async(),
        "video",
    ),
    "a part of a group": (
        lambda app: group([app.tasks["noop"].si().set(queue="video")]).apply_async(), "video",
    ),
    "a part of a chord": (
        lambda app: chord([app.tasks["noop"].si().set(exchange="media", routing_key="video")],
                          app.tasks["noop"].si().set(queue="video")).apply_async(),
        "video",
    ),
}  # fmt: skip

#: What cannot be one job, and what is said of it.
REFUSED: dict[str, tuple[Callable[[Celery], Any], str]] = {
    "an unknown exchange": (
        lambda app: app.send_task("t", exchange="nowhere", routing_key="video"), "no queue",
    ),
    "an unknown key": (
        lambda app: app.send_task("t", exchange="media", routing_key="vide"), "no queue",
    ),
    "a topic of nobody": (
        lambda app: app.send_task("t", exchange="news", routing_key="weather"), "no queue",
    ),
    "two queues": (
        lambda app: app.send_task("t", exchange="news", routing_key="culture.paris"),
        "'culture', 'paris', and one id cannot be two jobs",
    ),
    "a broadcast": (lambda app: app.send_task("t", queue="bulletin"), "fanout exchange"),
    "a fanout exchange": (
        lambda app: app.send_task("t", exchange="bulletin", routing_key="x"), "fanout exchange",
    ),
    "a queue object of a fanout": (
        lambda app: app.send_task("t", queue=Queue("e", EVERYBODY)), "fanout exchange",
    ),
}  # fmt: skip


@pytest.fixture
def remembers(redis_url: str) -> Iterator[Callable[[str], None]]:
    """Make Redis's memory of bindings what a test wants it to be."""
    client = redis.Redis.from_url(redis_url)

    def make(memory: str) -> None:
        if memory == "flushed":
            client.flushdb()
        elif memory == "declared":
            with Connection(redis_url) as connection:
                for queue in queues():
                    queue(connection.channel()).declare()
        elif memory == "foreign":
            for exchange in ("media", "news", "nowhere"):
                for key in ("video", "photo", "sport.ball"):
                    client.sadd(
                        f"_kombu.binding.{exchange}", "\x06\x16".join((key, ".*", "foreign"))
                    )

    yield make
    client.close()


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    made = make_app(settings)
    yield made
    made.close()


@pytest.mark.parametrize("memory", ["fresh", "flushed", "declared", "foreign"])
def test_a_job_is_one_row_in_the_declared_queue(
    app: Celery, settings: Settings, remembers: Callable[[str], None], memory: str
) -> None:
    if memory == "flushed":  # after something was sent and declared by this very producer
        for send, _ in WAYS.values():
            send(app)
    remembers(memory)
    with Client(settings) as client:
        for way, (send, queue) in WAYS.items():
            before = {job.id for job in client.jobs(limit=1000)}
            send(app)
            made = [job for job in client.jobs(limit=1000) if job.id not in before]
            assert {job.queue for job in made} == {queue}, f"{way}, {memory}"
        for way, (send, said) in REFUSED.items():
            before = {job.id for job in client.jobs(limit=1000)}
            with pytest.raises(InvalidRequest, match=said):
                send(app)
            assert {job.id for job in client.jobs(limit=1000)} == before, f"{way}, {memory}"


def test_a_message_published_by_hand_is_routed_by_what_it_declares(
    app: Celery, settings: Settings, redis_url: str
) -> None:
    own = Queue("own", NEWS, routing_key="own.*")
    message = app.amqp.as_task_v2("by-hand-1", "t", (), {})
    again = app.amqp.as_task_v2("by-hand-2", "t", (), {})
    old = app.amqp.as_task_v1("by-hand-3", "t", (), {})
    with app.connection_for_write() as connection:
        producer = Producer(connection)
        options: dict[str, Any] = {"exchange": NEWS, "routing_key": "own.x", "declare": [own]}
        producer.publish(message.body, headers=message.headers, serializer="json", **options)
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        producer.publish(again.body, headers=again.headers, serializer="json", **options)
        producer.publish(old.body, serializer="json", compression="gzip", **options)
    with Client(settings) as client:
        assert {job.id: job.queue for job in client.jobs()} == {
            "by-hand-1": "own", "by-hand-2": "own", "by-hand-3": "own",
        }  # fmt: skip


def test_a_default_exchange_of_another_kind_serves_its_own_queue(settings: Settings) -> None:
    app = Celery("topical", set_as_current=False)
    app.conf.update(task_default_exchange_type="topic", task_default_exchange="all",
                    task_default_queue="main", task_default_routing_key="main.key")  # fmt: skip
    durable(app, settings)
    with app, Client(settings) as client:
        app.send_task("t")
        app.send_task("t", queue="made.up")
        app.send_task("t", exchange="all", routing_key="main.key")
        assert sorted(job.queue for job in client.jobs()) == ["made.up", "main", "main"]
        with pytest.raises(InvalidRequest, match="no queue"):
            app.send_task("t", exchange="all", routing_key="other")


def test_messages_that_are_no_tasks_go_as_kombu_sends_them(app: Celery, redis_url: str) -> None:
    with app.connection_for_write() as connection:
        queue = Queue("letters", Exchange("post", type="topic"), routing_key="to.*")
        Producer(connection).publish(
            {"a": 1}, exchange="post", routing_key="to.me", declare=[queue]
        )
        got: list[Any] = []
        with connection.Consumer([queue], callbacks=[lambda body, _: got.append(body)]):
            connection.drain_events(timeout=5)
    assert got == [{"a": 1}]


@pytest.mark.parametrize("kind", ["fanout", "headers"])
def test_a_worker_refuses_to_consume_what_it_cannot_serve(kind: str) -> None:
    refuse_unserved(queues()[:-1])
    with pytest.raises(ConfigurationError, match=f"the {kind} exchange 'odd'"):
        refuse_unserved([*queues(), Queue("q", Exchange("odd", type=kind))][-1:])


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        ([Binding("mail", "work", "topic", "mail.#")], ("work", "mail.welcome")),
        ([Binding("other", "work", "topic", "mail.#")], ("", "mail")),
        ([], ("", "mail")),
    ],
)
def test_a_job_is_told_its_address_where_a_retry_can_be_sent_there(
    bindings: list[Binding], told: tuple[str, str]
) -> None:
    consumer: Any = LedgerConsumer.__new__(LedgerConsumer)
    consumer._routing = Routing(lambda: bindings)
    claim = Claim(Fence("an-id", 1, "a-lease"), "a-task", "mail", Message("{}", b""))
    sent = {"delivery_info": {"exchange": "work", "routing_key": "mail.welcome"}}

    info = LedgerConsumer._delivery_info(consumer, claim, sent)

    assert (info["exchange"], info["routing_key"]) == told
