"""The nemesis: at seeded random times it does one of the faults, sometimes two at once."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass

import psycopg2
import redis

from tests.chaos.faults import FAULTS, Course, Fault
from tests.chaos.rig import Rig

#: Faults that may be at work at the same time, on different sites.
AT_ONCE = 2


@dataclass(slots=True)
class _Active:
    fault: Fault
    course: Course
    due: float


class Nemesis:
    """Call `tick` often, from the main thread.

    Args:
        rig: what it strikes.
        seed: of every decision.
        names: the faults to choose from.
        every: seconds between faults, on average.
    """

    def __init__(self, rig: Rig, seed: str, names: list[str], every: float) -> None:
        self._rig = rig
        self._dice = random.Random(f"{seed} nemesis")
        self._faults = [FAULTS[name] for name in names]
        self._every = every
        self._active: list[_Active] = []
        self._next = time.monotonic() + every / 2
        self.struck: Counter[str] = Counter()
        # Each comes once before any comes twice.
        self._due = self._dice.sample(self._faults, len(self._faults))

    @property
    def is_idle(self) -> bool:
        """Whether no fault is at work."""
        return not self._active

    def tick(self, *, begin: bool = True) -> str | None:
        """Go on with the faults at work, and perhaps begin another; its name."""
        now = time.monotonic()
        for active in [active for active in self._active if active.due <= now]:
            self._step(active)
        if not begin or now < self._next or len(self._active) >= AT_ONCE:
            return None
        chosen = self._choose()
        if chosen is None:
            return None
        self._next = now + self._dice.expovariate(1 / self._every)
        active = _Active(chosen, chosen.body(self._rig, self._dice), now)
        self._active.append(active)
        self._step(active)
        return chosen.name

    def _choose(self) -> Fault | None:
        sites = {active.fault.site for active in self._active}
        for fault in self._due:
            if fault.site not in sites:
                self._due.remove(fault)
                return fault
        free = [fault for fault in self._faults if fault.site not in sites]
        if not free:
            return None
        return self._dice.choices(free, [fault.weight for fault in free])[0]

    def _step(self, active: _Active) -> None:
        try:
            active.due = time.monotonic() + next(active.course)
        except StopIteration:
            self._active.remove(active)
        except (psycopg2.Error, redis.RedisError) as exc:
            # It needed a store that another fault holds away just now.
            self._rig.journal.note("missed", fault=active.fault.name, error=str(exc))
            self._active.remove(active)
