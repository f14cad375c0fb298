"""The machine's own steady clock."""

from __future__ import annotations

import time


def boot_time() -> float:
    """Seconds since the machine started, its sleep included: Postgres's clock goes on then too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
