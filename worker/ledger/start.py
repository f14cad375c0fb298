"""A start waits for Postgres, and for a while for the schema, and says so once for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from worker.errors import LedgerRefused, LedgerUnavailable, SchemaMissing, SchemaOutdated

logger = logging.getLogger(__name__)

#: What a probe is told; none names an address, nor a version.
_FOR_POSTGRES = "Postgres does not answer."
_FOR_ACCESS = "Postgres refuses the role, its password or the database."
_FOR_SCHEMA = "The schema is waited for; run `worker migrate`."


class Start:
    """The first steps of a service on the ledger, tried until they go through.

    Args:
        schema_wait: seconds, from the first time on that the schema is missing or too old, for
            which it is waited for. One that is too new is not: no schema goes back.

    Attributes:
        waits_for: what a probe is told; `None` while nothing is waited for.
    """

    def __init__(self, schema_wait: float) -> None:
        self._schema_wait = schema_wait
        self._missed_at: float | None = None
        self.waits_for: str | None = None

    def goes(self, steps: Callable[[], object]) -> bool:
        """Whether `steps` went through; if not, try again soon.

        Raises:
            ConfigurationError: waiting does not help, or not any more.
        """
        try:
            steps()
        except LedgerUnavailable as exc:
            reason = _FOR_ACCESS if isinstance(exc, LedgerRefused) else _FOR_POSTGRES
            if self.waits_for != reason:
                logger.warning("Waiting for Postgres: %s", exc)
            self.waits_for = reason
            return False
        except (SchemaMissing, SchemaOutdated) as exc:
            now = time.monotonic()
            if self._missed_at is None:
                self._missed_at = now
            if now - self._missed_at >= self._schema_wait:
                raise
            if self.waits_for != _FOR_SCHEMA:
                logger.warning("Waiting up to %g s for the schema: %s", self._schema_wait, exc)
            self.waits_for = _FOR_SCHEMA
            return False
        self.waits_for = None
        return True
