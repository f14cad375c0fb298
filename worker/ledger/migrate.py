"""Bring the database's schema to what this code needs; refuse what this code does not run on.

A version runs on the schemas of its neighbours. For the older one, this code knows how far back it
runs. For the newer one, the schema itself says which code still runs on it (decision 11).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from worker.errors import ConfigurationError, SchemaMissing, SchemaNewer, SchemaOutdated
from worker.ledger.database import Ledger
from worker.ledger.faults import NotDone, TryAgain, first_line
from worker.ledger.namespace import SCHEMA, has_ledger, make_room, old_place

#: The oldest schema that this code runs on: the one before `head()`, or `head()` where it cannot.
OLDEST_SCHEMA: Final = "0004"
#: The comment on Alembic's own table: the schema's revision, and the oldest code that it runs. It
#: commits with the migration, and reading it takes no right that nobody had before.
_RUNS: Final = "{} runs code from {}"
#: Any number, the same in every replica: "ledger" in ASCII. Transaction-scoped, so that a
#: transaction pooler cannot leak it.
_LOCK: Final = 0x6C6564676572
#: SQLSTATEs of a column, an object or a table that is there already.
_IS_THERE: Final = ("42701", "42710", "42P07")
#: Seconds that a migration waits for a table: all who come after it for that table wait behind it.
LOCK_SECONDS: Final = 2
#: Seconds that it lets them pass, and how often it tries.
PAUSE: Final = 1.0
TRIES: Final = 20

logger = logging.getLogger(__name__)

# Alembic tells every process that looks at the schema what dialect it met.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)


def head() -> str:
    """The newest schema revision that this code knows: what `migrate` makes."""
    return _known()[-1]


def migrate(url: str, schema: str = SCHEMA, *, trusts_storage: bool = False) -> str:
    """Migrate the schema of the database at `url` to `head()`; safe from several replicas at once.

    Returns:
        The database's revision. One that is not `head()` is newer, and runs this code; nothing was
        changed.

    Raises:
        SchemaNewer: the database is ahead of this code, and does not run it; nothing was changed.
        ConfigurationError: the schema is another program's, or the role may not make it.
        Unavailable: Postgres is away, or somebody keeps a table locked; nothing was changed.
    """
    ledger = Ledger(
        url,
        name="worker migrate",
        connections=1,
        waits_for_ever=True,
        schema=schema,
        trusts_storage=trusts_storage,
    )
    try:
        for left in reversed(range(TRIES)):
            try:
                with ledger.transaction() as connection:
                    return _upgrade(connection, schema)
            except (NotDone, TryAgain) as exc:
                if not left:
                    raise
                logger.warning("The migration is tried again: %s", exc)
                time.sleep(PAUSE)
    finally:
        ledger.close()
    raise AssertionError("unreachable")


def _upgrade(connection: Connection, schema: str) -> str:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    # From here on: replicas may wait for each other as long as it takes.
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    known = _known()
    make_room(connection, schema)
    found = _found(connection, known, schema)
    if found is not None and found not in known:
        return found
    config = _config()
    config.attributes |= {"connection": connection, "schema": schema}
    try:
        command.upgrade(config, "head")
    except ProgrammingError as exc:
        if getattr(exc.orig, "pgcode", None) not in _IS_THERE:
            raise
        raise _unexpected(schema, exc.orig or exc) from None
    newest = ScriptDirectory.from_config(config).get_revision(known[-1])
    said = _RUNS.format(known[-1], newest.module.RUNS_CODE_FROM)
    if _comment(connection) != said:
        connection.execute(text(f"COMMENT ON TABLE ledger.alembic_version IS '{said}'"))
    return known[-1]


def check_schema(ledger: Ledger) -> str:
    """The schema's revision, once it is sure that this code runs on it.

    Raises:
        SchemaMissing, SchemaOutdated, SchemaNewer, SchemaTaken: it does not; the message says what
            to do.
        Unavailable: Postgres is away.
    """
    known = _known()
    with ledger.transaction() as connection:
        is_there = has_ledger(connection, ledger.schema)
        found = _found(connection, known, ledger.schema) if is_there else None
        old = None if is_there else old_place(connection, ledger.schema)
    if old is not None:
        raise SchemaOutdated("0003 or older", known[-1])
    if found is None:
        raise SchemaMissing(ledger.schema)
    if found in known[: known.index(OLDEST_SCHEMA)]:
        raise SchemaOutdated(found, known[-1])
    return found


def second_ledger(ledger: Ledger) -> str | None:
    """A sentence about a ledger of a version before 0004 beside this one: what still runs of that
    version uses it, and none of this version's workers runs its jobs.

    Raises:
        Unavailable: Postgres is away.
    """
    with ledger.transaction() as connection:
        is_there = has_ledger(connection, ledger.schema)
        old = old_place(connection, ledger.schema) if is_there else None
    if old is None:
        return None
    return (
        f"The schema {old!r} holds a second ledger, of a version before 0004; its jobs are run by"
        " workers of that version alone. Drop its tables once no job in them matters."
    )


def _known() -> list[str]:
    """The revisions that this code has, which are one line, from the first to its own."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def _found(connection: Connection, known: list[str], schema: str) -> str | None:
    """The schema's revision; `None` where there is nothing in it.

    Raises:
        SchemaNewer: it is ahead of this code, and does not say that it runs it.
        ConfigurationError: there is more than one.
    """
    context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
    try:
        found = context.get_current_revision()
    except CommandError as exc:
        raise _unexpected(schema, exc) from None
    if found is not None and found not in known:
        comment = _comment(connection)
        if comment not in {_RUNS.format(found, oldest) for oldest in known}:
            raise SchemaNewer(found, known[-1])
    return found


def _unexpected(schema: str, error: BaseException) -> ConfigurationError:
    """Of what somebody has put into the schema, or has changed in it."""
    return ConfigurationError(
        f"The schema {schema!r} holds what is not as celery-ledger left it: {first_line(error)}."
        " Nothing was changed; restore it from a backup, or name another one in WORKER_SCHEMA."
    )


def _comment(connection: Connection) -> str:
    query = "SELECT obj_description(to_regclass('ledger.alembic_version'), 'pg_class')"
    return connection.execute(text(query)).scalar() or ""


def _config() -> Config:
    config = Config()
    # Alembic interpolates "%" as configparser does.
    location = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", location)
    return config
