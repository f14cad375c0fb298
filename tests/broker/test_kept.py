"""The connection that doorbells keep is a shortcut: whatever becomes of it, they ring."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.connection import Connection

from tests.broker.test_doorbells import ids_of
from worker.broker.doorbells import Doorbells
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.jobs.job import Ring
from worker.stack.redis import RedisServer


def ring(bells: Doorbells, job_id: str, name: str = "q") -> None:
    bells.ring([Ring(job_id, name, 1)])


def made(client: redis.Redis) -> int:
    """How many connections were made to Redis until now."""
    stats = client.info("stats")
    assert isinstance(stats, dict)
    return int(stats["total_connections_received"])


def connection_of(bells: Doorbells) -> Connection | None:
    """The one that is kept."""
    assert bells._kept is not None
    return bells._kept._place.connection


def popped(bells: Doorbells) -> list[str]:
    return ids_of(bells.pop(["q"], 100))


@pytest.fixture
def rung(bells: Doorbells) -> Iterator[Doorbells]:
    """Doorbells that keep a connection."""
    ring(bells, "loads the script, if Redis has not got it")
    ring(bells, "first")
    assert len(popped(bells)) == 2
    yield bells


def test_one_connection_rings_again_and_again(
    rung: Doorbells, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(self: object) -> None:
        raise AssertionError("a connection was taken from the pool")

    with monkeypatch.context() as patch:
        patch.setattr(redis.ConnectionPool, "get_connection", taken)
        for number in range(3):
            ring(rung, str(number))

    assert popped(rung) == ["0", "1", "2"]


def test_a_connection_that_redis_closed_is_replaced(rung: Doorbells, client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)

    ring(rung, "a")
    ring(rung, "b")

    assert popped(rung) == ["a", "b"]


def test_nobody_waits_for_the_connection(rung: Doorbells) -> None:
    assert rung._kept is not None
    with rung._kept._place.lock:
        other = threading.Thread(target=ring, args=(rung, "a"))
        other.start()
        other.join(10)
        ring(rung, "b")  # as a signal handler of this thread may

    assert popped(rung) == ["a", "b"]


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(
    rung: Doorbells, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a doorbell whose caller was interrupted before it had read the answer
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ring(rung, "a")

    # Then the next one has its own
    client.set("no list", "1")
    with pytest.raises(BrokerRefused):
        ring(rung, "b", "no list")
    ring(rung, "c")
    assert popped(rung) in (["a", "c"], ["c"])  # whether the first was pushed is unknown


def test_a_refusal_leaves_the_connection_usable(rung: Doorbells, client: redis.Redis) -> None:
    client.set("no list", "1")
    before = made(client)
    for number in range(3):
        with pytest.raises(BrokerRefused):
            ring(rung, "bad", "no list")
        ring(rung, str(number))

    assert popped(rung) == ["0", "1", "2"]
    assert made(client) == before


def test_a_full_redis_costs_no_connections(own_redis: RedisServer) -> None:
    bells = Doorbells(own_redis.url)
    ring(bells, "a")
    ring(bells, "b")
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        before = made(client)
        for _ in range(5):
            with pytest.raises(BrokerUnavailable):
                ring(bells, "c")
        assert made(client) == before
    bells.close()


def test_a_connection_to_what_became_a_replica_is_not_kept(own_redis: RedisServer) -> None:
    bells = Doorbells(own_redis.url)
    ring(bells, "a")
    ring(bells, "b")
    with redis.Redis.from_url(own_redis.url) as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(BrokerUnavailable):
            ring(bells, "c")
        assert connection_of(bells) is None
        client.replicaof("NO", "ONE")
    ring(bells, "d")
    assert popped(bells) == ["a", "b", "d"]
    bells.close()


def test_a_connection_that_was_idle_for_long_is_not_relied_on(
    rung: Doorbells, client: redis.Redis
) -> None:
    kept = connection_of(rung)
    assert kept is not None
    kept.next_health_check = 0

    ring(rung, "a")  # in the usual way, which may take the same one, and pings it
    assert connection_of(rung) is None
    ring(rung, "b")

    assert popped(rung) == ["a", "b"]
    assert connection_of(rung) is not None


def test_a_silent_redis_is_waited_for_once(own_redis: RedisServer) -> None:
    # Given a connection that is kept, to a Redis that answers nothing any more
    bells = Doorbells(own_redis.url, timeout=0.5)
    ring(bells, "a")
    ring(bells, "b")
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            ring(bells, "c")
        assert time.monotonic() - began < 2 * 0.5
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    ring(bells, "d")
    assert set(popped(bells)) >= {"a", "b", "d"}
    bells.close()


def test_a_fork_has_a_connection_of_its_own(rung: Doorbells) -> None:
    # Given a connection that another thread has at the moment of the fork
    assert rung._kept is not None
    kept = connection_of(rung)
    with rung._kept._place.lock:
        child = os.fork()
        if not child:
            status = 1
            try:
                ring(rung, "child")
                ring(rung, "child")
                status = 0 if connection_of(rung) not in (None, kept) else 1
            finally:
                os._exit(status)
    _, status = os.waitpid(child, 0)
    ring(rung, "parent")
    ring(rung, "parent")

    # Then the child has its own, and left the parent's alone
    assert status == 0
    assert kept is not None and connection_of(rung) is kept
    assert sorted(popped(rung)) == ["child", "child", "parent", "parent"]


def test_what_is_closed_rings_anew(rung: Doorbells) -> None:
    rung.close()
    rung.close()

    ring(rung, "a")

    assert popped(rung) == ["a"]


def test_what_a_thread_has_is_closed_when_it_is_done(rung: Doorbells) -> None:
    assert rung._kept is not None
    kept, place = rung._kept, rung._kept._place
    connection = kept._taken_from(place)
    assert connection is not None
    with place.lock:
        kept.close()
        kept._keep(place, connection)

    ring(rung, "a")
    assert popped(rung) == ["a"]
    assert place.connection is None
