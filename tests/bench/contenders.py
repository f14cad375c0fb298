"""Who is measured: each with as many processes as cores, in the fastest of the `SHAPES` tried."""

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
        "FROM ledger.jobs WHERE state = 'succeeded' AND finished_at >= '{began}'",
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


def dramatiq(threads: int, processes: int = CORES) -> Contender:
    """Dramatiq."""
    return Contender(
        "dramatiq",
        f"Dramatiq, {processes} processes x {threads} threads, no results",
        (*PYTHON, "dramatiq", "-p", str(processes), "-t", str(threads), f"{_APPS}.dramatiq_app"),
        f"{_APPS}.dramatiq_app",
        threads * processes,
        needs="dramatiq",
        rate=3700,
    )


def huey(workers: int, kind: str = "process") -> Contender:
    """Huey, which has one process for all its threads."""
    return Contender(
        "huey",
        f"Huey, {workers} {kind} workers, no results",
        (*PYTHON, "huey.bin.huey_consumer", f"{_APPS}.huey_app.huey", "-q", "-n",
         "-k", kind, "-w", str(workers), "-g", "TERM"),
        f"{_APPS}.huey_app",
        workers,
        needs="huey",
        rate=3700,
    )  # fmt: skip


def taskiq(slots: int, processes: int = CORES) -> Contender:
    """Taskiq."""
    return Contender(
        "taskiq",
        f"Taskiq, {processes} processes x {slots} async, no results",
        (*PYTHON, "taskiq", "worker", "--workers", str(processes), "--log-level", "WARNING",
         "--max-async-tasks", str(slots), f"{_APPS}.taskiq_app:broker"),
        f"{_APPS}.taskiq_app",
        slots * processes,
        ("single", "bulk"),
        needs="taskiq_redis",
        rate=3400,
    )  # fmt: skip


def rq(workers: int) -> Contender:
    """RQ."""
    return Contender(
        "rq",
        f"RQ, {workers} SimpleWorkers, no results",
        (*PYTHON, "rq.cli", "worker", "-u", "{redis}", "-w", "rq.worker.SimpleWorker", "-q"),
        f"{_APPS}.rq_app",
        workers,
        ("single", "bulk"),
        workers=workers,
        needs="rq",
        rate=260,
    )


def procrastinate(slots: int, processes: int = CORES) -> Contender:
    """Procrastinate."""
    return Contender(
        "procrastinate",
        f"Procrastinate, {processes} processes x {slots} async, no results",
        (*PYTHON, "procrastinate", "--app", f"{_APPS}.procrastinate_app.app", "worker",
         "-c", str(slots)),
        f"{_APPS}.procrastinate_app",
        slots * processes,
        ("single", "bulk"),
        workers=processes,
        final="FROM procrastinate_jobs WHERE status = 'succeeded'",
        needs="procrastinate",
        rate=560,
    )  # fmt: skip


DRAMATIQ, HUEY, TASKIQ, RQ, PROCRASTINATE = (
    dramatiq(8), huey(CORES), taskiq(100), rq(CORES), procrastinate(10),
)  # fmt: skip

CONTENDERS = (
    THREADS, PREFORK, STOCK_DB, STOCK_REDIS, STOCK_NO_RESULT,
    DRAMATIQ, HUEY, TASKIQ, RQ, PROCRASTINATE,
)  # fmt: skip
#: Other shapes of this service and of its peers. Stock Celery's is given: a prefork child a core.
SHAPES = (
    ours("threads", 16, CORES, 2500), ours("threads", 128, CORES, 3300),
    ours("prefork", 4, CORES, 900), ours("prefork", 32, 1, 900),
    dramatiq(2), dramatiq(32), dramatiq(8, 1), dramatiq(8, 4),
    huey(4), huey(8), huey(8, "thread"),
    taskiq(10), taskiq(100, 4), rq(4), rq(8), procrastinate(50), procrastinate(10, 4),
)  # fmt: skip
#: What the extra `bench` installs.
PEERS = ("dramatiq", "huey", "taskiq", "rq", "procrastinate")


def several(workers: int) -> Contender:
    """This service's threads in so many workers, of fewer slots each."""
    made = ours("threads", 16, workers, 2000)
    return replace(made, name=f"{made.name}-{workers}")
