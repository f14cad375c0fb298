"""Doorbells: Redis lists that say which jobs are ready. They may be lost, doubled or late."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from json.encoder import encode_basestring_ascii
from typing import Any, Final

import redis

from worker.broker import scripts, stock
from worker.broker.address import client_at, close
from worker.broker.faults import translated
from worker.broker.kept import Kept
from worker.errors import BrokerRefused
from worker.jobs.job import Ring
from worker.jobs.queues import SEPARATOR

logger = logging.getLogger(__name__)

UNACKED: Final = "ledger:unacked"
UNACKED_INDEX: Final = "ledger:unacked:index"
UNACKED_RUNS: Final = "ledger:unacked:runs"
QUARANTINE: Final = "ledger:quarantine"
#: What every doorbell of ours begins with; nothing else in a list does.
MARK: Final = '{"ledger": '
#: Doorbells pushed by one script call; Lua's `unpack` takes a few thousand at most.
BATCH: Final = 1000
#: How far into a list `front` looks for a doorbell of ours.
FRONT_DEPTH: Final = 100
QUARANTINE_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class Popped:
    """One entry taken from a list.

    Attributes:
        list: the list it was in.
        entry: what was in it, verbatim.
        tag: what to acknowledge it by; empty for a doorbell of ours, which needs none.
    """

    list: str
    entry: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Front:
    """What is next to be popped from a list: nothing, a number of ours, or something unknown."""

    empty: bool
    seq: int | None


class Doorbells:
    """The lists, and a bell for each queue that wakes an idle worker.

    A worker pops without blocking, in one script that also notes what needs an acknowledgement,
    and when there is nothing it blocks on the bells alone: what a blocking call holds can be lost
    with its connection, and a bell is worth nothing. Producers that know nothing of bells are
    found by polling.

    Args:
        url: `redis://…`, `rediss://…` or `sentinel://…`; see `worker.broker.address`.
        timeout: seconds until a silent Redis counts as away.

    Raises:
        InvalidSettings: the address has an option that cannot be.
    """

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._redis = client_at(url, timeout)
        self._timeout = timeout
        self._kept: Kept | None = Kept(self._redis)
        self._ring = self._redis.register_script(scripts.RING)
        self._pop = self._redis.register_script(scripts.POP)
        self._restore = self._redis.register_script(scripts.RESTORE)

    @classmethod
    def over(cls, client: redis.Redis) -> Doorbells:
        """Doorbells on a client that somebody else, such as a kombu channel, keeps."""
        self = cls.__new__(cls)
        self._redis, self._timeout = client, 5.0
        self._kept = None
        self._ring = client.register_script(scripts.RING)
        self._pop = client.register_script(scripts.POP)
        self._restore = client.register_script(scripts.RESTORE)
        return self

    def close(self) -> None:
        """Close every connection."""
        if self._kept is not None:
            self._kept.close()
        close(self._redis)

    def ring(self, rings: Sequence[Ring]) -> None:
        """Push a doorbell for each job; one round trip for each list and thousand.

        Raises:
            BrokerRefused: Redis refuses some list; the others have their doorbells.
            Unavailable: Redis is away or full; the keeper rings later.
        """
        if len(rings) == 1:
            self._push(rings[0].list, [entry_of(rings[0])])
            return
        by_list = groupby(sorted(rings, key=lambda ring: ring.list), key=lambda ring: ring.list)
        refused: BrokerRefused | None = None
        for name, group in by_list:
            try:
                self._push(name, [entry_of(ring) for ring in group])
            except BrokerRefused as exc:
                refused = exc
        if refused is not None:
            raise refused

    def _push(self, name: str, entries: Sequence[str]) -> None:
        keys = [name, bell_of(queue_of(name))]
        with translated():
            for start in range(0, len(entries), BATCH):
                part = entries[start : start + BATCH]
                if self._kept is None or not self._kept.run(self._ring, keys, part):
                    self._ring(keys=keys, args=part)

    def pop(self, lists: Sequence[str], most: int) -> list[Popped]:
        """Take up to `most` entries, from the first list first, without waiting.

        Raises:
            Unavailable: Redis is away; what was popped and not received is found by the keeper.
        """
        with translated():
            keys = [*lists, UNACKED, UNACKED_INDEX, UNACKED_RUNS]
            flat = self._pop(keys=keys, args=[most, uuid.uuid4().hex])
        parts = iter(flat)
        return [
            Popped(name.decode(), entry, tag.decode())
            for name, entry, tag in zip(parts, parts, parts, strict=True)
        ]

    def wait(self, queues: Sequence[str], seconds: float) -> bool:
        """Block until a bell of `queues` rings, at most about `seconds`; whether one did.

        Raises:
            Unavailable: Redis is away.
        """
        with translated():
            rung = self._redis.brpop([bell_of(queue) for queue in queues], timeout=seconds)
        return rung is not None

    def acknowledge(self, tags: Sequence[str]) -> None:
        """Forget entries that are rows now."""
        if tags:
            with translated(), self._redis.pipeline(transaction=True) as pipe:
                pipe.zrem(UNACKED_INDEX, *tags)
                pipe.hdel(UNACKED, *tags)
                pipe.execute()

    def give_back(self, popped: Sequence[Popped]) -> None:
        """Put entries back where they were taken from, to be popped next."""
        with translated(), self._redis.pipeline(transaction=True) as pipe:
            for item in reversed(popped):
                pipe.rpush(item.list, item.entry)
                if item.tag:
                    pipe.zrem(UNACKED_INDEX, item.tag)
                    pipe.hdel(UNACKED, item.tag)
            pipe.execute()

    def restore(self, older_than: float) -> int:
        """Put back what was popped over `older_than` seconds ago and never became a row."""
        with translated():
            return int(self._restore(keys=[UNACKED, UNACKED_INDEX], args=[older_than, BATCH]))

    def restore_stock(self, older_than: float) -> int:
        """Put back what consumers without the ledger popped so long ago; see `stock.restore`."""
        with translated():
            return stock.restore(
                self._redis,
                older_than,
                lambda noted, why: self.quarantine(Popped(stock.UNACKED, noted, ""), why),
            )

    def quarantine(self, item: Popped, reason: str) -> None:
        """Keep an entry that nobody can read where operators can see it, and acknowledge it."""
        note = {"list": item.list, "reason": reason, "entry": item.entry.decode("utf-8", "replace")}
        logger.error("An entry of list %r went to the quarantine: %s", item.list, reason)
        with translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(QUARANTINE, json.dumps(note))
            pipe.ltrim(QUARANTINE, 0, QUARANTINE_LENGTH - 1)
            if item.tag:
                pipe.zrem(UNACKED_INDEX, item.tag)
                pipe.hdel(UNACKED, item.tag)
            pipe.execute()

    def quarantined(self) -> list[dict[str, Any]]:
        """Everything in the quarantine, newest first."""
        with translated():
            return [json.loads(entry) for entry in self._redis.lrange(QUARANTINE, 0, -1)]

    def quarantine_length(self) -> int:
        """How many entries are in the quarantine."""
        with translated():
            length: Any = self._redis.llen(QUARANTINE)
        return int(length)

    def server(self) -> tuple[str, str]:
        """What answers, Redis or Valkey, and its version.

        Raises:
            Unavailable: nothing does.
        """
        with translated():
            info: Any = self._redis.info("server")
        if info.get("server_name") == "valkey":
            return "Valkey", str(info["valkey_version"])
        return "Redis", str(info["redis_version"])

    def front(self, name: str) -> Front:
        """What is next to be popped from list `name`, as far as `FRONT_DEPTH` entries show."""
        with translated():
            entries: list[Any] = self._redis.lrange(name, -FRONT_DEPTH, -1)
        for entry in reversed(entries):
            ring = ring_of(name, entry)
            if ring is not None:
                return Front(False, ring.seq)
        return Front(not entries, None)

    def durability_faults(self) -> list[str]:
        """One sentence for each setting of Redis that costs more than a doorbell."""
        with translated():
            info: Any = self._redis.info("memory")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            return [
                f"Redis has maxmemory-policy = {policy}, which drops whole lists when it is full;"
                " set it to noeviction."
            ]
        return []

    def ping(self) -> None:
        """Make sure that Redis answers.

        Raises:
            Unavailable: it does not.
        """
        with translated():
            self._redis.ping()


def entry_of(ring: Ring) -> str:
    """A doorbell as it stands in a list."""
    return f'{MARK}{ring.seq:d}, "id": {encode_basestring_ascii(ring.id)}}}'


def ring_of(name: str, entry: bytes) -> Ring | None:
    """The doorbell that `entry` of list `name` is, `None` when it is none of ours."""
    if not entry.startswith(MARK.encode()):
        return None
    try:
        value = json.loads(entry)
        return Ring(str(value["id"]), name, int(value["ledger"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def bell_of(queue: str) -> str:
    """The key that an idle worker of `queue` blocks on."""
    return f"ledger:bell:{queue}"


def queue_of(name: str) -> str:
    """The queue that a list belongs to."""
    return name.partition(SEPARATOR)[0]
