"""Dramatiq on Redis, without results."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.bench.apps import filling
from tests.bench.apps.filling import Way
from tests.bench.workloads import WORKLOADS

broker = RedisBroker(url=os.environ["REDIS_URL"])
dramatiq.set_broker(broker)
actors = {
    name: dramatiq.actor(work, actor_name=f"bench.{name}") for name, work in WORKLOADS.items()
}


def single(name: str, count: int) -> None:
    """One after the other: it has no bulk."""
    actor = actors[name]
    for _ in range(count):
        actor.send()


load = single


def stamped(number: int) -> str:
    """Enqueue job `number` of a latency; its id."""
    return str(actors["stamp"].send(number).message_id)


if __name__ == "__main__":
    filling.main({"single": Way(1, single)})
