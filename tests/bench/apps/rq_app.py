"""RQ, without results; it calls functions by their names."""

from __future__ import annotations

import os

import redis
from rq import Queue

from tests.bench.apps import filling
from tests.bench.apps.filling import Way
from tests.bench.workloads import WORKLOADS

queue = Queue(connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def single(name: str, count: int) -> None:
    """One after the other."""
    work = WORKLOADS[name]
    for _ in range(count):
        queue.enqueue(work, result_ttl=0)


def bulk(name: str, count: int) -> None:
    """In RQ's bulk."""
    work = WORKLOADS[name]
    queue.enqueue_many([Queue.prepare_data(work, result_ttl=0) for _ in range(count)])


load = bulk


def stamped(number: int) -> str:
    """Enqueue job `number` of a latency; its id."""
    return str(queue.enqueue(WORKLOADS["stamp"], number, result_ttl=0).id)


if __name__ == "__main__":
    filling.main({"single": Way(1, single), "bulk": Way(1000, bulk)})
