"""Taskiq on Redis, without results; its tasks are coroutines, as it likes them best."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import ListQueueBroker

from tests.bench.apps import filling
from tests.bench.apps.filling import AsyncWay
from tests.bench.workloads import COROUTINES

broker = ListQueueBroker(url=os.environ["REDIS_URL"])
tasks = {name: broker.task(task_name=f"bench:{name}")(work) for name, work in COROUTINES.items()}


async def single(name: str, count: int) -> None:
    """So many at once: with a count of 1, one after the other."""
    await asyncio.gather(*(tasks[name].kiq() for _ in range(count)))


async def main() -> None:
    """Enqueue as the command line says. "bulk" is a hundred at once: it has no bulk of its own."""
    await broker.startup()
    try:
        await filling.main_async({"single": AsyncWay(1, single), "bulk": AsyncWay(100, single)})
    finally:
        await broker.shutdown()


if __name__ == "__main__":
    filling.run_async(main)
