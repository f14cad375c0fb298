"""One measurement of one contender, and the medians of several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class Failed(Exception):
    """A contender did not do what it is measured for."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run.

    Attributes:
        kind: what was measured: "drain", "enqueue", "floor", "latency", "recovery".
        contender: its key.
        title: for people, with the pool, the processes and the concurrency.
        workload: what the jobs did, or how they were enqueued.
        setting: what was otherwise than usual, such as "2ms"; empty when nothing was.
        jobs: how many were enqueued; each ran, or there is no run.
        seconds: that the clock ran.
        figures: by name; `rate` is jobs a second; `cpu`, and of that `worker`, `postgres` and
            `redis`, processor microseconds of a job; `memory` bytes of all workers; `others` the
            part of the machine that went to processes which are no part of the run.
    """

    kind: str
    contender: str
    title: str
    workload: str
    setting: str
    jobs: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What runs that can be compared have in common."""
        return self.kind, self.contender, self.workload, self.setting

    def as_json(self) -> dict[str, Any]:
        """Everything, to be written."""
        return asdict(self)


class Medians:
    """The medians over the rounds of one bench."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs: dict[tuple[str, str, str, str], list[Run]] = {}
        for run in runs:
            self._runs.setdefault(run.key, []).append(run)

    def groups(self) -> list[list[Run]]:
        """The runs that belong together, in the order of their first."""
        return list(self._runs.values())

    def get(
        self, figure: str, kind: str, contender: str, workload: str = "noop", setting: str = ""
    ) -> float | None:
        """The median of a figure; `None` when it was not measured."""
        found = self._runs.get((kind, contender, workload, setting), [])
        values = [run.figures[figure] for run in found if figure in run.figures]
        return statistics.median(values) if values else None


def spread(runs: Sequence[Run], figure: str) -> tuple[float, float, float] | None:
    """Median, least and most of a figure; `None` when no run has it."""
    values = [run.figures[figure] for run in runs if figure in run.figures]
    return (statistics.median(values), min(values), max(values)) if values else None


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` (0 to 1) of `values` do not exceed: the nearest rank.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("A percentile of nothing.")
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]
