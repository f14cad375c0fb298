"""Who is measured: each in its best sensible configuration for two cores."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

#: Worker processes, or children, of each: the machine has two cores.
CORES = 2

PYTHON = (sys.executable, "-m")
_APPS = "tests.bench.apps"
_WORKER = ("worker", "-l", "warning", "--without-gossip", "--without-mingle", "-n", "w{n}@bench")


@dataclass(frozen=True, slots=True)
class Contender:
    """One service, as it is run and filled.

    Attributes:
        name: key in the report.
        title: for people, with the pool, the processes and the concurrency.
        worker: the command of a worker; `{n}` is its number, `{redis}` the address of Redis.
        app: the module that enqueues: see `tests.bench.apps.filling`.
        ways: how it can enqueue: "single", "bulk".
        workers: how many commands run.
        slots: jobs that run at once, in all of them.
        beside: the command of what must run beside the workers, if anything.
        environment: more variables of workers and producers.
        table: where its final rows are, and what makes them final; `None` where no result is kept.
        needs: what must be installed for it.
        rate: about how many no-ops it drains a second: the first run's length.
    """

    name: str
    title: str
    worker: tuple[str, ...]
    app: str
    slots: int
    ways: tuple[str, ...] = ("single",)
    workers: int = 1
    beside: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    final: str | None = None
    needs: str = "celery"
    rate: float = 1000

    @property
    def is_here(self) -> bool:
        """Whether it can be run."""
        return importlib.util.find_spec(self.needs) is not None

    @property
    def is_ours(self) -> bool:
        """Whether it is this service."""
        return self.name.startswith("ledger-")

    def expected(self, workload: str) -> float:
        """About how many jobs a second it drains: a first guess."""
        if workload == "cpu":
            return 1 / (1 / self.rate + 0.001 / CORES)
        if workload == "sleep":
            return min(0.8 * self.rate, self.slots / 0.0105)
        return self.rate / 2 if workload == "large" else self.rate


def ours(pool: str, concurrency: int, workers: int, rate: float) -> Contender:
    """This service, with so many workers beside one keeper."""
    return Contender(
        f"ledger-{pool}",
        f"celery-ledger, {pool}, {workers} x {concurrency}, results in Postgres",
        (
            *PYTHON, "celery", "-A", f"{_APPS}.ours", *_WORKER, "-P", pool, "-c", str(concurrency),
        ),
        f"{_APPS}.ours",
        concurrency * workers,
        ("single", "delay", "bulk"),
        workers,
        (*PYTHON, "worker", "keeper"),
        {"WORKER_LOG_LEVEL": "warning"},
        "FROM jobs WHERE state = 'succeeded' AND finished_at >= '{began}'",
        rate=rate,
    )  # fmt: skip


def _stock(
    name: str, title: str, rate: float, results: str = "", final: str | None = None
) -> Contender:
    return Contender(
        f"stock-{name}",
        f"Celery, prefork, 1 x {CORES}, {title}",
        (*PYTHON, "celery", "-A", f"{_APPS}.stock", *_WORKER, "-P", "prefork", "-c", str(CORES)),
        f"{_APPS}.stock",
        CORES,
        environment={"BENCH_RESULTS": results} if results else {},
        final=final,
        rate=rate,
    )


THREADS = ours("threads", 64, CORES, 3300)
PREFORK = ours("prefork", 16, 1, 900)
STOCK_DB = _stock(
    "db",
    "results in Postgres, late acks, track_started",
    166,
    "db+{sqlalchemy}",
    "FROM celery_taskmeta WHERE status = 'SUCCESS'",
)
STOCK_REDIS = _stock("redis", "results in Redis, late acks, track_started", 350, "{redis}")
STOCK_NO_RESULT = _stock("noresult", "no results", 700)

DRAMATIQ = Contender(
    "dramatiq",
    f"Dramatiq, {CORES} processes x 8 threads, no results",
    (*PYTHON, "dramatiq", "-p", str(CORES), "-t", "8", f"{_APPS}.dramatiq_app"),
    f"{_APPS}.dramatiq_app",
    8 * CORES,
    needs="dramatiq",
    rate=3700,
)
HUEY = Contender(
    "huey",
    f"Huey, {CORES} processes, no results",
    (*PYTHON, "huey.bin.huey_consumer", f"{_APPS}.huey_app.huey", "-q", "-n",
     "-k", "process", "-w", str(CORES), "-g", "TERM"),
    f"{_APPS}.huey_app",
    CORES,
    needs="huey",
    rate=3700,
)  # fmt: skip
TASKIQ = Contender(
    "taskiq",
    f"Taskiq, {CORES} processes x 100 async, no results",
    (*PYTHON, "taskiq", "worker", "--workers", str(CORES), "--log-level", "WARNING",
     f"{_APPS}.taskiq_app:broker"),
    f"{_APPS}.taskiq_app",
    100 * CORES,
    ("single", "bulk"),
    needs="taskiq_redis",
    rate=3400,
)  # fmt: skip
RQ = Contender(
    "rq",
    f"RQ, {CORES} SimpleWorkers, no results",
    (*PYTHON, "rq.cli", "worker", "-u", "{redis}", "-w", "rq.worker.SimpleWorker", "-q"),
    f"{_APPS}.rq_app",
    CORES,
    ("single", "bulk"),
    workers=CORES,
    needs="rq",
    rate=260,
)
PROCRASTINATE = Contender(
    "procrastinate",
    f"Procrastinate, {CORES} processes x 10 async, no results",
    (*PYTHON, "procrastinate", "--app", f"{_APPS}.procrastinate_app.app", "worker", "-c", "10"),
    f"{_APPS}.procrastinate_app",
    10 * CORES,
    ("single", "bulk"),
    workers=CORES,
    final="FROM procrastinate_jobs WHERE status = 'succeeded'",
    needs="procrastinate",
    rate=560,
)

CONTENDERS = (
    THREADS, PREFORK, STOCK_DB, STOCK_REDIS, STOCK_NO_RESULT,
    DRAMATIQ, HUEY, TASKIQ, RQ, PROCRASTINATE,
)  # fmt: skip
#: What the extra `bench` installs.
PEERS = ("dramatiq", "huey", "taskiq", "rq", "procrastinate")


def several(workers: int) -> Contender:
    """This service's threads in so many workers, of fewer slots each."""
    made = ours("threads", 16, workers, 2000)
    return replace(made, name=f"{made.name}-{workers}")
