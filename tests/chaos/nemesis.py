"""The nemesis: at seeded random times it does one of the faults, sometimes several at once.

The seed gives the schedule: which fault is due when, and the dice of each. That repeats. The
interleaving does not: a fault waits while its site is taken, it strikes who runs just then, and
one that came to nothing is tried again.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psycopg2
import redis

from tests.chaos.faults import FAULTS, Course, Fault, NotNow
from tests.chaos.rig import Rig

#: Faults that may be at work at the same time; beside them each of those that mostly wait.
AT_ONCE = 2
SLOW = {"clock", "gil", "poison"}
#: Seconds until a fault that came to nothing is tried again.
AGAIN = 3.0


@dataclass(frozen=True, slots=True)
class Stroke:
    """One fault of the schedule.

    Attributes:
        due: seconds after the nemesis began.
        name: of the fault.
        seed: of its dice.
    """

    due: float
    name: str
    seed: str


def plan(seed: str, names: list[str], every: float) -> Iterator[Stroke]:
    """The schedule of a seed, without an end: each fault comes once before any comes twice."""
    dice = random.Random(f"{seed} nemesis")
    first, weights = dice.sample(names, len(names)), [FAULTS[name].weight for name in names]
    due = every / 2
    for number in itertools.count():
        name = first[number] if number < len(first) else dice.choices(names, weights)[0]
        yield Stroke(due, name, f"{seed} {number} {name}")
        due += dice.expovariate(1 / every)


@dataclass(slots=True)
class _Active:
    stroke: Stroke
    fault: Fault
    course: Course
    due: float


class Nemesis:
    """Call `tick` often, from the main thread.

    Args:
        rig: what it strikes.
        seed: of the schedule.
        names: the faults to choose from.
        every: seconds between faults, on average.

    Attributes:
        struck: how often each fault was begun, as its caller counts.
        schedule: the part of the plan that has come due: seconds, and the fault's name.
    """

    def __init__(self, rig: Rig, seed: str, names: list[str], every: float) -> None:
        self._rig, self._names = rig, names
        self._began = time.monotonic()
        self._plan = plan(seed, names, every)
        self._coming = next(self._plan)
        self._waiting: list[Stroke] = []
        self._active: list[_Active] = []
        self.struck: Counter[str] = Counter()
        self.schedule: list[tuple[float, str]] = []

    @property
    def met(self) -> Counter[str]:
        """How often each fault is proven to have done its harm."""
        return self._rig.met

    def unmet(self) -> list[str]:
        """The faults that have not once done their harm."""
        return [name for name in self._names if not self.met[name]]

    @property
    def is_idle(self) -> bool:
        """Whether no fault is at work."""
        return not self._active

    def tick(self, *, begin: bool = True) -> str | None:
        """Go on with the faults at work, and perhaps begin another; its name."""
        now = time.monotonic()
        for active in [active for active in self._active if active.due <= now]:
            self._step(active)
        if not begin:
            return None
        passed = now - self._began
        while self._coming.due <= passed:
            self._waiting.append(self._coming)
            self.schedule.append((round(self._coming.due, 2), self._coming.name))
            self._coming = next(self._plan)
        return self._begin(passed)

    def _begin(self, passed: float) -> str | None:
        """Begin the first of those that are due whose site is free."""
        for stroke in self._waiting:
            fault = FAULTS[stroke.name]
            if stroke.due <= passed and self._has_room(fault):
                self._waiting.remove(stroke)
                course = fault.body(self._rig, random.Random(stroke.seed))
                active = _Active(stroke, fault, course, 0.0)
                self._active.append(active)
                self._step(active)
                return stroke.name
        return None

    def _has_room(self, fault: Fault) -> bool:
        if any(active.fault is fault for active in self._active):
            return False  # one that waits for its moment must not keep all others out
        site = fault.site
        taken = [active.fault.site for active in self._active if active.fault.site not in SLOW]
        if site in SLOW:
            return all(active.fault.site != site for active in self._active)
        most = max(1, len(self._rig.workers) // 2) if site == "worker" else 1
        return len(taken) < AT_ONCE and taken.count(site) < most

    def _step(self, active: _Active) -> None:
        try:
            active.due = time.monotonic() + next(active.course)
        except StopIteration:
            self._over(active)
        except NotNow:
            self._rig.journal.note("missed", fault=active.fault.name, error="not now")
            self._over(active, is_to_come=True)
        except (psycopg2.Error, redis.RedisError) as exc:
            # It needed a store that another fault holds away just now.
            self._rig.journal.note("missed", fault=active.fault.name, error=str(exc))
            self._over(active)

    def _over(self, active: _Active, *, is_to_come: bool = False) -> None:
        """A fault that has never done its harm is first again, as is one that asks for it.

        Any other repetition is not made up for.
        """
        self._active.remove(active)
        stroke, due = active.stroke, time.monotonic() - self._began + AGAIN
        if is_to_come:
            self._waiting.insert(0, replace(stroke, due=due))
            return
        is_coming = any(other.name == stroke.name for other in self._waiting)
        if not self.met[stroke.name] and not is_coming:
            self._waiting.insert(0, replace(stroke, due=due, seed=f"{stroke.seed} again"))
