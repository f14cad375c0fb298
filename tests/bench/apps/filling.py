"""Enqueue jobs and time it; every contender's module ends in one of these.

`python -m MODULE WAY WORKLOAD COUNT SECONDS` enqueues COUNT jobs, or as many as it can in SECONDS
when COUNT is 0, and prints JSON: how many, and the seconds that they took. The making of the jobs
is part of these, the opening of a connection is not: one job comes before the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """How a contender enqueues.

    Attributes:
        together: jobs of one call, at most.
        enqueue: enqueues so many jobs of a workload; they are enqueued when it returns.
    """

    together: int
    enqueue: Callable[[str, int], object]


@dataclass(frozen=True, slots=True)
class AsyncWay:
    """The same, for asyncio."""

    together: int
    enqueue: Callable[[str, int], Awaitable[object]]


class _Target:
    """How far a filling has come."""

    def __init__(self, count: int, seconds: float, together: int) -> None:
        self._count, self._seconds, self._together = count, seconds, together
        self._sent, self._began = 1, time.perf_counter()

    def next(self) -> int:
        """How many to enqueue now; 0 when it is done."""
        if self._count:
            some = min(self._together, self._count - self._sent)
        else:
            some = self._together if time.perf_counter() - self._began < self._seconds else 0
        self._sent += some
        return some

    def answer(self) -> str:
        took = time.perf_counter() - self._began
        return json.dumps({"jobs": self._sent, "timed": self._sent - 1, "seconds": took})


def main(ways: Mapping[str, Way]) -> None:
    """Do as the command line says."""
    given = _parsed(ways)
    way = ways[given.way]
    way.enqueue(given.workload, 1)
    target = _Target(given.count, given.seconds, way.together)
    while some := target.next():
        way.enqueue(given.workload, some)
    print(target.answer())


async def main_async(ways: Mapping[str, AsyncWay]) -> None:
    """The same, for asyncio."""
    given = _parsed(ways)
    way = ways[given.way]
    await way.enqueue(given.workload, 1)
    target = _Target(given.count, given.seconds, way.together)
    while some := target.next():
        await way.enqueue(given.workload, some)
    print(target.answer())


def run_async(main: Callable[[], Awaitable[None]]) -> None:
    """Run it, with its loop."""

    async def all_of_it() -> None:
        await main()

    asyncio.run(all_of_it())


def _parsed(ways: Mapping[str, object]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=list(ways))
    parser.add_argument("workload")
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    return parser.parse_args()
