"""A producer of a chaos run: enqueues the mix at a rate, in bursts, and notes what is accepted.

`python -m tests.chaos.producer NAME ROAD RATE SEED MIX`, until SIGTERM. Roads:

client   the Python client: batches, and beside them single jobs with idempotency keys
celery   `apply_async` of a durable Celery app, one message at a time, from several threads
canvas   chains, groups, chords and the like, by such an app; see `tests.chaos.canvas`
foreign  Celery messages pushed into Redis by hand, as a producer that knows nothing of the ledger;
         nothing is promised of them before they are adopted, so they are only ever `unsure`

Each way has a thread of its own, as have cancelling and reading back: none waits for another.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos import kinds
from tests.chaos.canvas import CanvasRoad
from tests.chaos.history import Journal
from tests.chaos.roads import BatchRoad, CeleryRoad, ForeignRoad, KeyedRoad, Road
from worker.client import Client
from worker.errors import Conflict, LedgerError, NotFound
from worker.settings import Settings

#: Seconds between bursts: short ones, and long ones that make a small backlog.
BURST = (0.1, 1.0)
#: Jobs in one batch at the most.
BATCH = 250
#: Jobs that a thread takes at once when it enqueues one by one.
FEW = 5
#: Threads that enqueue by Celery.
CELERY_THREADS = 4
#: Seconds of jobs that are made up for after an outage; what is beyond is noted as dropped.
ARREARS = 3.0
#: The part of a client's jobs that goes singly, under a key.
KEYED = 0.03
#: Of a thousand accepted jobs, how many are cancelled, and how many are read back.
CANCELLED, READ = 25, 30
#: Seconds until a job is read back, and until it is looked at again when it has not ended.
READ_AFTER, READ_AGAIN = (0.5, 5.0), 5.0


class Allowance:
    """Jobs that may be enqueued by now, at `rate` a second. Safe to use from several threads."""

    def __init__(self, rate: float, journal: Journal) -> None:
        self._rate, self._journal = rate, journal
        self._lock = threading.Lock()
        self._last, self._owed = time.monotonic(), 0.0

    def take(self, most: int) -> int:
        """So many, at most `most`, may be enqueued now; 0 when none is due."""
        with self._lock:
            now = time.monotonic()
            self._owed += (now - self._last) * self._rate
            self._last = now
            beyond = self._owed - ARREARS * self._rate
            # Less than that is what a burst of the other threads makes late.
            if beyond >= max(1.0, 0.1 * self._rate):
                self._journal.note("dropped", jobs=int(beyond), seconds=beyond / self._rate)
                self._owed -= beyond
            taken = min(int(self._owed), most)
            self._owed -= taken
            return taken


class FollowUp:
    """Does something to some of what was accepted, a while later.

    Args:
        part: of a thousand jobs, how many.
        wait: draws the seconds until then.
        act: does it; it returns the seconds until it is to be done again, `None` for never.
    """

    def __init__(
        self,
        part: int,
        wait: Callable[[random.Random], float],
        act: Callable[[str], float | None],
    ) -> None:
        self._part, self._wait, self._act = part, wait, act
        self._due: deque[tuple[float, str]] = deque()

    def offer(self, jobs: list[str], dice: random.Random) -> None:
        """Choose among jobs that were just accepted."""
        for job in jobs:
            if dice.randrange(1000) < self._part:
                self._due.append((time.monotonic() + self._wait(dice), job))

    def run(self, stop: threading.Event) -> None:
        """Do what is due, until `stop`."""
        while not stop.wait(0.02):
            for _ in range(len(self._due)):
                due, job = self._due.popleft()
                if due > time.monotonic():
                    self._due.append((due, job))
                elif not stop.is_set() and (again := self._act(job)) is not None:
                    self._due.append((time.monotonic() + again, job))


class Producer:
    """One producer.

    Args:
        name: "p1".
        road: see the module.
        rate: jobs a second.
        seed: of all its draws.
        mix: weights by kind.
    """

    def __init__(self, name: str, road: str, rate: float, seed: str, mix: dict[str, int]) -> None:
        self._name, self._road, self._rate, self._seed, self._mix = name, road, rate, seed, mix
        self._settings = Settings.load()
        self._journal = Journal(Path(os.environ["CHAOS_HISTORY"]) / f"producer-{name}.jsonl")
        self._client = Client(self._settings)
        # Half of those that are cancelled are queued still, the others may run.
        self._cancels = FollowUp(
            CANCELLED, lambda dice: dice.choice([0.0, dice.uniform(0.05, 1.0)]), self._cancel
        )
        self._reads = FollowUp(READ, lambda dice: dice.uniform(*READ_AFTER), self._read)
        self.stop = threading.Event()

    def run(self) -> None:
        """Produce until `stop` is set."""
        self._journal.note("begins", road=self._road, rate=self._rate)
        threads = [threading.Thread(target=run) for run in self._duties()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _duties(self) -> list[Callable[[], None]]:
        """What its threads do."""
        journal, client = self._journal, self._client
        ways: list[tuple[Road, Allowance, int]] = []
        if self._road == "client":
            few, many = self._allowance(KEYED), self._allowance(1 - KEYED)
            ways += [(BatchRoad(client, journal, self._dice("batch")), many, BATCH)]
            ways += [(KeyedRoad(client, journal, self._dice("keyed")), few, FEW)]
        elif self._road == "celery":
            ways += [(CeleryRoad(journal), self._allowance(1), FEW)] * CELERY_THREADS
        elif self._road == "canvas":
            ways += [(CanvasRoad(journal, self._dice("canvas")), self._allowance(1), FEW)]
        else:
            url = self._settings.redis_url.get_secret_value()
            ways += [(ForeignRoad(journal, url), self._allowance(1), FEW)]
        enqueuing = [
            lambda number=number, way=way: self._enqueue(self._dice(str(number)), *way)
            for number, way in enumerate(ways)
        ]
        after = [lambda after=after: after.run(self.stop) for after in (self._cancels, self._reads)]
        return [*enqueuing, *after]

    def _enqueue(self, dice: random.Random, road: Road, allowance: Allowance, most: int) -> None:
        while not self.stop.wait(dice.uniform(*BURST)):
            while not self.stop.is_set() and (number := allowance.take(most)):
                lease = self._settings.lease_seconds
                drawn = [kinds.draw(dice, self._mix, lease) for _ in range(number)]
                try:
                    accepted = road.send(drawn)
                except LedgerError as exc:
                    self._journal.note("failed", error=str(exc))
                    continue
                self._cancels.offer(accepted, dice)
                self._reads.offer(accepted, dice)

    def _cancel(self, job: str) -> None:
        try:
            self._client.cancel(job, "chaos")
        except (Conflict, NotFound):
            self._journal.note("uncancelled", job=job)
        except LedgerError as exc:
            self._journal.note("cancel-unsure", job=job, error=str(exc))
        else:
            self._journal.note("cancelled", job=job)

    def _read(self, job: str) -> float | None:
        """Read a job back, as a client does that wants its result."""
        try:
            found = self._client.job(job)
        except NotFound:  # though it was accepted
            self._journal.note("read", job=job, state="missing", digest=None)
            return None
        except LedgerError:
            return READ_AGAIN
        if not found.state.is_final:
            return READ_AGAIN
        digest = None if found.result is None else hashlib.sha256(found.result).hexdigest()
        self._journal.note("read", job=job, state=found.state.value, digest=digest)
        return None

    def _allowance(self, part: float) -> Allowance:
        return Allowance(self._rate * part, self._journal)

    def _dice(self, what: str) -> random.Random:
        return random.Random(f"{self._seed} {self._name} {what}")


def main(name: str, road: str, rate: float, seed: str, mix: dict[str, int]) -> None:
    """Produce until SIGTERM; a thread that fails ends the process, to be started again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = threading.excepthook

    def give_up(args: Any) -> None:
        told(args)
        os._exit(1)

    threading.excepthook = give_up
    producer = Producer(name, road, rate, seed, mix)
    signal.signal(signal.SIGTERM, lambda *_: producer.stop.set())
    producer.run()


if __name__ == "__main__":
    _, name_, road_, rate_, seed_, mix_ = sys.argv
    main(name_, road_, float(rate_), seed_, kinds.read_mix(mix_))
