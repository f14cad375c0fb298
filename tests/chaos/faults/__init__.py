"""Every fault that the nemesis can do, one file for each site that it strikes."""

from tests.chaos.faults import (
    clocks,
    doorbells,
    jobs,
    keepers,
    kills,
    network,
    postgres,
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
    "jobs",
    "keepers",
    "kills",
    "missing_parts",
    "network",
    "postgres",
    "workers",
]
