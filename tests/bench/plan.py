"""What is measured, in which order: everyone in turn, and then again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from dataclasses import field as new

from tests.bench import contenders as who
from tests.bench import deep as depth
from tests.bench.contenders import Contender
from tests.bench.distance import far
from tests.bench.drain import WARM, drain
from tests.bench.enqueue import enqueue, floor
from tests.bench.field import Field, Place
from tests.bench.latency import latency
from tests.bench.recovery import recovery
from tests.bench.runs import Failed, Medians, Run

#: How much longer than it must a run is planned to be: rates vary. The first is a guess.
FIRST, NEXT = 1.3, 1.2
#: Seconds that a far round trip takes longer.
FAR = 0.002
#: The part of its rate at home that a contender is expected to have far from its stores.
FAR_FACTOR = {True: 0.6, False: 0.4}
FEWEST = 50
#: How often a run that was too short is made anew, with more jobs.
TRIES = 4

#: Which contenders are measured beyond no-ops, by the section.
WORKLOADS = {
    "cpu": ("ledger-threads", "ledger-prefork", "stock-db", "stock-noresult", "dramatiq", "huey",
            "taskiq"),
    "sleep": ("ledger-threads", "ledger-prefork", "stock-db", "stock-noresult", "dramatiq", "huey",
              "taskiq"),
    "large": ("ledger-threads", "ledger-prefork", "stock-db", "stock-redis"),
}  # fmt: skip
LATENCIES = ("ledger-threads", "ledger-prefork", "stock-db", "stock-noresult", "dramatiq", "huey")
DISTANT = ("ledger-threads", "ledger-prefork", "stock-db", "stock-noresult", "dramatiq")
GROWTH = (1, 2, 4, 8)
#: Who enqueues just as another one does, and needs no figures of his own.
TWINS = ("ledger-prefork", "stock-db", "stock-redis")
QUICKLY_ENQUEUED = ("ledger-threads", "stock-noresult")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to measure.

    Attributes:
        title: for people.
        measure: does it.
    """

    title: str
    measure: Callable[[], Sequence[Run]]


@dataclass
class Bench:
    """The whole measurement.

    Attributes:
        field: the servers.
        chosen: the contenders.
        least: seconds of a timed run, at least.
        quick: whether only what the first six ratios need is measured.
        stack: ends what was started on the way.
        rows: finished and queued rows of the deep ledger.
        runs: what was measured so far.
        failures: why a step has failed, by its title; it is not tried again.
        unrepeated: the titles of steps that no time was left to repeat.
    """

    field: Field
    chosen: Sequence[Contender]
    least: float
    quick: bool
    stack: ExitStack
    rows: tuple[int, int] = (depth.FINISHED, depth.QUEUED)
    runs: list[Run] = new(default_factory=list)
    failures: dict[str, str] = new(default_factory=dict)
    unrepeated: list[str] = new(default_factory=list)
    _took: dict[str, float] = new(default_factory=dict)
    _far: Place | None = None
    _deep: Place | None = None

    def measure(self, step: Step) -> list[Run]:
        """Do one step; nothing when it fails, or has failed before."""
        if step.title in self.failures:
            return []
        began = time.monotonic()
        try:
            made = list(step.measure())
            self._took[step.title] = time.monotonic() - began
        except Failed as exc:
            self.failures[step.title] = str(exc)
            print(f"FAILED: {exc}", flush=True)
            return []
        self.runs += made
        return made

    def has_time_for(self, step: Step, left: float) -> bool:
        """Whether a step that was measured before can be repeated in the seconds that are left."""
        if step.title not in self._took or self._took[step.title] <= left:
            return True
        self.unrepeated.append(step.title)
        return False

    def steps(self, section: str) -> list[Step]:
        """What one round of a section measures, in its order."""
        made: Iterator[Step] = getattr(self, f"_{section}")()
        return list(made)

    def _drain(self) -> Iterator[Step]:
        for one in self.chosen:
            if not (self.quick and self._matters_not(one)):
                yield self._drained(one, "noop", self.field.home)

    def _matters_not(self, one: Contender) -> bool:
        """Whether no ratio of a quick bench hangs on another run: of results in Redis, or of a peer
        that was less than half as fast as the fastest."""
        if one.name not in who.PEERS:
            return one is who.STOCK_REDIS
        medians = Medians(self.runs)
        rates = {name: medians.get("rate", "drain", name) or 0.0 for name in who.PEERS}
        return 0 < rates[one.name] < max(rates.values()) / 2

    def _enqueue(self) -> Iterator[Step]:
        for one in self.chosen:
            if one.name in TWINS or (self.quick and one.name not in QUICKLY_ENQUEUED):
                continue
            for way in one.ways[-1:] if self.quick else one.ways:
                yield self._enqueued(one, way, self.field.home)

    def _floor(self) -> Iterator[Step]:
        if who.THREADS in self.chosen:
            yield Step(
                "enqueue beside its floor",
                lambda: floor(self.field, who.THREADS, self.least, self.field.home),
            )

    def _workloads(self) -> Iterator[Step]:
        for workload, names in WORKLOADS.items():
            for one in self._named(names):
                yield self._drained(one, workload, self.field.home)

    def _latency(self) -> Iterator[Step]:
        for loaded in (False, True):
            for one in self._named(LATENCIES):
                yield self._delayed(one, self.field.home, loaded=loaded)

    def _distance(self) -> Iterator[Step]:
        place = self._far_place()
        for one in self._named(DISTANT):
            yield self._drained(one, "noop", place)
        # Here the producers are as far away as the workers.
        away = replace(place, postgres=place.far_postgres, redis=place.far_redis)
        for one in self._named(QUICKLY_ENQUEUED):
            for way in one.ways:
                yield self._enqueued(one, way, away)
            yield self._delayed(one, away, loaded=False)

    def _growth(self) -> Iterator[Step]:
        if who.THREADS in self.chosen:
            for workers in GROWTH:
                yield self._drained(who.several(workers), "noop", self._far_place())

    def _shapes(self) -> Iterator[Step]:
        names = {one.name for one in self.chosen}
        for number, shape in enumerate(who.SHAPES):
            if shape.is_here and shape.name in names:
                # Under a name of its own: it is not among what the ratios are taken of.
                named = replace(shape, name=f"{shape.name}-shape{number}")
                yield self._drained(named, "noop", self.field.home)

    def _depth(self) -> Iterator[Step]:
        if who.THREADS in self.chosen:
            for place in (self._deep_place(), depth.empty(self.field)):
                yield self._drained(who.THREADS, "noop", place)

    def _recovery(self) -> Iterator[Step]:
        if who.THREADS in self.chosen:
            yield Step("killed workers", lambda: recovery(self.field.folder))

    def _drained(self, one: Contender, workload: str, place: Place) -> Step:
        title = _titled(f"{workload} drained", one, place)
        return Step(title, lambda: [self._timed(one, workload, place)])

    def _enqueued(self, one: Contender, way: str, place: Place) -> Step:
        return Step(
            _titled(f"enqueued {way}", one, place),
            lambda: [enqueue(self.field, one, way, self.least, place)],
        )

    def _delayed(self, one: Contender, place: Place, *, loaded: bool) -> Step:
        def measure() -> list[Run]:
            load = 0.5 * self._rate(one, "noop", place)[0] if loaded else 0.0
            return [latency(self.field, one, load, self.least, place)]

        return Step(_titled(f"latency {'at half load' if loaded else 'idle'}", one, place), measure)

    def _timed(self, one: Contender, workload: str, place: Place) -> Run:
        """A run that is long enough."""
        rate, margin = self._rate(one, workload, place)
        for _ in range(TRIES):
            jobs = max(FEWEST, int(rate * self.least * margin / (1 - WARM)))
            run = drain(self.field, one, workload, jobs, rate, place)
            if run.seconds >= self.least:
                return run
            print(f"{run.seconds:.1f} s are too short, again … ", end="", flush=True)
            rate, margin = run.figures["rate"], NEXT
        raise Failed(f"{one.name} was faster each time: no run of {self.least} s could be made.")

    def _rate(self, one: Contender, workload: str, place: Place) -> tuple[float, float]:
        """The rate to be expected, and how much longer than it must the run is to be."""
        known = [
            run.figures["rate"] for run in self.runs
            if run.key == ("drain", one.name, workload, place.setting)
        ]  # fmt: skip
        if known:
            return statistics.median(known), NEXT
        rate = one.expected(workload)
        home = Medians(self.runs).get("rate", "drain", one.name, workload)
        return (home or rate) * (FAR_FACTOR[one.is_ours] if place.between else 1), FIRST

    def _named(self, names: Sequence[str]) -> list[Contender]:
        return [one for one in self.chosen if one.name in names]

    def _far_place(self) -> Place:
        if self._far is None:
            made = far(self.field.home, FAR, self.field.folder)
            self._far = self.stack.enter_context(made)
        return self._far

    def _deep_place(self) -> Place:
        if self._deep is None:
            print("Filling the deep ledger", flush=True)
            self._deep = depth.deep(self.field, *self.rows)
        return self._deep


def _titled(what: str, one: Contender, place: Place) -> str:
    return f"{what}, {one.title}" + (f", {place.setting}" if place.setting else "")


#: Every section, in its order. Each is measured round after round before the next begins; in a
#: quick bench everything is measured once before anything is repeated.
SECTIONS = (
    "drain", "enqueue", "floor", "latency", "distance", "growth", "workloads", "shapes", "depth",
    "recovery",
)  # fmt: skip
QUICK = ("drain", "enqueue")
#: The most rounds of a section: what repeats by itself, or has no ratio, needs fewer.
MOST_ROUNDS = {"workloads": 1, "growth": 1, "shapes": 1, "recovery": 1}


def measure(
    bench: Bench, sections: Sequence[str], rounds: int, budget: float, say: Callable[[Run], str]
) -> None:
    """Every section's steps in turn, again and again.

    Args:
        bench: what is measured.
        sections: their names.
        rounds: how often.
        budget: seconds after which nothing that was measured once is repeated.
        say: a line about a run.
    """
    began = time.monotonic()
    for section, round_ in _order(sections, rounds, whole_rounds=bench.quick):
        try:
            steps = bench.steps(section)
        except Failed as exc:
            bench.failures[section] = str(exc)
            print(f"FAILED: {exc}", flush=True)
            continue
        for number, step in enumerate(steps, 1):
            passed = time.monotonic() - began
            head = f"{int(passed) // 60:3}:{int(passed) % 60:02} {section}"
            print(f"{head} {round_}.{number}/{len(steps)} {step.title}: ", end="", flush=True)
            if bench.has_time_for(step, budget - passed):
                print("; ".join(map(say, bench.measure(step))) or "nothing", flush=True)
            else:
                print("not repeated, no time is left for it", flush=True)


def _order(
    sections: Sequence[str], rounds: int, *, whole_rounds: bool
) -> Iterator[tuple[str, int]]:
    """Each section's rounds, numbered from 1: one section after the other, or all in each round."""
    if whole_rounds:
        yield from ((section, number) for number in range(1, rounds + 1) for section in sections)
        return
    for section in sections:
        for number in range(1, min(rounds, MOST_ROUNDS.get(section, rounds)) + 1):
            yield section, number
