"""The rig: a whole service on real servers, every connection through a wire that can be broken.

Members that end are started again after a moment, as an orchestrator would. Everything is started
from the main thread and dies with this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

from tests.chaos import aftermath, audit, probes
from tests.chaos.history import Journal
from tests.chaos.members import Member, Wires
from tests.chaos.watch import DeathWatch
from tests.standby import Standby
from tests.stepping import ShiftedPostgres
from worker.ledger.migrate import migrate
from worker.settings import Settings
from worker.stack.redis import RedisServer


@dataclass(frozen=True, slots=True)
class Terms:
    """What a rig is made with.

    Attributes:
        lease: seconds of a worker's lease.
        drain: seconds of a drain.
        distance: seconds that each direction of each connection to a store takes.
        threads: workers with a pool of threads, by their concurrency.
        prefork: workers with a prefork pool, by their concurrency.
        keepers: how many keepers.
        away: seconds of the long outage of Postgres.
    """

    lease: float = 5.0
    drain: float = 5.0
    distance: float = 0.004
    threads: tuple[int, ...] = (200, 200)
    prefork: tuple[int, ...] = (4, 4)
    keepers: int = 2
    away: float = 30.0


_LEASED = """
    SELECT workers.name, count(jobs.id) FROM ledger.workers
    LEFT JOIN ledger.jobs ON jobs.lease = workers.lease AND jobs.state = 'running'
    WHERE NOT workers.isolated AND workers.expires_at > clock_timestamp() GROUP BY 1
"""


class Rig:
    """The service under test.

    Args:
        folder: where everything is kept; see `started`.
        terms: its size and times.
        seed: of the producers.

    Attributes:
        unexpected: a sentence for everything that must not happen and is no violation.
        met: how often each fault is proven to have done its harm.
        in_hand: members that a fault strikes just now, by name.
    """

    def __init__(self, folder: Path, terms: Terms, seed: str) -> None:
        self.folder, self.terms, self.seed = folder, terms, seed
        self.history = folder / "history"
        self.history.mkdir()
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.journal = Journal(self.history / "nemesis.jsonl")
        self.postgres = ShiftedPostgres(folder / "postgres", options={"max_connections": "150"})
        self._standbys: list[Standby] = []
        self.redis = RedisServer(folder / "redis")
        self.workers: list[Member] = []
        self.keepers: list[Member] = []
        self.producers: list[Member] = []
        self.wires: dict[str, Wires] = {}
        self.unexpected: list[str] = []
        self.met: Counter[str] = Counter()
        self.in_hand: Counter[str] = Counter()
        self._deaths = DeathWatch(self.history, self.journal)
        self._reader: Any = None

    @property
    def members(self) -> Iterator[Member]:
        """Everything that is started again when it ends."""
        yield from (*self.keepers, *self.workers, *self.producers)

    def start(self) -> None:
        """Start the servers, the wires, keepers and workers; no producers yet."""
        self.postgres.start()
        self.redis.start()
        settings = Settings.load(database_url=self.postgres.url, redis_url=self.redis.url)
        migrate(settings.database_url.get_secret_value())
        audit.install(self.postgres.url)
        for store, url in (("postgres", self.postgres.url), ("redis", self.redis.url)):
            distance = self.terms.distance
            self.wires[store] = Wires(store, url, distance, self.logs / f"wire-{store}.log")
        self._deaths.start()
        self.note_clock()
        for number in range(self.terms.keepers):
            self.keepers.append(self._member(f"keeper{number + 1}", "", ["keeper"]))
        pools = [("threads", slots) for slots in self.terms.threads]
        pools += [("prefork", slots) for slots in self.terms.prefork]
        for number, (pool, slots) in enumerate(pools, 1):
            argv = ["run", "-n", "{node}", "-P", pool, "-c", str(slots)]
            # A queue of each pool's own: what is to harm it comes there at once, past a backlog.
            argv += ["-Q", f"celery,{pool}"]
            self.workers.append(self._member(f"w{number}", pool, argv))

    def produce(self, name: str, road: str, rate: float, mix: dict[str, int]) -> None:
        """Start a producer of `mix`, at `rate` jobs a second."""
        said = ",".join(f"{kind}={weight}" for kind, weight in mix.items())
        argv = [sys.executable, "-m", "tests.chaos.producer", name, road, str(rate)]
        argv += [self.seed, said]
        self.producers.append(self._started(name, "", argv))

    def stop_producers(self) -> None:
        """End the producers; what they have enqueued is to end by itself."""
        self._end(self.producers, 30)

    def look_after(self) -> None:
        """Start again what has ended; what ended without a cause is unexpected."""
        for member in self.members:
            code = member.look_after()
            if code is None:
                continue
            said, cause = f"{member.name} ended with {code}", member.cause_of(code, self.history)
            self.journal.note("ended", member=member.name, said=said, code=code, cause=cause)
            if cause is None:
                self.unexpected.append(
                    f"{member.node} ended with {code}, and no fault asked for it"
                )

    def heal(self) -> None:
        """Take away every fault: wires, stopped processes, servers that are away, or full."""
        for wires in self.wires.values():
            wires.heal()
        for member in self.members:
            member.send(signal.SIGCONT)
        for server in (self.postgres, self.redis):
            if not server.alive:
                server.start()
        if self.postgres.shift:
            self.postgres.shift = 0.0
            self.postgres.restart()
        with self.doorbells() as client:
            client.config_set("maxmemory", "0")

    def new_standby(self) -> Standby:
        """A standby of Postgres, which is not copied yet."""
        made = Standby(self.postgres, self.folder / f"postgres-{len(self._standbys) + 2}")
        self._standbys.append(made)
        return made

    def follow(self, standby: Standby) -> None:
        """A standby was promoted: every wire leads to it from now on."""
        self.postgres = standby
        self.wires["postgres"].lead_to(standby.url)

    def probe_each_worker(self, seconds: float) -> None:
        """Offer work until each worker has started a job; one that does not is unexpected.

        Args:
            seconds: that a worker has for it, once it has a lease.
        """
        self.unexpected += probes.probe_each_worker(self, seconds)

    def stop(self) -> None:
        """Drain the workers, end the rest; judge what they leave behind."""
        self._end([*self.keepers, *self.workers, *self.producers], self.terms.drain + 10)
        self.unexpected += aftermath.left_behind(self.history)
        served = [*self.keepers, *self.workers]
        self.unexpected += aftermath.alarms(member.log for member in served)
        for wires in self.wires.values():
            wires.close()
        self._deaths.stop()

    def _end(self, members: list[Member], seconds: float) -> None:
        """SIGTERM all of these that run; each is to end by it."""
        alive = [member for member in members if member.pid is not None]
        for member in members:
            member.is_stopped = True
        for member in alive:
            member.send(signal.SIGCONT)
            member.end(signal.SIGTERM, "the end of the run")
        until = time.monotonic() + seconds
        for member in alive:
            process = member.process
            assert process is not None
            if not process.wait(max(0.1, until - time.monotonic())):
                self.unexpected.append(f"{member.node} did not end in {seconds:g} s of SIGTERM")
                process.kill()
            elif (code := process.exit_code) not in member.expected:
                self.unexpected.append(f"{member.node} ended with {code} at the end of the run")

    def close(self) -> None:
        """End whatever is left, the servers included."""
        for member in self.members:
            if member.process is not None:
                member.process.kill()
        aftermath.kill(aftermath.orphans(self.history))
        self._deaths.stop()
        for server in (self.postgres, *self._standbys, self.redis):
            server.stop()

    def note_clock(self) -> None:
        """Tie the two clocks together."""
        self.journal.note("clock", wall=time.time())

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask Postgres directly, by no wire.

        Raises:
            psycopg2.Error: it is away.
        """
        is_old = self._reader is not None
        try:
            return self._asked(statement, parameters)
        except psycopg2.OperationalError:
            if not is_old:
                raise
            return self._asked(statement, parameters)  # it died while it was idle

    def _asked(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._reader is None:
            self._reader = psycopg2.connect(
                self.postgres.url, connect_timeout=5, application_name="chaos"
            )
            self._reader.autocommit = True
        try:
            with self._reader.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error:
            with suppress(psycopg2.Error):
                self._reader.close()
            self._reader = None
            raise

    def doorbells(self) -> redis.Redis:
        """A connection to Redis, by no wire."""
        return redis.Redis.from_url(self.redis.url, socket_timeout=5)

    def leased(self) -> dict[str, int]:
        """How many jobs each worker holds, by the node, of those that have an open lease.

        Raises:
            psycopg2.Error: Postgres is away.
        """
        return dict(self.query(_LEASED))

    def at_work(self) -> list[tuple[Member, int]]:
        """The workers that run, have an open lease and no fault at them; with the jobs they hold.

        Raises:
            psycopg2.Error: Postgres is away.
        """
        held = self.leased()
        return [(member, held[member.node]) for member in self.free() if member.node in held]

    def free(self) -> list[Member]:
        """The workers that run and have no fault at them."""
        return [m for m in self.workers if m.pid is not None and not self.in_hand[m.name]]

    @contextmanager
    def striking(self, member: Member) -> Iterator[None]:
        """Let no other fault choose this member meanwhile."""
        self.in_hand[member.name] += 1
        try:
            yield
        finally:
            self.in_hand[member.name] -= 1

    def _member(self, name: str, pool: str, argv: list[str]) -> Member:
        return self._started(name, pool, [sys.executable, "-m", "worker", *argv])

    def _started(self, name: str, pool: str, argv: list[str]) -> Member:
        environment = {
            "DATABASE_URL": self.wires["postgres"].url_for(name),
            "REDIS_URL": self.wires["redis"].url_for(name),
            "WORKER_TASKS": "tests.chaos.tasks",
            "WORKER_LEASE_SECONDS": str(self.terms.lease),
            "WORKER_DRAIN_SECONDS": str(self.terms.drain),
            "WORKER_LOG_LEVEL": "warning",
            "CHAOS_HISTORY": str(self.history),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        member = Member(name, pool, argv, environment, self.logs / f"{name}.log")
        member.start()
        return member


@contextmanager
def started(folder: Path, terms: Terms, seed: str) -> Iterator[Rig]:
    """A running rig in `folder`, and nothing of it left afterwards but its files."""
    rig = Rig(folder, terms, seed)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()
