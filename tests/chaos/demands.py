"""What a run must show beside a clean history: that it was broken, and hard enough.

Without these a run that struck nobody, or under no load, would pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What may be asked: nothing; that everything happened; and the figures of the load too.
LEVELS = ("none", "short", "full")
#: Minutes from which on a run is long enough for figures.
LONG_ENOUGH = 10.0
#: Accepted jobs a second, in any window that no outage touches.
LEAST_ACCEPTED = 200.0
#: The part of the drain rate that is accepted, in the median window.
PART_OF_DRAIN = 0.5
#: Jobs that a killed worker with threads holds unstarted, and unflushed, in the median.
LEAST_HELD = 50
#: Seconds that a drain may take beyond its setting.
BEYOND_DRAIN = 5.0

TIMES = ("never", "once")


@dataclass(frozen=True, slots=True)
class Demand:
    """One thing that was demanded.

    Attributes:
        name: what.
        is_met: whether it was so.
        said: what was seen, in a few words.
    """

    name: str
    is_met: bool
    said: str

    def line(self) -> str:
        """It, for people."""
        return f"{'PASS' if self.is_met else 'FAIL'}  {self.name}: {self.said}"


def level_of(minutes: float) -> str:
    """What is demanded of a run of so many minutes."""
    return "full" if minutes >= LONG_ENOUGH else "short"


def demanded(level: str, facts: Mapping[str, Any], counts: Mapping[str, Any]) -> list[Demand]:
    """Every demand of `level`, met or not.

    Args:
        level: one of `LEVELS`.
        facts: what the run knows of itself; see `tests.chaos.__main__`.
        counts: what the checker counted, see `tests.chaos.counts`; empty when it could not.
    """
    if level == "none":
        return []
    made = [*_faults(facts), _unexpected(facts["unexpected"]), _drains(facts, counts)]
    made.append(_probes(facts["silent"]))
    if level == "full":
        made += [*_load(facts, counts), *_kills(facts["nemesis"], counts)]
    return made


def _faults(facts: Mapping[str, Any]) -> Iterator[Demand]:
    met = facts["met"]
    for name in facts["nemesis"]:
        times = met.get(name, 0)
        yield Demand(f"{name} was met", times > 0, f"{times} times" if times > 1 else TIMES[times])


def _unexpected(said: Sequence[str]) -> Demand:
    return Demand("nothing unexpected", not said, "; ".join(said) or "nothing")


def _probes(silent: Sequence[str] | None) -> Demand:
    """Of the workers that did not run a job after everything, a sentence each."""
    name = "each worker consumes again"
    if silent is None:
        return Demand(name, False, "it was not asked")
    return Demand(name, not silent, "; ".join(silent) or "each ran a job when all was mended")


def _drains(facts: Mapping[str, Any], counts: Mapping[str, Any]) -> Demand:
    bound = facts["drain_seconds"] + BEYOND_DRAIN
    drains = counts.get("drains") or {"drains": 0}
    name = f"each drain ends within {bound:g} s"
    if not drains["drains"]:
        needed = "term-worker" in facts["nemesis"]
        return Demand(name, not needed, "there was none")
    slowest = drains["seconds"]["max"]
    said = f"{drains['drains']} drains, the slowest {slowest:.1f} s"
    return Demand(name, slowest <= bound, said)


def _load(facts: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[Demand]:
    asked = PART_OF_DRAIN * (facts["drain_rate"] or float("inf"))
    names = (
        f"median accepted jobs/s >= {asked:.0f}, half of the drain rate",
        f"least accepted jobs/s >= {LEAST_ACCEPTED:.0f}",
    )
    rates = counts.get("accepted_per_second")
    if not rates:
        yield from (Demand(name, False, "there is no window without an outage") for name in names)
        return
    among = f"in {rates['windows']} windows of {rates['seconds']:g} s without an outage"
    yield Demand(names[0], rates["median"] >= asked, f"{rates['median']:.0f} {among}")
    yield Demand(names[1], rates["min"] >= LEAST_ACCEPTED, f"{rates['min']:.0f} {among}")


def _kills(nemesis: Sequence[str], counts: Mapping[str, Any]) -> Iterator[Demand]:
    if "kill-worker" not in nemesis:
        return
    kills = (counts.get("kills") or {}).get("threads", {})
    for what in ("unstarted", "unflushed"):
        name = f"median {what} jobs of a killed threads worker > {LEAST_HELD}"
        if what not in kills:
            yield Demand(name, False, "none was killed")
        else:
            median = kills[what]["median"]
            yield Demand(name, median > LEAST_HELD, f"{median:g} over {kills['kills']} kills")
