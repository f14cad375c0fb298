"""Jobs of every sort, how each must end, and the verdict on how they did."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.compose.stack import Stack
from worker.client import Client
from worker.errors import Unavailable
from worker.jobs.job import Enqueued, NewJob
from worker.jobs.message import new_job
from worker.jobs.states import FINAL

#: Jobs of one enqueue.
CHUNK = 10


@dataclass(frozen=True, slots=True)
class Sort:
    """A sort of job: of a hundred so many, what they are, how they must end. What sleeps does so
    `stretch` times as long, which `args` is given."""

    share: int
    task: str
    args: Callable[[random.Random, float], list[Any]]
    ending: Callable[[list[Any]], tuple[str, Any]]
    delay: float = 0.0  # seconds at most


#: Enough sleep in it that something runs whenever something is killed.
SORTS = (
    Sort(25, "probe.echo", lambda r, _: [r.random()], lambda a: ("succeeded", a[0])),
    Sort(40, "probe.sleep", lambda r, stretch: [round(stretch * r.uniform(0.2, 2), 2)],
         lambda a: ("succeeded", a[0])),
    Sort(5, "probe.sleep", lambda r, stretch: [round(stretch * r.uniform(4, 8), 2)],
         lambda a: ("succeeded", a[0])),
    Sort(10, "probe.fail", lambda r, _: ["again", r.randint(1, 3)], lambda a: ("succeeded", a[1])),
    Sort(5, "probe.fail", lambda *_: ["for good"], lambda _: ("failed", None)),
    Sort(15, "probe.echo", lambda r, _: [r.random()], lambda a: ("succeeded", a[0]), delay=8.0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """A job, and how it must end: its state, and what it must have returned."""

    job: NewJob
    ending: tuple[str, Any]


def mixed(count: int, seed: int) -> list[Order]:
    """So many jobs, in a random order and of every sort; the same for the same seed. Fewer ones
    sleep longer, so that as many run at a time."""
    stretch = min(2.5, max(1.0, 2000 / count))
    chosen = random.Random(seed)
    sorts = [sort for sort in SORTS for _ in range(sort.share)]
    orders: list[Order] = []
    for _ in range(count):
        sort = chosen.choice(sorts)
        args = sort.args(chosen, stretch)
        job = new_job(
            sort.task,
            args,
            priority=chosen.choice([0, 0, 5, 9]),
            delay=chosen.uniform(0.5, sort.delay) if sort.delay else None,
            key=f"order-{seed}-{len(orders)}",
        )
        orders.append(Order(job, sort.ending(args)))
    return orders


class Producer:
    """Enqueues from outside of the stack, and remembers what was accepted."""

    def __init__(self, stack: Stack) -> None:
        self.accepted: dict[str, tuple[str, Any]] = {}
        self.refusals = 0  # enqueues that were tried again because Postgres was away
        self._client = Client(stack.settings)
        self._stopped = threading.Event()

    def enqueue(self, orders: Sequence[Order], over: float = 0.0) -> None:
        """Enqueue them, a few at a time, spread over so many seconds; again until accepted."""
        chunks = [orders[start : start + CHUNK] for start in range(0, len(orders), CHUNK)]
        for chunk in chunks:
            self._accept(chunk)
            self._stopped.wait(over / len(chunks))

    def _accept(self, orders: Sequence[Order], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopped.is_set():
            try:
                answers = self._client.enqueue_many([order.job for order in orders])
                break
            except Unavailable:  # whether it took effect is unknown: the same again is the same job
                self.refusals += 1
                assert time.monotonic() < deadline, f"nothing was accepted for {seconds:g} s"
                self._stopped.wait(0.5)
        else:
            return
        for order, answer in zip(orders, answers, strict=True):
            assert isinstance(answer, Enqueued), f"job {order.job.id} was refused: {answer}"
            self.accepted[answer.id] = order.ending

    @contextmanager
    def load(self, orders: Sequence[Order], over: float) -> Iterator[None]:
        """While the block runs, they are enqueued; it ends when all of them are."""
        with ThreadPoolExecutor(1, "producer") as pool:
            future = pool.submit(self.enqueue, orders, over)
            try:
                yield
            except BaseException:
                self._stopped.set()
                raise
            future.result()

    def close(self) -> None:
        """Let go of the stores."""
        self._client.close()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the accepted jobs; every list of ids is empty when the promise was kept.

    Attributes:
        accepted: how many.
        lost: not there, or not ended.
        wrong: ended otherwise than they must.
        twice: an end was recorded more than once, or changed after it was.
        phantoms: jobs that nobody has enqueued.
        states: how many ended how.
        attempts: how many attempts did not simply succeed, by how they ended.
    """

    accepted: int
    lost: list[str]
    wrong: list[str]
    twice: list[str]
    phantoms: list[str]
    states: dict[str, int]
    attempts: dict[str, int]

    @property
    def is_kept(self) -> bool:
        """Whether the promise was."""
        return not (self.lost or self.wrong or self.twice or self.phantoms)


_ENDS = "('succeeded', 'failed', 'cancelled')"
# Of what the audit's triggers have written, not of the jobs' rows: these show the last end only.
_TWICE = f"""
    SELECT job FROM audit_moves
    WHERE new_state IN {_ENDS} AND old_state IS DISTINCT FROM new_state
    GROUP BY job HAVING count(*) > 1
    UNION SELECT job FROM audit_moves
    WHERE old_state IN {_ENDS} AND (changed OR new_state IS DISTINCT FROM old_state)
"""


def judge(stack: Stack, accepted: dict[str, tuple[str, Any]]) -> Verdict:
    """Hold what the producers were told against what Postgres has, and has had."""
    attempts = stack.rows("SELECT outcome, count(*) FROM ledger.attempts GROUP BY outcome")
    found = {
        job: (state, None if state != "succeeded" or result is None else json.loads(bytes(result)))
        for job, state, result in stack.rows("SELECT id, state, result FROM ledger.jobs")
    }
    ended = {job for job, (state, _) in found.items() if state in FINAL}
    return Verdict(
        accepted=len(accepted),
        lost=sorted(accepted.keys() - ended),
        wrong=sorted(job for job in ended & accepted.keys() if found[job] != accepted[job]),
        twice=sorted(job for (job,) in stack.rows(_TWICE)),
        phantoms=sorted(found.keys() - accepted.keys()),
        states=dict(Counter(state for state, _ in found.values())),
        attempts={outcome: count for outcome, count in attempts},
    )
