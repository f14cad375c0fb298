"""`worker migrate`: bring the database's schema up to date."""

from __future__ import annotations

import json

import click

from worker.ledger.migrate import migrate as migrate_ledger
from worker.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(as_json: bool) -> None:
    """Create or update the tables; safe from several replicas at once.

    Exit codes: 0 up to date, 2 the tables are newer than this code, 3 Postgres is unavailable.
    """
    revision = migrate_ledger(Settings.load().database_url.get_secret_value())
    click.echo(json.dumps({"revision": revision}) if as_json else f"Schema at {revision}.")
