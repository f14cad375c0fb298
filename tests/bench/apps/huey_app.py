"""Huey on Redis, without results."""

from __future__ import annotations

import os

from huey import RedisHuey

from tests.bench.apps import filling
from tests.bench.apps.filling import Way
from tests.bench.workloads import WORKLOADS

huey = RedisHuey("bench", url=os.environ["REDIS_URL"], results=False)
tasks = {name: huey.task(name=f"bench_{name}")(work) for name, work in WORKLOADS.items()}


def single(name: str, count: int) -> None:
    """One after the other: it has no bulk."""
    task = tasks[name]
    for _ in range(count):
        task()


load = single


def stamped(number: int) -> str:
    """Enqueue job `number` of a latency; without results it has no id to ask for."""
    tasks["stamp"](number)
    return str(number)


if __name__ == "__main__":
    filling.main({"single": Way(1, single)})
