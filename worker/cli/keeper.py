"""`worker keeper`: dispatch, ring again, rescue, clean up."""

from __future__ import annotations

import signal
from typing import Any

import click

from worker.keeper.duties import all_duties
from worker.keeper.keeper import Keeper
from worker.ledger.database import Ledger
from worker.ledger.migrate import check_schema
from worker.settings import Settings
from worker.telemetry.logs import set_up


@click.command()
def keeper() -> None:
    """Run the keeper until SIGTERM or Ctrl-C. Run two or more: one leads, the others wait.

    Exit codes: 0 stopped, 2 the schema or a setting is wrong, 3 Postgres is unavailable at the
    start, 70 it was wedged.
    """
    settings = Settings.load()
    set_up(settings.log_level)
    keep = Keeper(settings, all_duties())
    keep.health.serve()
    ledger = Ledger(settings.database_url.get_secret_value(), connections=1)
    check_schema(ledger)
    ledger.close()

    def stop(*_: Any) -> None:
        keep.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    keep.run()
