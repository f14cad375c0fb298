"""`worker migrate`: bring the database's schema up to date."""

from __future__ import annotations

import json
import time

import click

from worker.errors import LedgerUnavailable
from worker.ledger.migrate import head
from worker.ledger.migrate import migrate as migrate_ledger
from worker.settings import Settings

#: Seconds between two tries, and about between two lines that say so.
PAUSE = 1.0
SAY_EVERY = 10.0


@click.command()
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for Postgres to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(wait: float, as_json: bool) -> None:
    """Create or update the tables; safe from several replicas at once.

    Newer tables that this version runs on are left as they are.

    Exit codes: 0 up to date, 2 somebody must act first: the tables are too new for this version,
    the schema is another program's, or the role, its password or its rights are wrong; 3 Postgres
    is unavailable.
    """
    revision = _migrated(Settings.load(), wait)
    if as_json:
        click.echo(json.dumps({"revision": revision}))
    elif revision == head():
        click.echo(f"Schema at {revision}.")
    else:
        click.echo(
            f"Schema at {revision}, which is newer than this version's {head()} and runs it;"
            " nothing was changed."
        )


def _migrated(settings: Settings, wait: float) -> str:
    """The database's revision, once it is migrated; Postgres is waited for, and stderr says so."""
    began = time.monotonic()
    say = 0.0
    while True:
        try:
            return migrate_ledger(
                settings.database_url.get_secret_value(),
                settings.ledger_schema,
                trusts_storage=settings.trust_postgres_storage,
            )
        except LedgerUnavailable as exc:
            waited = time.monotonic() - began
            if waited >= wait:
                raise
            if waited >= say:
                click.echo(f"{exc}; waiting, {waited:.0f} s of {wait:g} s.", err=True)
                say = waited + SAY_EVERY
            time.sleep(min(PAUSE, wait - waited))
