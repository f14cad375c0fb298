"""Faults of the network between two."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.rig import Rig

#: Seconds that a COMMIT is waited for.
COMMITTED = 5.0


def _member(rig: Rig, dice: random.Random, workers: int) -> str:
    """Somebody, by name; a worker is `workers` times as likely as another."""
    all_ = [*rig.workers, *rig.keepers, *rig.producers]
    weights = [workers if member in rig.workers else 1 for member in all_]
    return dice.choices(all_, weights)[0].name


def _broken(rig: Rig, name: str, dice: random.Random, lasts: float, do: str, **how: Any) -> Course:
    member, store = _member(rig, dice, 1), dice.choice(["postgres", "postgres", "redis"])
    target, is_producer = f"{member} - {store}", member.startswith("p")
    wires = rig.wires[store]
    begin(rig, name, target)
    if is_producer:
        rig.journal.note("outage", store=target)
    before = wires.tell(member, "harm")
    wires.tell(member, do, **how)
    yield lasts
    felt = wires.tell(member, "harm") - before
    wires.tell(member, "heal")
    if felt:
        met(rig, name, target, felt=felt)
    if is_producer:
        rig.journal.note("back", store=target)
    end(rig, name, target)


@fault("network", weight=2)
def cut(rig: Rig, dice: random.Random) -> Course:
    """Break the connections between two; for a while, new ones too."""
    yield from _broken(rig, "cut", dice, dice.choice([0.2, 3.0, 8.0]), "refuse")


@fault("network", weight=2)
def delay(rig: Rig, dice: random.Random) -> Course:
    """Let everything between two take longer."""
    seconds = dice.choice([0.05, 0.3, 1.0])
    yield from _broken(rig, "delay", dice, dice.uniform(4, 10), "delay", seconds=seconds)


@fault("network", weight=2)
def half_open(rig: Rig, dice: random.Random) -> Course:
    """Let nothing through between two, and tell neither; not even when one of them hangs up."""
    yield from _broken(rig, "half-open", dice, rig.terms.lease * dice.uniform(0.5, 3), "blackhole")


@fault("network", weight=4)
def lost_reply(rig: Rig, dice: random.Random) -> Course:
    """Swallow the reply to a COMMIT, most often a worker's, and break its connection."""
    member, wires = _member(rig, dice, 4), rig.wires["postgres"]
    begin(rig, "lost-reply", member)
    wires.tell(member, "drop_reply_after_next_commit")
    until, statement = time.monotonic() + COMMITTED, None
    while statement is None and time.monotonic() < until:
        yield 0.1
        statement = wires.tell(member, "what_dropped")
    wires.tell(member, "heal")
    if statement is not None:
        met(rig, "lost-reply", member, statement=statement)
    end(rig, "lost-reply", member)
