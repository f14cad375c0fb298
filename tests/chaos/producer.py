"""A producer of a chaos run: enqueues the mix at a rate, in bursts, and notes what is accepted.

`python -m tests.chaos.producer NAME ROAD RATE SEED MIX`, until SIGTERM. Roads:

client   the Python client: single jobs with idempotency keys, and batches
celery   `apply_async` of a durable Celery app
foreign  Celery messages pushed into Redis by hand, as a producer that knows nothing of the ledger;
         nothing is promised of them before they are adopted, so they are only ever `unsure`
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import redis
from celery import Celery

from tests.chaos import kinds
from tests.chaos.history import Journal
from worker.client import Client
from worker.errors import Conflict, LedgerError, NotFound, Unavailable
from worker.jobs.job import NewJob
from worker.jobs.message import new_job
from worker.runtime import durable
from worker.settings import Settings

#: Seconds between bursts: short ones, and long ones that make a backlog.
BURST = (0.1, 1.5)
#: Jobs in one batch at the most.
BATCH = 250
#: Seconds of jobs that are made up for after an outage; what is beyond is not enqueued at all.
ARREARS = 2.0
#: Of a hundred batches, how many are sent as single keyed jobs (the first ten of each).
SINGLE = 8
#: Of a thousand accepted jobs, how many are cancelled.
CANCELLED = 25


class Road(Protocol):
    """How jobs are handed in."""

    def send(self, drawn: list[tuple[str, dict[str, Any]]]) -> list[str]:
        """Enqueue what was drawn; the ids accepted."""
        ...


class ClientRoad:
    """By the Python client; what raised is sent once more, every other time."""

    def __init__(self, journal: Journal, dice: random.Random) -> None:
        self.client = Client()
        self._journal, self._dice = journal, dice

    def send(self, drawn: list[tuple[str, dict[str, Any]]]) -> list[str]:
        """See `Road`."""
        if self._dice.randrange(100) < SINGLE:
            return [job for kind, arguments in drawn[:10] for job in self._keyed(kind, arguments)]
        jobs = [new_job(f"chaos.{kind}", [], arguments) for kind, arguments in drawn]
        kind_of = {job.id: kind for job, (kind, _) in zip(jobs, drawn, strict=True)}
        if not (
            self._sent(jobs, kind_of) or (self._dice.random() < 0.5 and self._sent(jobs, kind_of))
        ):
            return []
        for job, kind in kind_of.items():
            self._journal.note("accepted", job=job, kind=kind, key=None)
        return list(kind_of)

    def _sent(self, jobs: list[NewJob], kind_of: dict[str, str]) -> bool:
        try:
            self.client.enqueue_many(jobs)
        except Unavailable as exc:
            for job, kind in kind_of.items():
                self._journal.note("unsure", job=job, kind=kind, key=None, error=str(exc))
            return False
        return True

    def _keyed(self, kind: str, arguments: dict[str, Any]) -> list[str]:
        """One job under a key; repeated with the same key until it is answered, or given up."""
        key = uuid.uuid4().hex
        ids = set()
        for _ in range(self._dice.randint(1, 3)):
            try:
                ids.add(self.client.enqueue(f"chaos.{kind}", [], arguments, key=key).id)
            except Unavailable as exc:
                self._journal.note("unsure", job=None, kind=kind, key=key, error=str(exc))
                continue
            if self._dice.random() < 0.8:  # else ask again: the answer must be the same
                break
        for job in ids:
            self._journal.note("accepted", job=job, kind=kind, key=key)
        return list(ids)


class CeleryRoad:
    """By a durable Celery app, one message at a time."""

    def __init__(self, journal: Journal) -> None:
        self._app = durable(Celery("chaos-producer", set_as_current=False))
        self._journal = journal

    def send(self, drawn: list[tuple[str, dict[str, Any]]]) -> list[str]:
        """See `Road`."""
        return [job for kind, arguments in drawn if (job := self._one(kind, arguments))]

    def _one(self, kind: str, arguments: dict[str, Any]) -> str | None:
        job = uuid.uuid4().hex
        ignore = kind == "ignoring"
        try:
            self._app.send_task(
                f"chaos.{kind}", kwargs=arguments, task_id=job, ignore_result=ignore
            )
        except LedgerError as exc:
            self._journal.note("unsure", job=job, kind=kind, key=None, error=str(exc))
            return None
        self._journal.note("accepted", job=job, kind=kind, key=None)
        return job


class ForeignRoad:
    """By LPUSH of a Celery message, protocol 2, without any library of ours."""

    def __init__(self, journal: Journal, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self._journal = journal

    def send(self, drawn: list[tuple[str, dict[str, Any]]]) -> list[str]:
        """See `Road`; nothing is accepted here."""
        for kind, arguments in drawn:
            job = uuid.uuid4().hex
            self._journal.note("unsure", job=job, kind=kind, key=None, error="foreign")
            try:
                self._redis.lpush("celery", json.dumps(_message(job, kind, arguments)))
            except redis.RedisError:
                break
        return []


def _message(job: str, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    body = base64.b64encode(json.dumps([[], arguments, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": f"chaos.{kind}", "id": job, "root_id": job},
        "properties": {
            "correlation_id": job, "delivery_mode": 2, "delivery_tag": job, "priority": 0,
            "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "celery"},
        },
    }  # fmt: skip


class Canceller:
    """Cancels some of what was accepted: at once, while queued, or later, while it may run."""

    def __init__(self, client: Client, journal: Journal, dice: random.Random) -> None:
        self._client, self._journal, self._dice = client, journal, dice
        self._later: deque[tuple[float, str]] = deque()

    def offer(self, jobs: list[str]) -> None:
        """Choose among jobs that were just accepted, and cancel what is due."""
        now = time.monotonic()
        for job in jobs:
            if self._dice.randrange(1000) < CANCELLED:
                wait = 0.0 if self._dice.random() < 0.5 else self._dice.uniform(0.05, 1.0)
                self._later.append((now + wait, job))
        for _ in range(len(self._later)):
            due, job = self._later.popleft()
            if due > time.monotonic():
                self._later.append((due, job))
            else:
                self._cancel(job)

    def _cancel(self, job: str) -> None:
        try:
            self._client.cancel(job, "chaos")
        except (Conflict, NotFound):
            self._journal.note("uncancelled", job=job)
        except LedgerError as exc:
            self._journal.note("cancel-unsure", job=job, error=str(exc))
        else:
            self._journal.note("cancelled", job=job)


def main(name: str, road: str, rate: float, seed: str, mix: dict[str, int]) -> None:
    """Produce until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    dice = random.Random(f"{seed} {name}")
    settings = Settings.load()
    journal = Journal(Path(os.environ["CHAOS_HISTORY"]) / f"producer-{name}.jsonl")
    journal.note("begins", road=road, rate=rate)
    by_client = ClientRoad(journal, dice)
    ways: dict[str, Road] = {"client": by_client}
    if road == "celery":
        ways[road] = CeleryRoad(journal)
    elif road == "foreign":
        ways[road] = ForeignRoad(journal, settings.redis_url.get_secret_value())
    canceller = Canceller(by_client.client, journal, dice)
    last, owed = time.monotonic(), 0.0
    while not stop.wait(dice.uniform(*BURST)):
        now = time.monotonic()
        owed = min(owed + (now - last) * rate, ARREARS * rate)
        last = now
        while owed >= 1 and not stop.is_set():
            drawn = [
                kinds.draw(dice, mix, settings.lease_seconds) for _ in range(min(int(owed), BATCH))
            ]
            try:
                accepted = ways[road].send(drawn)
            except LedgerError as exc:
                journal.note("failed", error=str(exc))
                accepted = []
            owed -= len(accepted) or len(drawn)
            canceller.offer(accepted)


if __name__ == "__main__":
    _, name_, road_, rate_, seed_, mix_ = sys.argv
    main(name_, road_, float(rate_), seed_, kinds.read_mix(mix_))
