"""What consumers without the ledger popped and left is put back where kombu would put it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import redis
from kombu import Connection, Exchange, Queue

from worker.broker.doorbells import Doorbells

HOUR = 3600.0


@pytest.fixture
def pop(redis_url: str, client: redis.Redis) -> Iterator[Callable[..., None]]:
    """Publish to a queue and pop it by a consumer that is gone then, long ago or just now."""
    connection = Connection(redis_url)
    channel = connection.default_channel

    def publish_and_pop(
        queue: Queue, key: str, number: int, *, ago: float = 2 * HOUR, priority: int = 0
    ) -> None:
        bound = queue(channel)
        bound.declare()
        before = set(cast(list[bytes], client.hkeys("unacked")))
        connection.Producer().publish(
            {"number": number}, exchange=queue.exchange, routing_key=key, priority=priority
        )
        assert bound.get(no_ack=False)
        (tag,) = set(cast(list[bytes], client.hkeys("unacked"))) - before
        client.zincrby("unacked_index", -ago, tag)

    yield publish_and_pop
    channel.qos._delivered.clear()  # as if it were killed: it puts back nothing
    connection.release()


def numbers(client: redis.Redis, name: str) -> list[int]:
    """What is in a list, first to be popped first."""
    entries = [json.loads(entry) for entry in cast(list[bytes], client.lrange(name, 0, -1))]
    return [json.loads(base64.b64decode(entry["body"]))["number"] for entry in reversed(entries)]


def noted(client: redis.Redis) -> tuple[int, int]:
    """How much stands in kombu's two keys."""
    return cast(Any, client.hlen("unacked")), cast(Any, client.zcard("unacked_index"))


def test_only_what_is_old_is_put_back_the_oldest_to_be_popped_first(
    bells: Doorbells, client: redis.Redis, pop: Callable[..., None]
) -> None:
    for number, ago in enumerate((3 * HOUR, 2 * HOUR, 0)):
        pop(Queue("plain", Exchange("")), "plain", number, ago=ago)

    assert bells.restore_stock(HOUR) == 2

    assert numbers(client, "plain") == [0, 1]
    assert noted(client) == (1, 1)
    assert bells.restore_stock(HOUR) == 0


@pytest.mark.parametrize(
    ("kind", "binding", "key"),
    [("direct", "a.b", "a.b"), ("topic", "a.*", "a.b"), ("topic", "#", "a.b")],
)
def test_it_comes_back_to_the_queue_that_is_bound(
    bells: Doorbells,
    client: redis.Redis,
    pop: Callable[..., None],
    kind: str,
    binding: str,
    key: str,
) -> None:
    queue = Queue("bound", Exchange("news", type=kind), routing_key=binding)
    other = Queue("other", Exchange("news", type=kind), routing_key="c")
    pop(other, "c", 1, ago=0)
    pop(queue, key, 2, priority=4)

    assert bells.restore_stock(HOUR) == 1

    assert numbers(client, "bound\x06\x163") == [2]
    assert client.llen("other") == 0


def test_what_cannot_be_put_back_goes_to_the_quarantine(
    bells: Doorbells, client: redis.Redis, pop: Callable[..., None]
) -> None:
    # Given a message for a queue that is unbound meanwhile, one whose list is no list, and
    # entries that are no messages
    pop(Queue("gone", Exchange("news"), routing_key="a"), "a", 1)
    client.delete("_kombu.binding.news")
    pop(Queue("odd", Exchange("")), "odd", 2)
    client.set("odd", "no list")
    for tag, entry in {"x": "junk", "y": "{}", "z": '[1, "", "q"]'}.items():
        client.hset("unacked", tag, entry)
        client.zadd("unacked_index", {tag: 1})
    pop(Queue("plain", Exchange("")), "plain", 3)

    # When they are put back, then these are told, and hold up nothing
    assert bells.restore_stock(HOUR) == 6
    assert numbers(client, "plain") == [3]
    assert len(bells.quarantined()) == 5
    assert {note["list"] for note in bells.quarantined()} == {"unacked"}
    assert noted(client) == (0, 0)


def test_an_index_without_a_message_is_forgotten(bells: Doorbells, client: redis.Redis) -> None:
    client.zadd("unacked_index", {"x": 1})

    assert bells.restore_stock(HOUR) == 1
    assert noted(client) == (0, 0)
