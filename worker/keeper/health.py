"""A keeper's health: what it tells a probe, and when it ends itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from worker.errors import (
    BrokerUnavailable,
    LeaseLost,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
)
from worker.ledger.database import Ledger
from worker.ledger.start import Start
from worker.settings import Settings
from worker.telemetry.health import HealthServer
from worker.telemetry.watchdog import Watchdog

logger = logging.getLogger(__name__)

#: The main thread's round, in which the lead is taken.
LEADING = "the lead"
#: Seconds that a round may take while Postgres answers. Rounds are bounded batches, and calls to a
#: silent Redis have an end; but the system's lookup of its name may take two minutes.
ROUND_SECONDS = 180.0
#: Seconds between two questions to Postgres while a round takes too long.
ASK_EVERY = 2.0


class Health:
    """Whether a keeper lives, and whether it works.

    A round that takes longer than `limit` is wedged if Postgres answers others meanwhile. Whether
    it does, a thread with a connection of its own asks, and only then.

    Args:
        settings: the configuration.
        rounds: the names of what goes round.
        limit: seconds.
    """

    def __init__(
        self, settings: Settings, rounds: Sequence[str], limit: float = ROUND_SECONDS
    ) -> None:
        self._settings = settings
        self.limit = limit
        self.opening = Start(settings.schema_wait_seconds)
        self.watchdog = Watchdog(self._faults, limit / 2)
        self.server: HealthServer | None = None
        self._rounds = tuple(rounds)
        self._began: dict[str, float] = {}
        self._trouble: dict[str, LedgerError] = {}
        self._running = threading.Event()
        self._stop = threading.Event()
        self._answered = -ASK_EVERY

    def serve(self) -> None:
        """Open the port of the settings, if they name one.

        Raises:
            InvalidSettings: it is taken.
        """
        settings = self._settings
        if settings.health_port is None:
            return
        host, port = settings.health_host, settings.health_port
        self.server = HealthServer(host, port, self.live, self.ready)
        self.server.start()
        logger.info("Health is served at port %d.", self.server.port)

    def watch(self) -> None:
        """The keeper runs: watch it."""
        self._running.set()
        self.watchdog.start()
        threading.Thread(target=self._ask, name="second opinion", daemon=True).start()

    def stop(self) -> None:
        """The keeper stops; what it still does, its supervisor bounds."""
        self._stop.set()
        self.watchdog.stop()

    @contextmanager
    def round_of(self, name: str) -> Iterator[None]:
        """One round; what it raises is remembered until a round succeeds."""
        self._began[name] = self.watchdog.now()
        try:
            yield
        except LeaseLost:
            raise  # another keeper leads: nobody's trouble
        except LedgerError as exc:
            self._trouble[name] = exc
            raise
        else:
            self._trouble.pop(name, None)
        finally:
            self._began.pop(name, None)

    def live(self) -> tuple[str, ...]:
        """Why this process should be started again."""
        return self.watchdog.faults

    def ready(self) -> tuple[str, ...]:
        """Why this keeper neither leads nor could."""
        if self._stop.is_set():
            return ("The keeper is shutting down.",)
        if not self._running.is_set():
            return (self.opening.waits_for or "The keeper is starting.",)
        return (*self.watchdog.faults, *self._hindrances())

    def _hindrances(self) -> Iterator[str]:
        known = set()
        for name in self._rounds:
            if name in self._late(self._settings.connect_timeout_seconds * 2):
                known.add(f"A round of {name} takes long.")
            trouble = self._trouble.get(name)
            if isinstance(trouble, LedgerRefused):
                known.add("Postgres refuses the role, its password or the database.")
            elif isinstance(trouble, LedgerUnavailable):
                known.add("Postgres does not answer.")
            elif isinstance(trouble, BrokerUnavailable):
                known.add("Redis does not answer, or refuses.")
            elif trouble is not None:
                known.add(f"{name} fails; the log says why.")
        yield from sorted(known)

    def _late(self, seconds: float) -> list[str]:
        now = self.watchdog.now()
        began = dict(self._began)
        return [name for name, since in began.items() if now - since > seconds]

    def _faults(self) -> list[str]:
        if self.watchdog.now() - self._answered > 2 * ASK_EVERY:
            return []  # nobody asked, or Postgres is away too
        return [
            f"A round of {name} has taken over {self.limit:g} s though Postgres answers."
            for name in self._late(self.limit)
        ]

    def _ask(self) -> None:
        settings = self._settings
        while not self._stop.wait(ASK_EVERY):
            if not self._late(self.limit):
                continue
            ledger = Ledger(
                settings.database_url.get_secret_value(),
                name="celery-ledger keeper's health",
                connect_timeout=settings.connect_timeout_seconds,
                connections=1,
                schema=settings.ledger_schema,
                trusts_storage=settings.trust_postgres_storage,
            )
            with suppress(LedgerError):
                ledger.execute("SELECT 1")
                self._answered = self.watchdog.now()
            ledger.close()
