"""Enqueue one job at a time, beside the least that a durable enqueue can cost, in turn.

`python -m tests.bench.apps.floor SECONDS` prints JSON: the seconds of each of both. The floor is
one committed INSERT and one LPUSH by the bare drivers, of about as many bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import psycopg2
import redis

from worker.client import Client
from worker.ledger.catalogue import publish
from worker.settings import Settings

_TABLE = "CREATE TABLE IF NOT EXISTS bench_floor (id bigserial PRIMARY KEY, body bytea)"
_INSERT = "INSERT INTO bench_floor (body) VALUES (%s)"
#: About as many bytes as the row of a job and its doorbell.
BODY, BELL = b"x" * 600, b"x" * 80
#: Of each that come first and are not counted: connections, caches.
WARM = 20


def main(seconds: float) -> None:
    """Measure and print."""
    settings = Settings.load()
    connection = psycopg2.connect(settings.database_url.get_secret_value().replace("+psycopg2", ""))
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute(_TABLE)
    bare = redis.Redis.from_url(settings.redis_url.get_secret_value())

    def floor() -> None:
        cursor.execute(_INSERT, (BODY,))
        bare.lpush("bench:floor", BELL)

    with Client(settings) as client:
        # As some worker has done: until then each enqueue looks whether one has.
        publish(client.ledger, {"bench.noop": []}, [settings.queue])
        ways: dict[str, Callable[[], object]] = {
            "enqueue": lambda: client.enqueue("bench.noop"),
            "floor": floor,
        }
        for _ in range(WARM):
            for way in ways.values():
                way()
        print(json.dumps(in_turn(ways, seconds)))


def in_turn(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Each way once, again and again for so long; what each call took."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - began)
    return took


if __name__ == "__main__":
    main(float(sys.argv[1]))
