"""Faults: what the errors of SQLAlchemy and psycopg2 mean, in the house's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.errors import (
    InvalidSettings,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
    SchemaMissing,
)
from worker.ledger.silence import NoAnswer

#: SQLSTATEs after which the same transaction may simply be tried again: a deadlock, and what cannot
#: be told in an order.
CONCURRENT = ("40P01", "40001")
#: The server refuses or ends the session: crash, shutdown, too many connections, starting up.
_AWAY_CLASSES = ("08", "57P", "53", "25P03")
#: The password, the role, the database or a right.
_REFUSES_CLASSES = ("28", "3D", "42501")
#: The same at a connect, where psycopg2 knows no SQLSTATE; and what a server, a pooler or libpq
#: says of a parameter that it cannot follow. Source: auth.c, hba.c, postinit.c, miscinit.c, guc.c
#: and postgres.c of Postgres 15 to 18, fe-connect.c and fe-secure-openssl.c of libpq, PgBouncer,
#: the poolers of Neon and Supabase. A server that speaks another language is taken to be away.
_REFUSES = re.compile(
    r"authentication failed for user|no password supplied|(role|database) \".*\" does not exist"
    r"|no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in"
    r"|permission denied (for database|to set)|no such (user|database)|SASL authentication failed"
    r"|server does not support SSL|certificate verify failed|root certificate file"
    r"|server certificate for|valid client certificate|certificate present, but not private key"
    r"|could not (read|load) (certificate|private key) file|private key file \""
    r"|invalid [\w\"]+ value: \"|invalid \"\w+\" value: \"|invalid (integer )?value "
    r"(\".*\" for connection option|for parameter)|unrecognized configuration parameter"
    r"|requires a value|invalid command-line argument|unsupported startup parameter"
    r"|(definition of service|service file) \".*\" not found|weak sslmode|invalid port number"
    r"|authentication method requirement|channel binding (is )?required|could not parse network add"
    r"|GSSAPI encryption required|Tenant or user not found|Endpoint ID is not specified"
)
#: What is wrong with the data: out of range, against a constraint, or too large for an index.
_REFUSED_CLASSES = ("22", "23", "54")
#: A table is missing, or the schema that should hold it.
_UNDEFINED = ("42P01", "3F000")
#: A write where none is taken: after a failover the connection leads to what is a standby now.
READ_ONLY = "25006"
TAKES_NO_WRITES = (
    "This Postgres takes no writes: it is a standby, or set read-only; let DATABASE_URL name the"
    " primary, or every host and target_session_attrs=read-write."
)
#: What Postgres could not do, though it is there: it took too long, for a timeout or whoever ended
#: the statement, or a lock did; or it met a fault of its own, in the system below it or in itself
#: (XX). A restart of ours would mend neither.
_NOT_DONE_CLASSES = ("57014", "55P03", "58", "XX")


class Refused(LedgerError):
    """Postgres refuses the data itself: trying again cannot help."""


class NotDone(LedgerUnavailable):
    """Postgres did not do this in time, or met a fault of its own. Less at once may be done, or the
    same in more time; it may also be away."""


class Silent(NotDone):
    """Postgres took a statement and answered nothing."""


class ConnectionLost(LedgerUnavailable):
    """An established connection broke; a new one may work at once."""


class TryAgain(LedgerUnavailable):
    """A deadlock or serialization failure: Postgres rolled back, try again."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy and psycopg2 raise into `worker.errors`."""
    try:
        yield
    except PoolTimeout:
        raise LedgerUnavailable(
            "No connection to Postgres became free in time; try again, or allow more connections."
        ) from None
    except (DBAPIError, psycopg2.Error) as exc:
        if isinstance(exc, psycopg2.Error):
            meaning = _meaning(exc) or exc
        else:
            meaning = _meaning(exc.orig, exc.connection_invalidated) or exc
        # Postgres quotes the refused row in its detail: the cause must not get into a log.
        raise meaning from None if isinstance(meaning, Refused) else exc
    except UnicodeEncodeError as exc:
        raise Refused("Postgres refuses a lone surrogate in text.") from exc
    except ValueError as exc:
        if "NUL" not in str(exc):  # psycopg2 refuses a NUL in text before it is sent
            raise
        raise Refused("Postgres refuses a NUL character in text.") from exc


def _meaning(error: BaseException | None, is_lost: bool = False) -> Exception | None:
    """What psycopg2's error means; `None` when it is a fault of ours."""
    if isinstance(error, NoAnswer):  # not tried again: the next wait would be as long
        return Silent(f"Postgres is not available: {error}.")
    state = getattr(error, "pgcode", None) or ""
    if state in CONCURRENT:
        return TryAgain("Postgres rolled the transaction back because of a concurrent one.")
    if state == READ_ONLY:
        return ConnectionLost(TAKES_NO_WRITES)
    if is_lost or (not state and isinstance(error, psycopg2.InterfaceError)):
        return ConnectionLost("The connection to Postgres was lost; try again.")
    if state.startswith(_REFUSES_CLASSES) or (not state and _REFUSES.search(str(error))):
        return LedgerRefused(f"Postgres refuses what DATABASE_URL gives: {first_line(error)}")
    if state.startswith(_AWAY_CLASSES) or (
        not state and isinstance(error, psycopg2.OperationalError)
    ):
        return LedgerUnavailable(f"Postgres is not available: {first_line(error)}")
    if state.startswith(_NOT_DONE_CLASSES):
        return NotDone(f"Postgres could not do it: {first_line(error)}")
    if isinstance(error, psycopg2.DataError) or state.startswith(_REFUSED_CLASSES):
        return Refused(f"Postgres refuses the data: {first_line(error)}")
    if not state and isinstance(error, psycopg2.ProgrammingError):
        return InvalidSettings(f"DATABASE_URL cannot be used: {first_line(error)}")
    if state in _UNDEFINED:
        named = re.search(r'"(\w+)\.\w+"', first_line(error))
        return SchemaMissing(named and named[1])
    return None


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text: what it says, without hints and the statement. Of a
    connect to several hosts what each of them said."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("connection to server"):
        return "; ".join(line for line in lines if not line.startswith("\t"))
    return lines[0] if lines else type(error).__name__
