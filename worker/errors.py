"""Every exception this service raises on purpose, split by who must act.

LedgerError
├── ConfigurationError        the operator must act              exit 2
│   ├── InvalidSettings       a setting is missing or wrong
│   ├── SchemaMissing         no tables: run `worker migrate`
│   ├── SchemaOutdated        tables too old for the code: run `worker migrate`
│   ├── SchemaNewer           tables too new for the code: deploy the newer code
│   ├── SchemaTaken           another program's tables are where ours should be
│   ├── NotDurable            a store could lose what it acknowledged
│   └── StackError            the embedded local stack could not start
├── RequestError              the producer must act              exit 2, HTTP 4xx
│   ├── InvalidRequest        400: what was sent cannot be a job
│   │   ├── MalformedId
│   │   ├── NotJSON
│   │   ├── UnknownTask
│   │   ├── UnknownQueue
│   │   └── ArgumentsMismatch
│   ├── TooLarge              413: over a size limit
│   ├── NotFound              404: no such job
│   └── Conflict              409: the id, the key or the state says no
├── Unavailable               try again later                    exit 3, HTTP 503
│   ├── LedgerUnavailable     Postgres is away
│   │   └── LedgerRefused     Postgres is there, and refuses the role: commands exit 2
│   └── BrokerUnavailable     Redis is away
│       └── BrokerRefused     Redis is there, and refuses this one command or key
└── LeaseLost                 nobody: expected, the job was rescued

Messages say what was wrong, what was expected and what to do, in one sentence.
"""

from __future__ import annotations


class LedgerError(Exception):
    """Base of every exception this service raises on purpose."""

    status = 500
    exit_code = 1


class ConfigurationError(LedgerError):
    """The operator must change something before this can work."""

    exit_code = 2


class InvalidSettings(ConfigurationError):
    """One or more settings are missing or wrong; the message lists every one."""


class SchemaMissing(ConfigurationError):
    """The database has no tables of this service."""

    def __init__(self, schema: str | None = None) -> None:
        place = f" in its schema {schema!r}" if schema else ""
        super().__init__(f"The database has no celery-ledger tables{place}; run `worker migrate`.")


class SchemaOutdated(ConfigurationError):
    """The database's tables are older than this code runs on."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(
            f"The database schema is at {found}, this code needs {expected}; run `worker migrate`."
        )


class SchemaNewer(ConfigurationError):
    """The database's tables are newer than this code, and do not run it."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(
            f"The database schema is at {found}, which this code (at {expected}) does not run"
            " on; deploy the version that made it."
        )


class SchemaTaken(ConfigurationError):
    """The schema holds tables under our names that are not ours."""

    def __init__(self, schema: str, found: list[str]) -> None:
        super().__init__(
            f"The schema {schema!r} of the database holds another program's tables"
            f" ({', '.join(found)}); name a schema of celery-ledger's own in WORKER_SCHEMA."
        )


class NotDurable(ConfigurationError):
    """A store is set up so that it may lose what it acknowledged."""


class StackError(ConfigurationError):
    """The embedded local stack could not start."""


class RequestError(LedgerError):
    """The producer must change the request."""

    status = 400
    exit_code = 2


class InvalidRequest(RequestError):
    """What was sent cannot be a job."""


class MalformedId(InvalidRequest):
    """A job id that the ledger cannot hold."""


class NotJSON(InvalidRequest):
    """A payload that is not JSON."""


class UnknownTask(InvalidRequest):
    """No worker has ever published a task of this name."""


class UnknownQueue(InvalidRequest):
    """No worker has ever consumed this queue."""


class ArgumentsMismatch(InvalidRequest):
    """The arguments do not fit the task's signature."""


class TooLarge(RequestError):
    """A payload over its size limit."""

    status = 413


class NotFound(RequestError):
    """No job has this id."""

    status = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No job has the id {job_id!r}; `worker job list` shows those there are.")


class Conflict(RequestError):
    """The id or the idempotency key is taken by another job, or the job's state forbids this."""

    status = 409


class Unavailable(LedgerError):
    """A store cannot be reached now; the same request may succeed later."""

    status = 503
    exit_code = 3


class LedgerUnavailable(Unavailable):
    """Postgres cannot be reached now."""


class LedgerRefused(LedgerUnavailable):
    """Postgres is there, and refuses this password, role or database, or a right. A command ends;
    what runs waits, for a password may be on its way to change."""

    exit_code = 2


class BrokerUnavailable(Unavailable):
    """Redis cannot be reached now."""


class BrokerRefused(BrokerUnavailable):
    """Redis is there, and refuses this one command or key: a list that is no list, an ACL."""


class LeaseLost(LedgerError):
    """This worker's lease is gone: its jobs were rescued, and another worker has them."""
