"""Bring the database's schema to what this code needs; refuse what this code does not know."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from worker.errors import SchemaMissing, SchemaNewer, SchemaOutdated
from worker.ledger.database import Ledger
from worker.ledger.faults import NotDone, TryAgain

#: Any number, the same in every replica: "ledger" in ASCII. Transaction-scoped, so that a
#: transaction pooler cannot leak it.
_LOCK: Final = 0x6C6564676572
#: Seconds that a migration waits for a table: all who come after it for that table wait behind it.
LOCK_SECONDS: Final = 2
#: Seconds that it lets them pass, and how often it tries.
PAUSE: Final = 1.0
TRIES: Final = 20

logger = logging.getLogger(__name__)

# Alembic tells every process that looks at the schema what dialect it met.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


def head() -> str:
    """The schema revision that this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def migrate(url: str) -> str:
    """Migrate the database at `url` to `head()` and return it; safe from several replicas at once.

    Raises:
        SchemaNewer: the database is ahead of this code; nothing was changed.
        Unavailable: Postgres is away, or somebody keeps a table locked; nothing was changed.
    """
    ledger = Ledger(url, name="worker migrate", connections=1, waits_for_ever=True)
    try:
        for left in reversed(range(TRIES)):
            try:
                with ledger.transaction() as connection:
                    _upgrade(connection)
                break
            except (NotDone, TryAgain) as exc:
                if not left:
                    raise
                logger.warning("The migration is tried again: %s", exc)
                time.sleep(PAUSE)
    finally:
        ledger.close()
    return head()


def _upgrade(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    # From here on: replicas may wait for each other as long as it takes.
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    _refuse_newer(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def check_schema(ledger: Ledger) -> None:
    """Make sure that the schema is the one that this code needs.

    Raises:
        SchemaMissing, SchemaOutdated, SchemaNewer: it is not; the message says what to do.
        Unavailable: Postgres is away.
    """
    with ledger.transaction() as connection:
        found = _refuse_newer(connection)
    if found is None:
        raise SchemaMissing
    if found != head():
        raise SchemaOutdated(found, head())


def _refuse_newer(connection: Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None:
        try:
            ScriptDirectory.from_config(_config()).get_revision(found)
        except CommandError:
            raise SchemaNewer(found, head()) from None
    return found


def _config() -> Config:
    config = Config()
    # Alembic interpolates "%" as configparser does.
    location = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", location)
    return config
