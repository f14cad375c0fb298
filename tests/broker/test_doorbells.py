from __future__ import annotations

import json
import socket
import threading
import uuid
from typing import Any, cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.servers import no_redis
from worker.broker import scripts
from worker.broker.doorbells import (
    BATCH,
    FRONT_DEPTH,
    QUARANTINE_LENGTH,
    UNACKED,
    UNACKED_INDEX,
    Doorbells,
    Front,
    Popped,
    bell_of,
    entry_of,
    queue_of,
    ring_of,
)
from worker.broker.faults import translated
from worker.errors import BrokerRefused, BrokerUnavailable, InvalidRequest
from worker.jobs.job import Ring
from worker.jobs.queues import checked_queue, list_of, lists_of
from worker.stack.redis import RedisServer

FOREIGN = b'{"body": "W10=", "headers": {}}'


def rings(*ids: str, name: str = "q", first: int = 1) -> list[Ring]:
    return [Ring(job_id, name, number) for number, job_id in enumerate(ids, first)]


def ids_of(popped: list[Popped]) -> list[str]:
    return [ring.id for item in popped if (ring := ring_of(item.list, item.entry))]


def noted(client: redis.Redis) -> int:
    size = int(client.hlen(UNACKED))
    assert size == client.zcard(UNACKED_INDEX)
    return size


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1:1", "the connection is refused; check REDIS_URL, or start Redis"),
        ("nowhere.invalid:6379", "the name of its host is not known; check REDIS_URL"),
        ("{silent}", "it has not answered in time; check REDIS_URL"),
        ("{web}", "what answers there is no Redis; check REDIS_URL"),
        ("{mute}", "it closed the connection; check that REDIS_URL names a Redis"),
    ],
)
def test_an_outage_says_what_it_is(host: str, said: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        no_redis() as web,
        no_redis(answer=b"") as mute,
    ):
        silence = f"127.0.0.1:{silent.getsockname()[1]}"
        address = host.format(silent=silence, web=web, mute=mute)
        bells = Doorbells(f"redis://{address}/0", timeout=0.5)
        with pytest.raises(BrokerUnavailable, match=f"Redis is not available: {said}"):
            bells.ping()
        bells.close()


def test_what_is_rung_is_popped_first_in_first_out(bells: Doorbells) -> None:
    bells.ring(rings("a", "b"))
    bells.ring(rings("c", first=3))

    assert ids_of(bells.pop(["q"], 2)) == ["a", "b"]
    assert ids_of(bells.pop(["q"], 9)) == ["c"]
    assert bells.pop(["q"], 9) == []


def test_lists_are_served_in_their_order(bells: Doorbells) -> None:
    for priority in (9, 0, 3):
        bells.ring(rings(f"p{priority}", name=list_of("q", priority)))

    popped = bells.pop(lists_of("q"), 2)

    assert ids_of(popped) == ["p0", "p3"]
    assert [item.list for item in popped] == ["q", "q\x06\x163"]


def test_a_doorbell_of_ours_needs_no_acknowledgement(bells: Doorbells, client: redis.Redis) -> None:
    bells.ring(rings("a"))

    (item,) = bells.pop(["q"], 1)

    assert item.tag == ""
    assert noted(client) == 0


def test_a_foreign_entry_is_noted_until_it_is_acknowledged(
    bells: Doorbells, client: redis.Redis
) -> None:
    client.lpush("q", FOREIGN, b"\xff\x00\n", FOREIGN)
    bells.ring(rings("a"))

    popped = bells.pop(["q"], 9)

    assert [item.entry for item in popped[:3]] == [FOREIGN, b"\xff\x00\n", FOREIGN]
    assert [bool(item.tag) for item in popped] == [True, True, True, False]
    assert noted(client) == 3
    bells.acknowledge([item.tag for item in popped if item.tag])
    assert noted(client) == 0


def test_a_pop_that_is_sent_again_forgets_nothing_of_the_first(
    bells: Doorbells, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a pop whose reply is lost, which redis-py sends again as it was
    once = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: once)
    client.lpush("q", b"first", b"second", b"third", b"fourth")
    bells.pop(["q"], 2)

    (third, fourth) = bells.pop(["q"], 2)

    # Then what the first one took is noted too, and is put back
    assert noted(client) == 4
    bells.acknowledge([third.tag, fourth.tag])
    assert bells.restore(0) == 2
    assert sorted(item.entry for item in bells.pop(["q"], 9)) == [b"first", b"second"]


def test_a_key_that_is_no_list_is_passed_over(bells: Doorbells, client: redis.Redis) -> None:
    client.set("bad", "no list")
    bells.ring(rings("a"))
    bells.ring(rings("z", name="z"))

    assert ids_of(bells.pop(["q", "bad", "z"], 9)) == ["a", "z"]


def test_a_list_that_is_refused_does_not_keep_the_others_from_being_rung(
    bells: Doorbells, client: redis.Redis
) -> None:
    client.set("bad", "no list")

    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        bells.ring([*rings("a", name="a"), *rings("b", name="bad"), *rings("c", name="c")])

    assert ids_of(bells.pop(["a", "c"], 9)) == ["a", "c"]
    with pytest.raises(BrokerRefused):
        bells.front("bad")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.ResponseError("WRONGTYPE Operation against a key"), BrokerRefused),
        (redis.exceptions.NoPermissionError("this user has no permissions"), BrokerRefused),
        (redis.ResponseError(), BrokerRefused),
        (redis.exceptions.OutOfMemoryError("command not allowed"), BrokerUnavailable),
        (redis.ReadOnlyError("You can't write against a read only replica."), BrokerUnavailable),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), BrokerUnavailable),
        (redis.ResponseError("MISCONF Redis is configured to save"), BrokerUnavailable),
        (redis.ResponseError("ERR Error running script: @u: 2: OOM command"), BrokerUnavailable),
    ],
)
def test_a_refusal_is_told_from_an_outage(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(BrokerUnavailable) as raised, translated():
        raise error

    assert raised.type is expected


def test_a_full_redis_is_away_and_refuses_no_list(own_redis: RedisServer) -> None:
    bells = Doorbells(own_redis.url)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")

    with pytest.raises(BrokerUnavailable) as raised:
        bells.ring(rings("a"))

    assert raised.type is BrokerUnavailable
    bells.close()


def test_many_workers_pop_each_entry_once(bells: Doorbells, redis_url: str) -> None:
    wanted = [f"j{number}" for number in range(2500)]
    bells.ring(rings(*wanted))
    found: list[str] = []
    lock = threading.Lock()

    def drain() -> None:
        own = Doorbells(redis_url)
        while popped := own.pop(["q"], 7):
            with lock:
                found.extend(ids_of(popped))
        own.close()

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(found) == sorted(wanted)


def test_more_than_a_scripts_arguments_can_be_rung_and_popped(bells: Doorbells) -> None:
    wanted = [f"j{number}" for number in range(2 * BATCH + 1)]

    bells.ring(rings(*wanted))

    assert ids_of(bells.pop(["q"], len(wanted))) == wanted


def test_a_ring_wakes_who_waits_for_its_queue(bells: Doorbells) -> None:
    bells.ring(rings("a", name=list_of("q", 9)))

    assert bells.wait(["other", "q"], 5)


def test_a_ring_wakes_who_is_waiting_already(bells: Doorbells, redis_url: str) -> None:
    waiting, woken = Doorbells(redis_url), threading.Event()

    def wait() -> None:
        if waiting.wait(["q"], 4):
            woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    bells.ring(rings("a"))

    assert woken.wait(10)
    thread.join(10)
    waiting.close()


def test_waiting_ends_by_itself(bells: Doorbells) -> None:
    assert not bells.wait(["q"], 0.05)


def test_bells_are_bounded(bells: Doorbells, client: redis.Redis) -> None:
    for _ in range(3):
        bells.ring(rings(*map(str, range(100))))

    assert client.llen(bell_of("q")) == scripts.BELLS
    assert client.llen("q") == 300


def test_what_is_given_back_is_popped_next_in_its_order(
    bells: Doorbells, client: redis.Redis
) -> None:
    bells.ring(rings("a"))
    client.lpush("q", FOREIGN)
    bells.ring(rings("b", "c"))
    popped = bells.pop(["q"], 3)

    bells.give_back(popped)

    assert noted(client) == 0
    again = bells.pop(["q"], 9)
    assert [item.entry for item in again[:3]] == [item.entry for item in popped]
    assert ids_of(again[3:]) == ["c"]


def test_what_was_popped_and_never_adopted_is_restored(
    bells: Doorbells, client: redis.Redis
) -> None:
    # Given a worker that died with an entry of a foreign producer, with every byte there is
    entry = bytes(range(256)) + b"\n"
    client.lpush("q\x06\x163", entry)
    bells.pop(["q\x06\x163"], 1)

    # Then it is put back once it is old, and only once
    assert bells.restore(3600) == 0
    assert bells.restore(0) == 1
    assert bells.restore(0) == 0
    assert [item.entry for item in bells.pop(["q\x06\x163"], 9)] == [entry]


def test_an_entry_whose_list_is_refused_is_kept_and_keeps_no_other(
    bells: Doorbells, client: redis.Redis
) -> None:
    # Given two entries that were popped, and something that is no list where one of them was
    client.lpush("q", b"one")
    client.lpush("r", b"two")
    assert len(bells.pop(["q", "r"], 2)) == 2
    client.set("q", "no list")

    # Then the other is put back, and it is once its place is a list again
    assert bells.restore(0) == 1
    assert [item.entry for item in bells.pop(["r"], 9)] == [b"two"]
    client.delete("q")
    assert bells.restore(0) == 2
    assert [item.entry for item in bells.pop(["q"], 9)] == [b"one"]


@pytest.mark.parametrize("entry", [b"\n", b"\n\nq\n", b"", b"q\nx"])
def test_newlines_of_an_entry_are_its_own(
    bells: Doorbells, client: redis.Redis, entry: bytes
) -> None:
    # Given a note that is taken apart at its first newline: no queue's name can have one
    with pytest.raises(InvalidRequest):
        checked_queue("a\nb")
    name = list_of("Ünï code", 9)
    client.lpush(name, entry)
    bells.pop([name], 1)

    assert bells.restore(0) == 1

    assert client.lrange(name, 0, -1) == [entry]


def test_the_age_of_an_entry_is_by_redis_clock(
    bells: Doorbells, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker whose clock is an hour ahead
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    client.lpush("q", FOREIGN)
    bells.pop(["q"], 1)

    # Then what it pops and what it restores is as old as Redis says
    ((_, score),) = cast(Any, client.zrange(UNACKED_INDEX, 0, -1, withscores=True))
    seconds, _ = cast(Any, client.time())
    assert abs(score - seconds) < 60
    assert bells.restore(600) == 0
    assert noted(client) == 1


def test_an_unreadable_entry_goes_where_operators_see_it(
    bells: Doorbells, client: redis.Redis
) -> None:
    client.lpush("q", b"\xffnonsense")
    (item,) = bells.pop(["q"], 1)

    bells.quarantine(item, "The entry is no JSON.")

    assert bells.quarantined() == [
        {"list": "q", "reason": "The entry is no JSON.", "entry": "\ufffdnonsense"}
    ]
    assert noted(client) == 0
    assert bells.restore(0) == 0


def test_the_quarantine_is_bounded_newest_first(bells: Doorbells) -> None:
    for number in range(QUARANTINE_LENGTH + 5):
        bells.quarantine(Popped("q", str(number).encode(), ""), "no")

    kept = bells.quarantined()
    assert len(kept) == QUARANTINE_LENGTH
    assert kept[0]["entry"] == str(QUARANTINE_LENGTH + 4)


def test_the_front_is_what_is_popped_next(bells: Doorbells) -> None:
    assert bells.front("q") == Front(True, None)
    bells.ring(rings("a", "b", first=7))

    assert bells.front("q") == Front(False, 7)
    bells.pop(["q"], 1)
    assert bells.front("q") == Front(False, 8)


def test_the_front_is_found_behind_foreign_entries(bells: Doorbells, client: redis.Redis) -> None:
    client.lpush("q", *[FOREIGN] * (FRONT_DEPTH - 1))
    bells.ring(rings("a", first=7))

    assert bells.front("q") == Front(False, 7)


def test_behind_too_many_foreign_entries_the_front_is_unknown(
    bells: Doorbells, client: redis.Redis
) -> None:
    client.lpush("q", *[FOREIGN] * FRONT_DEPTH)
    bells.ring(rings("a", first=7))

    assert bells.front("q") == Front(False, None)


@given(st.text(min_size=1), st.integers(0, 2**62))
def test_a_doorbell_is_read_as_it_was_written(job_id: str, seq: int) -> None:
    ring = Ring(job_id, "q", seq)

    assert ring_of("q", entry_of(ring).encode()) == ring
    assert entry_of(ring).startswith('{"ledger": ')


@given(st.binary() | st.binary().map(lambda tail: b'{"ledger": ' + tail))
def test_whatever_stands_in_a_list_is_a_doorbell_or_is_not(entry: bytes) -> None:
    ring = ring_of("q", entry)
    assert ring is None or isinstance(ring.seq, int)


@pytest.mark.parametrize(
    "entry",
    [
        FOREIGN,
        b"",
        b'{"ledger": 1}',
        b'{"ledger": null, "id": "a"}',
        b'{"ledger": [1], "id": "a"}',
        b'{"ledger": 1, "id": "a"',
        b'{"ledger": ' + b"[" * 100_000,
        b'{"ledger": 1e999, "id": "a"}',
        b'[{"ledger": 1, "id": "a"}]',
        b'{"ledger": 1, "id": "\xff"}',
    ],
)
def test_garbage_is_no_doorbell(entry: bytes) -> None:
    assert ring_of("q", entry) is None


def test_the_script_knows_our_mark() -> None:
    mark = entry_of(Ring("a", "q", 1))[:11]
    assert mark == '{"ledger": ' and repr(mark)[1:-1] in scripts.POP
    assert json.loads(entry_of(Ring("a", "q", 1))) == {"ledger": 1, "id": "a"}


def test_every_list_of_a_queue_has_its_one_bell() -> None:
    assert {queue_of(name) for name in lists_of("my.queue")} == {"my.queue"}


def test_a_redis_that_is_away_is_told_as_such(own_redis: RedisServer) -> None:
    bells = Doorbells(own_redis.url)
    bells.ping()
    own_redis.stop()

    for use in (bells.ping, lambda: bells.ring(rings("a")), lambda: bells.pop(["q"], 1)):
        with pytest.raises(BrokerUnavailable):
            use()
    bells.close()


def test_scripts_survive_a_redis_that_forgot_them(bells: Doorbells, client: redis.Redis) -> None:
    bells.ring(rings("a"))
    client.script_flush()

    bells.ring(rings("b", first=2))

    assert ids_of(bells.pop(["q"], 9)) == ["a", "b"]
