"""kombu's own transport and ours do the same with what is no task: in the clear, over TLS, and by
Sentinel."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Exchange, Queue
from kombu.pidbox import Mailbox

from tests.sentinels import Group
from tests.tls import terminated
from worker.broker.address import read
from worker.broker.transport import ADDRESS, WRITER
from worker.jobs.job import NewJob
from worker.runtime.install import SENTINEL_TRANSPORT, TRANSPORT

QUEUE = Queue("contract", Exchange("contract"), routing_key="contract")

Connect = Callable[[], Connection]


def writer(job: NewJob) -> None:
    """Of no message here: none is a task."""
    raise AssertionError(job.task)


@pytest.fixture(params=["stock", "ours"])
def is_ours(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "ours")


@pytest.fixture(params=["clear", "tls", "sentinel"])
def connect(request: pytest.FixtureRequest, is_ours: bool, redis_url: str) -> Iterator[Connect]:
    """Connects to an empty Redis, by each way and each transport."""
    with ExitStack() as stack:
        url, given, options = redis_url, dict[str, Any](), dict[str, Any]()
        if request.param == "tls":
            certificate: Path = request.getfixturevalue("certificate")
            url = stack.enter_context(terminated(redis_url, certificate)).url
            given["ssl"] = {"ssl_ca_certs": str(certificate)}
        if request.param == "sentinel":
            group: Group = request.getfixturevalue("group")
            stack.enter_context(redis.Redis.from_url(group.master.url)).flushdb()
            url, options = group.broker_url, {**group.transport_options}
        if is_ours:
            by_sentinel = request.param == "sentinel"
            given["transport"] = SENTINEL_TRANSPORT if by_sentinel else TRANSPORT
            options |= {WRITER: writer}
            options |= {ADDRESS: read(group.url)} if by_sentinel else {}
        yield lambda: stack.enter_context(Connection(url, transport_options=options, **given))


def test_what_is_published_is_consumed_once(connect: Connect) -> None:
    got: list[Any] = []

    def take(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    producer, consumer = connect(), connect()
    producer.Producer().publish(
        {"n": 1}, exchange=QUEUE.exchange, routing_key="contract", declare=[QUEUE]
    )
    with consumer.Consumer([QUEUE], callbacks=[take]):
        consumer.drain_events(timeout=10)
        with pytest.raises(socket.timeout):
            consumer.drain_events(timeout=0.2)

    assert got == [{"n": 1}]
    client = consumer.default_channel.client
    assert not client.exists("unacked", "unacked_index")


def test_a_rejected_message_comes_back(connect: Connect) -> None:
    connection = connect()
    queue = connection.SimpleQueue("contract-simple")
    queue.put({"n": 1})

    queue.get(timeout=10).requeue()
    again = queue.get(timeout=10)

    assert (again.payload, again.delivery_info["redelivered"]) == ({"n": 1}, True)
    again.ack()
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.2)
    queue.close()


def test_lower_numbers_are_popped_first(connect: Connect) -> None:
    connection = connect()
    bound = QUEUE(connection.default_channel)
    bound.declare()
    for priority in (9, 0, 6, 3):
        connection.Producer().publish(
            priority, exchange=QUEUE.exchange, routing_key="contract", priority=priority
        )

    popped = [bound.get(no_ack=True).payload for _ in range(4)]

    assert popped == [0, 3, 6, 9]
    assert bound.get(no_ack=True) is None


def test_a_ping_by_remote_control_is_answered(connect: Connect) -> None:
    # Given a node that listens, as a worker does
    mailbox = Mailbox("contract", type="fanout")
    listening, asking = connect(), connect()
    node = mailbox.Node("n@here", channel=listening.channel(), state=None)
    node.handlers["ping"] = lambda _state, **_arguments: "pong"
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            with suppress(socket.timeout):
                listening.drain_events(timeout=0.2)

    with node.listen(channel=node.channel):
        thread = threading.Thread(target=listen)
        thread.start()

        # When it is asked
        replies = mailbox(asking).multi_call("ping", timeout=10, limit=1)
        stop.set()
        thread.join()

    # Then it answers
    assert replies == [{"n@here": "pong"}]
