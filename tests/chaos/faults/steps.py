"""Steps of Postgres's clock, each over a restart, as where a failover brings another clock."""

from __future__ import annotations

import random
import time

from tests.chaos.clock import STEP
from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.rig import Rig
from tests.stepping import library

#: Leases for which the clock is off, and for which it is then left alone.
LASTS, RESTS = (2.0, 4.0), 2.0
#: Seconds that the clock must be where it was put, to be its proof.
ABOUT = 5.0

_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"


def _lack() -> str | None:
    if library() is not None:
        return None
    return "Postgres's clock is stepped by libfaketime, which is not here: apt-get install faketime"


def _step(rig: Rig, name: str, seconds: float, dice: random.Random) -> Course:
    """Step the clock, wait, and step it back: two steps, one in each direction."""
    lasts, server = rig.terms.lease * dice.uniform(*LASTS), rig.postgres
    begin(rig, name, "postgres", seconds=seconds)
    try:
        _restart(rig, seconds)
        ((clock,),) = rig.query(_CLOCK)
        if abs(clock - time.time() - seconds) < ABOUT:
            met(rig, name, "postgres", off=round(clock - time.time()))
        yield lasts
    finally:
        if server.shift:
            _restart(rig, -seconds)
    yield rig.terms.lease * RESTS
    end(rig, name, "postgres")


def _restart(rig: Rig, seconds: float) -> None:
    """Restart Postgres with a clock that has stepped meanwhile."""
    rig.journal.note("outage", store="postgres")
    rig.postgres.stop()
    rig.journal.note("step", seconds=seconds)
    rig.postgres.shift += seconds
    rig.postgres.start()
    rig.journal.note("back", store="postgres")


@fault("postgres", weight=1, lack=_lack)
def pg_clock_back(rig: Rig, dice: random.Random) -> Course:
    """Step Postgres's clock back by hours, and ahead again."""
    yield from _step(rig, "pg-clock-back", -STEP, dice)


@fault("postgres", weight=1, lack=_lack)
def pg_clock_forward(rig: Rig, dice: random.Random) -> Course:
    """Step Postgres's clock ahead by hours, and back again."""
    yield from _step(rig, "pg-clock-forward", STEP, dice)
