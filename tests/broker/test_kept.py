"""The connection that doorbells keep is a shortcut: whatever becomes of it, they ring."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import redis
from redis.connection import Connection

from tests.broker.test_doorbells import ids_of
from worker.broker.doorbells import Doorbells
from worker.errors import BrokerRefused
from worker.jobs.job import Ring


def ring(bells: Doorbells, job_id: str, name: str = "q") -> None:
    bells.ring([Ring(job_id, name, 1)])


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
    for number in range(3):
        with pytest.raises(BrokerRefused):
            ring(rung, "bad", "no list")
        ring(rung, str(number))

    assert popped(rung) == ["0", "1", "2"]


def test_a_fork_has_a_connection_of_its_own(rung: Doorbells) -> None:
    assert rung._kept is not None
    child = os.fork()
    if not child:
        # Its first connection, while the parent's lock may be held for ever.
        ring(rung, "child")
        ring(rung, "child")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    kept = rung._kept._place.connection
    ring(rung, "parent")
    ring(rung, "parent")

    assert status == 0
    assert kept is not None and rung._kept._place.connection is kept  # the child left it alone
    assert sorted(popped(rung)) == ["child", "child", "parent", "parent"]


def test_what_is_closed_rings_anew(rung: Doorbells, client: redis.Redis) -> None:
    rung.close()
    rung.close()

    ring(rung, "a")

    assert popped(rung) == ["a"]
