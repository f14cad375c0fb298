"""Faults of Redis."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress

import redis

from tests.chaos.faults.registry import Course, begin, end, fault
from tests.chaos.rig import Rig


@fault("redis")
def flushall(rig: Rig, dice: random.Random) -> Course:
    """FLUSHALL."""
    begin(rig, "flushall", "redis")
    with suppress(redis.RedisError), rig.doorbells() as client:
        client.flushall()
    end(rig, "flushall", "redis")
    yield 0.0


@fault("redis")
def kill_redis(rig: Rig, dice: random.Random) -> Course:
    """SIGKILL Redis, and start it empty a little later."""
    begin(rig, "kill-redis", "redis")
    rig.redis.kill()
    yield dice.uniform(0, 6)
    shutil.rmtree(rig.redis.data / "store")
    rig.redis.start()
    end(rig, "kill-redis", "redis")


@fault("redis")
def old_redis(rig: Rig, dice: random.Random) -> Course:
    """Bring back the dataset that Redis had a while ago."""
    store, copy = rig.redis.data / "store", rig.folder / "old-store"
    shutil.rmtree(copy, ignore_errors=True)
    rig.redis.stop()
    shutil.copytree(store, copy)
    rig.redis.start()
    yield dice.uniform(5, 20)
    begin(rig, "old-redis", "redis")
    rig.redis.kill()
    shutil.rmtree(store)
    shutil.copytree(copy, store)
    rig.redis.start()
    end(rig, "old-redis", "redis")


@fault("redis")
def kill_connections(rig: Rig, dice: random.Random) -> Course:
    """CLIENT KILL every connection to Redis."""
    begin(rig, "kill-connections", "redis")
    with suppress(redis.RedisError), rig.doorbells() as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    end(rig, "kill-connections", "redis")
    yield 0.0


@fault("redis")
def full_redis(rig: Rig, dice: random.Random) -> Course:
    """Let Redis refuse every write: it is full."""
    begin(rig, "full-redis", "redis")
    with suppress(redis.RedisError), rig.doorbells() as client:
        client.config_set("maxmemory", "1")
    yield dice.uniform(3, 10)
    with suppress(redis.RedisError), rig.doorbells() as client:
        client.config_set("maxmemory", "0")
    end(rig, "full-redis", "redis")
