"""Every duty of the keeper."""

from __future__ import annotations

from worker.keeper.cleaner import Cleaner, Expirer
from worker.keeper.dispatcher import Dispatcher
from worker.keeper.keeper import Duty
from worker.keeper.rescuer import Rescuer
from worker.keeper.restorer import Restorer
from worker.keeper.ringer import Ringer


def all_duties() -> list[Duty]:
    """One of each."""
    return [Dispatcher(), Ringer(), Rescuer(), Restorer(), Expirer(), Cleaner()]
