"""Jobs that harm the worker that runs them."""

from __future__ import annotations

import random
import uuid
from typing import Any

from tests.chaos import history
from tests.chaos.faults.registry import Course, begin, end, fault
from tests.chaos.rig import Rig
from worker.client import Client
from worker.errors import LedgerError
from worker.settings import Settings


def _enqueue(rig: Rig, kind: str, **arguments: Any) -> None:
    settings = Settings.load(database_url=rig.postgres.url, redis_url=rig.redis.url)
    journal = history.Journal(rig.history / "producer-nemesis.jsonl")
    with Client(settings) as client:
        key = uuid.uuid4().hex
        try:
            job = client.enqueue(f"chaos.{kind}", [], arguments, key=key).id
        except LedgerError as exc:
            journal.note("unsure", job=None, kind=kind, key=key, error=str(exc))
        else:
            journal.note("accepted", job=job, kind=kind, key=key)


@fault("worker", weight=2)
def gil(rig: Rig, dice: random.Random) -> Course:
    """Enqueue a job that holds the GIL past the lease."""
    begin(rig, "gil", "")
    _enqueue(rig, "gil", seconds=round(rig.terms.lease * 1.7, 1))
    yield rig.terms.lease * 2
    end(rig, "gil", "")


@fault("worker", weight=2)
def poison(rig: Rig, dice: random.Random) -> Course:
    """Enqueue a job that kills its process: always, or once."""
    begin(rig, "poison", "")
    if dice.random() < 0.5:
        _enqueue(rig, "dying")
    else:
        _enqueue(rig, "dying_once", mark=str(rig.folder / f"died-{uuid.uuid4().hex}"))
    yield 1.0
    end(rig, "poison", "")
