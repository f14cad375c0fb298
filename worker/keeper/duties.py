"""Every duty of the keeper."""

from __future__ import annotations

from worker.keeper.cleaner import Cleaner, Expirer
from worker.keeper.cluster import Cluster
from worker.keeper.corrector import Corrector
from worker.keeper.dispatcher import Dispatcher
from worker.keeper.keeper import Duty
from worker.keeper.pricer import Pricer
from worker.keeper.rescuer import Rescuer
from worker.keeper.restorer import Restorer
from worker.keeper.ringer import Ringer


def all_duties(cluster: Cluster | None = None) -> list[Duty]:
    """One of each; in a Kubernetes cluster that lets the keeper speak to it, one more."""
    duties: list[Duty] = [Dispatcher(), Ringer(), Rescuer(), Corrector(), Restorer(), Expirer(),
                          Cleaner()]  # fmt: skip
    return [*duties, Pricer(cluster)] if cluster else duties
