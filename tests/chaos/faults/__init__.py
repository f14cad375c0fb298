"""Every fault that the nemesis can do, one file for each site that it strikes."""

from tests.chaos.faults import (
    clocks,
    doorbells,
    failovers,
    jobs,
    keepers,
    kills,
    network,
    postgres,
    steps,
    workers,
)
from tests.chaos.faults.registry import FAULTS, Course, Fault, NotNow, missing_parts

__all__ = [
    "FAULTS",
    "Course",
    "Fault",
    "NotNow",
    "clocks",
    "doorbells",
    "failovers",
    "jobs",
    "keepers",
    "kills",
    "missing_parts",
    "network",
    "postgres",
    "steps",
    "workers",
]
