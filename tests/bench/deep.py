"""A ledger with a past: millions of finished rows, and a million queued ones that nobody wants."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from typing import Any

import psycopg2
import redis

from tests.bench.contenders import THREADS
from tests.bench.field import Field, Place
from tests.bench.runs import Failed

FINISHED, QUEUED = 10_000_000, 1_000_000
#: Rows of one INSERT, and doorbells of one round trip.
ROWS, BELLS = 500_000, 1000
#: The queue of the queued ones: no worker consumes it.
QUEUE = "elsewhere"
#: Bytes of disk that a row may take, its indexes and the log of its writing included.
BYTES = 2500

# An id whose order is that of time, as of every id, and older than every other.
_ID = """
    '00' || lpad(to_hex({n} / 65536), 6, '0') || '-' || lpad(to_hex(mod({n}, 65536)), 4, '0')
    || '-7' || substr(md5({n}::text), 1, 3) || '-8' || substr(md5({n}::text), 4, 3)
    || '-' || substr(md5({n}::text), 7, 12)
"""
_COLUMNS = "id, task, queue, list, priority, state, attempt, fingerprint, envelope, body"

_INSERT_FINISHED = f"""
    INSERT INTO ledger.jobs ({_COLUMNS}, lease, worker, dispatch_seq, dispatched_at, rings,
                      created_at, started_at, finished_at, result, result_type)
    SELECT {_ID.format(n="n")}, task, queue, list, 0, 'succeeded', 1, fingerprint, envelope, body,
           'lease', 'w1@bench', n, at, 1, at, at, at, 'null', 'application/json'
    FROM (SELECT * FROM ledger.jobs WHERE queue <> '{QUEUE}' ORDER BY id DESC LIMIT 1) AS one,
         LATERAL (SELECT n, now() - interval '4 days' + n * interval '25 ms' AS at
                  FROM generate_series(%s, %s) AS n) AS many
"""

_INSERT_QUEUED = f"""
    INSERT INTO ledger.jobs ({_COLUMNS}, dispatch_seq, dispatched_at, rings)
    SELECT {_ID.format(n="n")}, task, '{QUEUE}', '{QUEUE}', 0, 'queued', 0, fingerprint, envelope,
           body, n, clock_timestamp(), 1
    FROM (SELECT * FROM ledger.jobs WHERE queue <> '{QUEUE}' ORDER BY id DESC LIMIT 1) AS one,
         generate_series(%s, %s) AS n
"""


def deep(field: Field, finished: int = FINISHED, queued: int = QUEUED) -> Place:
    """A database of its own with so many rows, vacuumed and analyzed, and their doorbells.

    Raises:
        Failed: the disk has too little room for it.
    """
    needed, free = BYTES * (finished + queued), shutil.disk_usage(field.folder).free
    if free < needed:
        raise Failed(
            f"The deep ledger needs {needed / 1e9:.0f} GB of disk, and {free / 1e9:.0f} are free;"
            " set TMPDIR to a place with more, or leave it out with --skip depth."
        )
    field.home.execute("CREATE DATABASE deep")
    address, bells = field.postgres.url_of("deep"), field.redis.url_of(1)
    place = Place(address, bells, address, bells, "deep", keeps=True)
    place.migrate()
    tally = field.tally()
    # One real job, of which all others are copies.
    field.run(THREADS, place, tally, [THREADS.app, "single", "noop", 1, 0])
    with redis.Redis.from_url(bells) as client:
        client.flushdb()
    _insert(place, "finished", _INSERT_FINISHED, 1, finished)
    _insert(place, "queued", _INSERT_QUEUED, finished + 1, finished + queued)
    place.execute("DELETE FROM ledger.jobs WHERE state = 'queued' AND queue <> %s", [QUEUE])
    place.execute("SELECT setval('ledger.dispatch_seq', %s)", [finished + queued])
    _ring(place)
    print("  vacuum, analyze", flush=True)
    place.execute("VACUUM (ANALYZE) ledger.jobs")
    place.execute("CHECKPOINT")
    return place


def empty(field: Field) -> Place:
    """The usual place, by its name."""
    return replace(field.home, setting="empty")


def _insert(place: Place, what: str, statement: str, first: int, last: int) -> None:
    began = time.monotonic()
    for start in range(first, last + 1, ROWS):
        place.execute(statement, [start, min(start + ROWS - 1, last)])
        done = min(start + ROWS, last + 1) - first
        rate = done / (time.monotonic() - began)
        print(f"  {done:,} of {last - first + 1:,} rows {what}, {rate:,.0f}/s", flush=True)


def _ring(place: Place) -> None:
    """The queued ones' doorbells, as their enqueueing would have pushed them."""
    connection = psycopg2.connect(place.postgres)
    try:
        with redis.Redis.from_url(place.redis) as client, connection.cursor("bells") as cursor:
            cursor.itersize = BELLS
            cursor.execute(
                "SELECT dispatch_seq, id FROM ledger.jobs WHERE state = 'queued' AND list = %s"
                " ORDER BY dispatch_seq",
                [QUEUE],
            )
            while rows := cursor.fetchmany(BELLS):
                client.lpush(QUEUE, *(_bell(*row) for row in rows))
    finally:
        connection.close()


def _bell(number: Any, job: str) -> str:
    return json.dumps({"ledger": number, "id": job})
