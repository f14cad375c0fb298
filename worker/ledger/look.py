"""Look at Postgres: which server answers, and what its clock says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from worker.ledger.database import Ledger
from worker.ledger.guards import STEP_SECONDS

# The moment of its start tells a server from every other, from a promoted standby too. Its address
# does not: connections to one server may come by several, and a proxy has one for all.
_LOOK = text("SELECT pg_postmaster_start_time() AS started, clock_timestamp() AS clock")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw.

    Attributes:
        started: when the server that answered was started; it identifies the server.
        clock: what its clock said.
        asked, answered: when the question was sent and the answer came, in seconds of a clock of
            the asking machine that never steps.
    """

    started: datetime
    clock: datetime
    asked: float
    answered: float

    def is_gap(self, later: Look) -> bool:
        """Whether between this look and a later one another server came, or the clock stepped."""
        return self.started != later.started or self.stepped(later) != 0.0

    def stepped(self, later: Look) -> float:
        """By how many seconds the server's clock stepped from this look to a later one, negative
        for back; 0.0 for less than what the two looks can tell."""
        passed = (later.clock - self.clock).total_seconds()
        least, most = later.asked - self.answered, later.answered - self.asked
        if passed < least - STEP_SECONDS:
            return passed - least
        return passed - most if passed > most + STEP_SECONDS else 0.0


def look_at(ledger: Ledger, steady: Callable[[], float]) -> Look:
    """Ask Postgres who it is, and for its time.

    Args:
        ledger: where.
        steady: reads, in seconds, a clock of this machine that never steps.

    Raises:
        Unavailable: Postgres is away.
    """
    asked = steady()
    (row,) = ledger.rows(_LOOK)
    return Look(row.started, row.clock, asked, steady())
