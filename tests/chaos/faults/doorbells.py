"""Faults of Redis."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import suppress

import redis

from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.rig import Rig

#: Seconds that a moment is waited for in which Redis holds anything that can be lost.
FILLED = 4.0


def _filled(rig: Rig) -> Course:
    """Wait until something is in Redis: between two bursts it is empty."""
    until = time.monotonic() + FILLED
    with rig.doorbells() as client:
        while not client.dbsize() and time.monotonic() < until:
            yield 0.01


@fault("redis")
def flushall(rig: Rig, dice: random.Random) -> Course:
    """FLUSHALL."""
    yield from _filled(rig)
    begin(rig, "flushall", "redis")
    with rig.doorbells() as client, client.pipeline(transaction=True) as together:
        before, _, after = together.dbsize().flushall().dbsize().execute()
    if before and not after:
        met(rig, "flushall", "redis", keys=before)
    end(rig, "flushall", "redis")


@fault("redis")
def kill_redis(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL Redis, and start it empty a little later."""
    away = dice.uniform(0, 6)
    yield from _filled(rig)
    begin(rig, "kill-redis", "redis")
    rig.redis.kill()
    code = rig.redis.exit_code
    yield away
    shutil.rmtree(rig.redis.data / "store")
    rig.redis.start()
    if code == -9:
        met(rig, "kill-redis", "redis", exit_code=code, away=away)
    end(rig, "kill-redis", "redis")


@fault("redis")
def old_redis(rig: Rig, dice: random.Random) -> Course:
    """Bring back the dataset that Redis had a while ago."""
    age = dice.uniform(5, 20)
    store, copy = rig.redis.data / "store", rig.folder / "old-store"
    shutil.rmtree(copy, ignore_errors=True)
    yield from _filled(rig)
    with rig.doorbells() as client:
        keys = client.dbsize()
    rig.redis.stop()
    shutil.copytree(store, copy)
    rig.redis.start()
    yield age
    begin(rig, "old-redis", "redis")
    rig.redis.kill()
    shutil.rmtree(store)
    shutil.copytree(copy, store)
    rig.redis.start()
    if keys:
        met(rig, "old-redis", "redis", keys=keys, age=age)
    end(rig, "old-redis", "redis")


@fault("redis")
def kill_connections(rig: Rig, dice: random.Random) -> Course:
    """CLIENT KILL every connection to Redis."""
    begin(rig, "kill-connections", "redis")
    with rig.doorbells() as client:
        killed = sum(
            int(client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
            for kind in ("normal", "pubsub")
        )
    if killed:
        met(rig, "kill-connections", "redis", killed=killed)
    end(rig, "kill-connections", "redis")
    yield 0.0


@fault("redis")
def full_redis(rig: Rig, dice: random.Random) -> Course:
    """Let Redis refuse every write: it is full."""
    lasts = dice.uniform(3, 10)
    begin(rig, "full-redis", "redis")
    with rig.doorbells() as client:
        client.config_set("maxmemory", "1")
        try:
            client.set("chaos", "refused")
        except redis.ResponseError as exc:
            met(rig, "full-redis", "redis", refused=str(exc))
    yield lasts
    while not _has_room(rig):
        yield 0.2
    end(rig, "full-redis", "redis")


def _has_room(rig: Rig) -> bool:
    with suppress(redis.RedisError), rig.doorbells() as client:
        return bool(client.config_set("maxmemory", "0"))
    return False
