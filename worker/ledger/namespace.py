"""The namespace: the Postgres schema that holds the tables, and the way of older tables into it.

Every statement names its tables with the schema, as `ledger.jobs`: `search_path` belongs to others,
and so do the tables in `public`, be they called `jobs` or `alembic_version`.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, event, text

from worker.errors import ConfigurationError, SchemaTaken

logger = logging.getLogger(__name__)

#: The schema that every statement names; an engine renames it where WORKER_SCHEMA is another one.
SCHEMA: Final = "ledger"
#: Alembic's own table.
VERSIONS: Final = "alembic_version"
#: What versions before 0004 made, wherever `search_path` led.
_TABLES: Final = ("jobs", "attempts", "workers", "leaders", "catalogue", "queues", "groups")
_SEQUENCE: Final = "dispatch_seq"
#: The revisions of these versions.
_OLD_REVISIONS: Final = ("0001", "0002", "0003")
#: Columns of `jobs` by which a ledger is known: other programs have tables of that name too.
_KNOWN_BY: Final = ["dispatch_seq", "fingerprint", "envelope", "body", "list", "rings", "lost"]
_NAMED = re.compile(rf"\b{SCHEMA}\.(?=[a-z_])")

# A schema that is not there has no row; neither catalogue asks for a right.
_LOOK: Final = text("""
    SELECT has_schema_privilege(n.oid, 'USAGE') AS usable,
           has_schema_privilege(n.oid, 'CREATE') AS creatable,
           ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class c
                 WHERE c.relnamespace = n.oid AND c.relname = ANY(CAST(:names AS name[]))
                 ORDER BY 1) AS found,
           (SELECT count(*) FROM pg_catalog.pg_attribute a
            JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
            WHERE c.relnamespace = n.oid AND c.relname = 'jobs' AND c.relkind = 'r'
              AND NOT a.attisdropped AND a.attname = ANY(CAST(:columns AS name[]))
           ) = cardinality(CAST(:columns AS name[])) AS has_jobs
    FROM pg_catalog.pg_namespace n WHERE n.nspname = :schema
""")
# Who has a right on a table of the schema needs one on the schema too, which `public` gives to all.
_GRANTEES: Final = text("""
    SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
    FROM pg_catalog.pg_class c, aclexplode(c.relacl)
    WHERE c.relnamespace = to_regnamespace(quote_ident(:schema)) AND grantee <> c.relowner
""")
_PATH: Final = text("SELECT CAST(current_schemas(false) AS text[]) || CAST('public' AS text)")
_MAY_CREATE: Final = text("""
    SELECT has_database_privilege(current_database(), 'CREATE'), current_database(), current_user
""")


def rename(engine: Engine, schema: str) -> None:
    """Let every statement of the engine name this schema; nothing to do for the usual one."""
    if schema == SCHEMA:
        return

    def renamed(_c: Any, _k: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return in_schema(statement, schema), parameters

    event.listen(engine, "before_cursor_execute", renamed, retval=True)


@functools.lru_cache(maxsize=512)
def in_schema(statement: str, schema: str) -> str:
    """The statement with its tables in this schema."""
    return statement if schema == SCHEMA else _NAMED.sub(f'"{schema}".', statement)


def has_ledger(connection: Connection, schema: str) -> bool:
    """Whether the schema holds a ledger.

    Raises:
        SchemaTaken: it holds another program's tables under our names.
        ConfigurationError: the role may not use it.
    """
    seen = _look(connection, schema)
    if not seen or not seen["found"]:
        return False
    if not seen["usable"]:
        raise ConfigurationError(
            f"The role may not use the schema {schema!r}; let its owner run"
            f' `GRANT USAGE ON SCHEMA "{schema}"` and grant the tables to the role.'
        )
    if not seen["has_jobs"] or VERSIONS not in seen["found"]:
        raise SchemaTaken(schema, seen["found"])
    return True


def old_place(connection: Connection, schema: str) -> str | None:
    """The other schema in which a version before 0004 keeps its tables, if there is one: what is
    first in the path comes first, as it did for that version."""
    for place in connection.execute(_PATH).scalar() or ():
        seen = _look(connection, place) if place != schema else None
        if seen and seen["has_jobs"] and {*_TABLES, _SEQUENCE} <= {*seen["found"]}:
            return str(place)
    return None


def make_room(connection: Connection, schema: str) -> None:
    """Have the schema, with the tables of an older version in it if there are some.

    They are moved as they are, and nothing is copied. What others have in the old place stays.

    Raises:
        SchemaTaken: another program has tables in the schema.
        ConfigurationError: the role may not make it, or the database holds two ledgers.
    """
    is_there, old = has_ledger(connection, schema), old_place(connection, schema)
    if is_there and old:
        other = (
            "" if old == "public" else f", or set WORKER_SCHEMA={old} for the services that use it"
        )
        raise ConfigurationError(
            f"The schemas {schema!r} and {old!r} both hold a ledger, the latter one of a version"
            f" before 0004; drop its tables once no job in them matters{other}."
        )
    if not is_there:
        _create(connection, schema)
    if old:
        _move(connection, old, schema)


def _create(connection: Connection, schema: str) -> None:
    seen = _look(connection, schema)
    if seen and seen["usable"] and seen["creatable"]:
        return
    may_create, database, role = connection.execute(_MAY_CREATE).one()
    if seen or not may_create:
        verb = "is not the role's to create tables in" if seen else "is missing"
        given = f'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{role}"'
        made = f'CREATE SCHEMA "{schema}" AUTHORIZATION "{role}"'
        raise ConfigurationError(
            f"The schema {schema!r} {verb}, and the role may not change that; let an administrator"
            f" of the database {database!r} run `{given if seen else made}`, then run"
            " `worker migrate` again."
        )
    connection.execute(text(f'CREATE SCHEMA "{schema}"'))


def _move(connection: Connection, old: str, schema: str) -> None:
    for table in _TABLES:
        connection.execute(text(f'ALTER TABLE "{old}".{table} SET SCHEMA "{schema}"'))
    connection.execute(text(f'ALTER SEQUENCE "{old}".{_SEQUENCE} SET SCHEMA "{schema}"'))
    for role in connection.execute(_GRANTEES, {"schema": schema}).scalars().all():
        connection.execute(text(f'GRANT USAGE ON SCHEMA "{schema}" TO {role}'))
    revision = _revision_of(connection, schema)
    versions = _versions(connection, old)
    if versions == [revision]:
        connection.execute(text(f'ALTER TABLE "{old}".{VERSIONS} SET SCHEMA "{schema}"'))
    else:
        _begin_versions(connection, schema, revision)
    if revision in versions and len(versions) > 1:  # two programs shared it
        ours = text(f'DELETE FROM "{old}".{VERSIONS} WHERE version_num = :revision')  # noqa: S608 -- of the catalogue
        connection.execute(ours, {"revision": revision})
    logger.info("The tables were moved from the schema %r to %r", old, schema)


def _begin_versions(connection: Connection, schema: str, revision: str) -> None:
    """The old `alembic_version` is another program's: begin one of our own."""
    connection.execute(
        text(f"""
            CREATE TABLE "{schema}".{VERSIONS} (
                version_num varchar(32) NOT NULL CONSTRAINT {VERSIONS}_pkc PRIMARY KEY)
        """)
    )
    connection.execute(
        text(f'INSERT INTO "{schema}".{VERSIONS} VALUES (:revision)'),  # noqa: S608 -- a checked name
        {"revision": revision},
    )


def _versions(connection: Connection, place: str) -> list[str]:
    if VERSIONS not in (_look(connection, place) or {"found": []})["found"]:
        return []
    query = text(f'SELECT version_num FROM "{place}".{VERSIONS}')  # noqa: S608 -- of the catalogue
    return list(connection.execute(query).scalars())


def _revision_of(connection: Connection, schema: str) -> str:
    """The revision of old tables, by what they look like."""
    query = text("""
        SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute
                       WHERE attrelid = to_regclass(:jobs) AND attname = 'suspect'
                         AND NOT attisdropped) AS first,
               to_regclass(:third) IS NOT NULL AS third
    """)
    names = {"jobs": f'"{schema}".jobs', "third": f'"{schema}".groups_created'}
    found = connection.execute(query, names).one()
    return _OLD_REVISIONS[0 if found.first else 2 if found.third else 1]


def _look(connection: Connection, schema: str) -> RowMapping | None:
    """What is in a schema under our names, and what the role may do there."""
    names = [*_TABLES, _SEQUENCE, VERSIONS]
    asked = {"schema": schema, "names": names, "columns": _KNOWN_BY}
    return connection.execute(_LOOK, asked).mappings().one_or_none()
