"""`python -m tests.bench.soak`: what the tables and indexes become while jobs run through them.

Jobs are enqueued, claimed and finished by the ledger's own functions, without Redis and without
tasks, as fast as this machine can; a keeper's duties run beside that, with a retention of seconds,
so that rows come and go as in years. Every few seconds: dead rows, sizes, the share of updates that
were HOT, vacuums. In the end: jobs a second, and bytes of write-ahead log a job.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests import leftovers
from tests.ledger import depth, given
from worker.jobs.job import Claim, Finish
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost, waiting_lists
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.lease import open_lease, renew
from worker.ledger.migrate import migrate
from worker.ledger.retention import drop_old, expire_late
from worker.settings import Settings
from worker.stack.postgres import PostgresServer

#: Jobs in one enqueue and in one claim.
BATCH: Final = 64
DAY: Final = 86400.0
#: Durable, as by default, and with room for its data; nothing else is tuned.
POSTGRES: Final = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
_TABLES: Final = """
    SELECT relname AS name, n_live_tup AS live, n_dead_tup AS dead, n_tup_ins AS inserted,
           n_tup_upd AS updated, n_tup_hot_upd AS hot, n_tup_del AS deleted,
           autovacuum_count AS vacuums, autoanalyze_count AS analyses,
           pg_table_size(relid) AS bytes, pg_indexes_size(relid) AS index_bytes
    FROM pg_stat_user_tables WHERE relname IN ('jobs', 'attempts', 'workers', 'leaders')
    ORDER BY relname
"""
_INDEXES: Final = """
    SELECT indexrelname AS name, pg_relation_size(indexrelid) AS bytes
    FROM pg_stat_user_indexes WHERE relname IN ('jobs', 'attempts', 'workers') ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What Postgres says of its tables at one moment.

    Attributes:
        second: since the start.
        finished: jobs, until now.
        tables: a row of `pg_stat_user_tables` each, and sizes in bytes.
        indexes: bytes of each.
    """

    second: float
    finished: int
    tables: dict[str, dict[str, int]]
    indexes: dict[str, int]

    def __str__(self) -> str:
        jobs = self.tables["jobs"]
        hot = 100 * jobs["hot"] / max(1, jobs["updated"])
        return (
            f"{self.second:>6.0f}{self.finished:>10}{jobs['live']:>10}{jobs['dead']:>9}"
            f"{hot:>7.1f}{jobs['vacuums']:>8}{jobs['analyses']:>9}"
            f"{jobs['bytes'] / 1e6:>9.0f}{jobs['index_bytes'] / 1e6:>9.0f}"
        )


HEADER: Final = (
    f"{'second':>6}{'finished':>10}{'live':>10}{'dead':>9}{'HOT %':>7}{'vacuums':>8}"
    f"{'analyses':>9}{'table MB':>9}{'index MB':>9}"
)


class Soak:
    """Producers, workers and a keeper, each a thread with a connection of its own.

    Args:
        url: an empty, migrated database.
        asked: the options.
    """

    def __init__(self, url: str, asked: argparse.Namespace) -> None:
        self._url = url
        self._asked = asked
        self._ready: queue.Queue[list[str]] = queue.Queue(max(1, asked.backlog // BATCH))
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self.finished = 0
        self.faults: list[BaseException] = []

    def run(self) -> tuple[list[Sample], dict[str, float]]:
        """Soak for as long as asked; the samples, and the rates."""
        ledger = self._door()
        roles = [self._produce] * self._asked.producers + [self._work] * self._asked.workers
        threads = [self._thread(role) for role in [*roles, self._keep]]
        before, began = self._written(ledger), time.monotonic()
        samples: list[Sample] = []
        print(HEADER)
        while (passed := time.monotonic() - began) < self._asked.seconds and not self.faults:
            self._stop.wait(min(self._asked.every, self._asked.seconds - passed))
            samples.append(self._sample(ledger, time.monotonic() - began))
            print(samples[-1], flush=True)
        seconds = time.monotonic() - began
        rates = {
            "jobs_per_second": self.finished / seconds,
            "wal_bytes_per_job": (self._written(ledger) - before) / max(1, self.finished),
        }
        self._end(threads)
        ledger.close()
        return samples, rates

    def _door(self) -> Ledger:
        return Ledger(self._url, connections=1)

    def _thread(self, role: Callable[[Ledger], None]) -> threading.Thread:
        def run() -> None:
            ledger = self._door()
            try:
                role(ledger)
            except BaseException as exc:
                self.faults.append(exc)
                self._stop.set()
            finally:
                ledger.close()

        thread = threading.Thread(target=run, name=role.__name__)
        thread.start()
        return thread

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        for thread in threads:
            thread.join()
        if self.faults:
            raise self.faults[0]

    def _produce(self, ledger: Ledger) -> None:
        while not self._stop.is_set():
            jobs = [given.job(None, 12345, "someone@example.org") for _ in range(BATCH)]
            enqueue(ledger, jobs)
            self._hand_over([job.id for job in jobs])

    def _hand_over(self, ids: list[str]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(ids, timeout=0.1)
            except queue.Full:
                continue

    def _work(self, ledger: Ledger) -> None:
        lease = open_lease(ledger, "w", ["celery"], 60)
        renewed = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() - renewed > 1:
                renew(ledger, lease, 60)
                renewed = time.monotonic()
            try:
                ids = self._ready.get(timeout=0.1)
            except queue.Empty:
                continue
            claims = claim(ledger, lease, ids)
            if claims:
                finish(ledger, [self._end_of(one) for one in claims])
            with self._counting:
                self.finished += len(claims)

    def _end_of(self, one: Claim) -> Finish:
        chance = random.random()
        if chance < self._asked.failing / 2:
            return given.failure(one.fence)
        if chance < self._asked.failing:
            return given.retry(one.fence, delay=0.5)
        return given.success(one.fence)

    def _keep(self, ledger: Ledger) -> None:
        days = self._asked.keep / DAY
        while not self._stop.wait(0.25):
            rings = dispatch_due(ledger, None)
            for name in waiting_lists(ledger):
                rings += take_lost(ledger, None, name, None, 5)
            if rings:
                self._hand_over([ring.id for ring in rings])
            expire_late(ledger, None)
            while drop_old(ledger, None, succeeded_days=days, failed_days=days) >= 1000:
                if self._stop.is_set():
                    break

    def _sample(self, ledger: Ledger, second: float) -> Sample:
        tables = {row.name: dict(row._mapping) for row in ledger.execute(_TABLES)}
        indexes = {row.name: row.bytes for row in ledger.execute(_INDEXES)}
        return Sample(round(second, 1), self.finished, tables, indexes)

    def _written(self, ledger: Ledger) -> float:
        ((written,),) = ledger.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
        return float(written)


def main() -> int:
    """Soak, print and perhaps write it down."""
    asked = _parser().parse_args()
    options = {**POSTGRES, "autovacuum_naptime": str(asked.naptime)}
    with tempfile.TemporaryDirectory(prefix="celery-ledger-soak-") as name:
        Path(name).chmod(0o755)
        server = PostgresServer(Path(name) / "postgres", options=options)
        try:
            server.start()
            samples, rates = Soak(_prepared(server, asked), asked).run()
        finally:
            server.stop()
    for index, size in samples[-1].indexes.items():
        print(f"{index:<24}{size / 1e6:>9.1f} MB")
    print(", ".join(f"{name}: {value:.0f}" for name, value in rates.items()))
    if asked.json:
        report = {
            "options": vars(asked) | {"json": str(asked.json)},
            "rates": rates,
            "samples": [
                {"second": s.second, "finished": s.finished, "tables": s.tables,
                 "indexes": s.indexes}
                for s in samples
            ],
        }  # fmt: skip
        asked.json.write_text(json.dumps(report, indent=1, default=str))
    return 0


def _prepared(server: PostgresServer, asked: argparse.Namespace) -> str:
    settings = Settings.load(database_url=server.url, redis_url="redis://127.0.0.1")
    url = settings.database_url.get_secret_value()
    migrate(url)
    ledger = Ledger(url, connections=1, waits_for_ever=True)
    if asked.ended:
        depth.fill_ended(ledger, 0, asked.ended)
        depth.vacuum(ledger)
    for statement in asked.sql:
        ledger.execute(statement)
    ledger.execute("SELECT pg_stat_reset()")
    ledger.close()
    return url


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--ended", type=int, default=0, help="jobs that have ended before")
    parser.add_argument("--backlog", type=int, default=1024, help="jobs that wait, about")
    parser.add_argument("--keep", type=float, default=20, help="seconds that ended jobs are kept")
    parser.add_argument("--failing", type=float, default=0.02, help="share that does not succeed")
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--naptime", type=int, default=5, help="autovacuum_naptime, seconds")
    parser.add_argument("--sql", action="append", default=[], help="run before it begins")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser


if __name__ == "__main__":
    leftovers.begin()  # what it makes goes with it, however it ends
    raise SystemExit(main())
