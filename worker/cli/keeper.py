"""`worker keeper`: dispatch, ring again, rescue, clean up."""

from __future__ import annotations

import signal
from typing import Any

import click

from worker.cli.strays import warn
from worker.keeper.cluster import Cluster
from worker.keeper.duties import all_duties
from worker.keeper.keeper import Keeper
from worker.settings import Settings
from worker.telemetry.logs import set_up


@click.command()
def keeper() -> None:
    """Run the keeper until SIGTERM or Ctrl-C. Run two or more: one leads, the others wait.

    While a store is away it waits, also at its start; for the tables WORKER_SCHEMA_WAIT_SECONDS.

    Exit codes: 0 stopped, 2 the schema or a setting is wrong, 70 it was wedged.
    """
    settings = Settings.load()
    warn()
    set_up(settings.log_level)
    keep = Keeper(settings, all_duties(Cluster.found()))
    keep.health.serve()

    def stop(*_: Any) -> None:
        keep.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    keep.await_ledger()
    keep.run()
