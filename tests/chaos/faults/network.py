"""Faults of the network between two."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.chaos.faults.registry import Course, begin, end, fault
from tests.chaos.rig import Rig


def _wire(rig: Rig, dice: random.Random) -> tuple[str, str]:
    member = dice.choice([*rig.workers, *rig.keepers, *rig.producers])
    return member.name, dice.choice(["postgres", "postgres", "redis"])


def _broken(rig: Rig, name: str, dice: random.Random, lasts: float, do: str, **how: Any) -> Course:
    member, store = _wire(rig, dice)
    target, is_producer = f"{member} - {store}", member.startswith("p")
    begin(rig, name, target)
    if is_producer:
        rig.journal.note("outage", store=target)
    rig.wires[store].tell(member, do, **how)
    yield lasts
    rig.wires[store].tell(member, "heal")
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
    """Let nothing through between two, and tell neither."""
    yield from _broken(rig, "half-open", dice, rig.terms.lease * dice.uniform(0.5, 3), "blackhole")


@fault("network", weight=4)
def lost_reply(rig: Rig, dice: random.Random) -> Course:
    """Swallow the reply to a COMMIT, and break its connection."""
    member = dice.choice([*rig.workers, *rig.keepers, *rig.producers]).name
    begin(rig, "lost-reply", member)
    rig.wires["postgres"].tell(member, "drop_reply_after_next_commit")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        yield 0.1
        if rig.wires["postgres"].tell(member, "has_dropped"):
            break
    rig.wires["postgres"].tell(member, "heal")
    end(rig, "lost-reply", member)
