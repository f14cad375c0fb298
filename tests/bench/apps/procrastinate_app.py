"""Procrastinate: jobs in Postgres, by asyncio; its jobs keep no results."""

from __future__ import annotations

import os

from procrastinate import App, PsycopgConnector

from tests.bench.apps import filling
from tests.bench.apps.filling import AsyncWay
from tests.bench.workloads import COROUTINES

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))
tasks = {name: app.task(work, name=f"bench.{name}") for name, work in COROUTINES.items()}


async def single(name: str, count: int) -> None:
    """One after the other."""
    task = tasks[name]
    for _ in range(count):
        await task.defer_async()


async def bulk(name: str, count: int) -> None:
    """In its batches."""
    await tasks[name].batch_defer_async(*({} for _ in range(count)))


async def main() -> None:
    """Enqueue as the command line says, into its tables, which are made when missing."""
    async with app.open_async():
        found = await app.connector.execute_query_one_async(
            "SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS is_there"
        )
        if not found["is_there"]:
            await app.schema_manager.apply_schema_async()
        await filling.main_async({"single": AsyncWay(1, single), "bulk": AsyncWay(1000, bulk)})


if __name__ == "__main__":
    filling.run_async(main)
