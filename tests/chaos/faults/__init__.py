"""Every fault that the nemesis can do, one file for each site that it strikes."""

from tests.chaos.faults import doorbells, jobs, keepers, network, postgres, workers
from tests.chaos.faults.registry import FAULTS, Course, Fault

__all__ = [
    "FAULTS",
    "Course",
    "Fault",
    "doorbells",
    "jobs",
    "keepers",
    "network",
    "postgres",
    "workers",
]
