"""The keeper: leads or waits, and while it leads runs each duty in a thread of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable, LeaseLost, LedgerError, LedgerUnavailable
from worker.jobs.job import Ring
from worker.keeper.health import LEADING, ROUND_SECONDS, Health
from worker.ledger.database import ANSWERS, Ledger
from worker.ledger.effort import Effort
from worker.ledger.faults import NotDone
from worker.ledger.leader import Leadership
from worker.ledger.migrate import check_schema
from worker.ledger.silence import patient
from worker.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds that a lead lasts without being taken again, and between taking it.
LEAD_SECONDS = 5.0
LEAD_EVERY = 1.0
#: Seconds for which a keeper that waits for the lead is known to, and between saying so.
STANDBY_SECONDS = 10.0
STANDBY_EVERY = 3.0
#: Seconds that a duty waits after a store was away.
AWAY_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Post:
    """What a duty works with."""

    ledger: Ledger
    doorbells: Doorbells
    leadership: Leadership
    settings: Settings

    def ring(self, rings: Sequence[Ring]) -> bool:
        """Push doorbells, best effort: what is not pushed is found to be lost later.

        Returns:
            Whether Redis took them; who has more to ring for waits until it does.
        """
        try:
            self.doorbells.ring(rings)
        except BrokerUnavailable as exc:
            logger.warning("%d doorbells are late: %s", len(rings), exc)
            return False
        return True

    def patient(self, effort: Effort) -> AbstractContextManager[None]:
        """Wait for each answer as `effort` says, and not so long that two such waits in one round
        would look like a wedge."""
        usual = ANSWERS * self.settings.connect_timeout_seconds
        return patient(min(effort.times, max(1, int(ROUND_SECONDS / 2 / usual))))


class Duty(Protocol):
    """One thing that the keeper does again and again."""

    #: Seconds between two rounds.
    every: float

    def run(self, post: Post) -> bool:
        """One round; True when there is more to do at once.

        Raises:
            LeaseLost: somebody else leads now.
            Unavailable: a store is away.
        """
        ...


class Keeper:
    """Takes the lead when it is free, and does the duties while it has it.

    Args:
        settings: the configuration.
        duties: what to do.
    """

    def __init__(self, settings: Settings, duties: Sequence[Duty]) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        timeout = settings.connect_timeout_seconds
        self._post = Post(
            Ledger(
                settings.database_url.get_secret_value(),
                name="celery-ledger keeper",
                connect_timeout=timeout,
                connections=len(duties) + 1,
                schema=settings.ledger_schema,
                trusts_storage=settings.trust_postgres_storage,
            ),
            Doorbells(settings.redis_url.get_secret_value(), timeout),
            Leadership("keeper", holder, LEAD_SECONDS),
            settings,
        )
        self._duties = duties
        self.health = Health(settings, [LEADING, *map(_name_of, duties)])
        self._leads = threading.Event()
        self._is_told = False  # that the lead cannot be taken
        self._stands_by_at = 0.0
        self._stop = threading.Event()

    @property
    def leads(self) -> bool:
        """Whether this keeper leads, as far as it knows."""
        return self._leads.is_set()

    def stop(self) -> None:
        """End `run` soon; safe in a signal handler."""
        self._stop.set()

    def await_ledger(self) -> None:
        """Wait until Postgres answers and the schema is there, or until `stop`.

        Raises:
            ConfigurationError: this code does not run on the schema.
        """
        while not self._stop.is_set() and not self.health.opening.goes(
            lambda: check_schema(self._post.ledger)
        ):
            self._stop.wait(AWAY_PAUSE)

    def run(self) -> None:
        """Keep until `stop`; then finish the round under way and resign."""
        threads = [
            threading.Thread(target=self._serve, args=(duty,), name=_name_of(duty))
            for duty in self._duties
        ]
        for thread in threads:
            thread.start()
        self.health.watch()
        try:
            while not self._stop.is_set():
                self._take_the_lead()
                self._stop.wait(LEAD_EVERY)
        finally:
            self._stop.set()
            self.health.stop()
            for thread in threads:
                thread.join()
            self._resign()

    def _take_the_lead(self) -> None:
        try:
            with self.health.round_of(LEADING), _told():
                leads = self._post.leadership.take(self._post.ledger)
                if not leads:
                    self._stand_by()
            self._is_told = False
        except LedgerUnavailable as exc:
            if self.leads:
                logger.warning("The lead could not be extended: %s", exc)
            leads = False
        except LedgerError:
            # Nor must this end the keeper: it may be the only one, and the fault may pass.
            if not self._is_told:
                logger.exception("The lead could not be taken, trying again")
            self._is_told, leads = True, False
        if leads and not self.leads:
            logger.info("Leading as %s.", self._post.leadership.holder)
        if leads:
            self._leads.set()
        else:
            self._leads.clear()

    def _stand_by(self) -> None:
        if time.monotonic() >= self._stands_by_at:
            self._post.leadership.stand_by(self._post.ledger, STANDBY_SECONDS)
            self._stands_by_at = time.monotonic() + STANDBY_EVERY

    def _resign(self) -> None:
        try:
            self._post.leadership.resign(self._post.ledger)
        except LedgerError as exc:
            logger.warning("The lead is left to expire: %s", exc)
        self._post.ledger.close()
        self._post.doorbells.close()

    def _serve(self, duty: Duty) -> None:
        away, effort = False, Effort()
        while not self._stop.is_set():
            pause = duty.every
            try:
                with self.health.round_of(_name_of(duty)), self._post.patient(effort):
                    if self.leads:
                        pause = 0.0 if duty.run(self._post) else pause
                        effort.done()
                away = False
            except LeaseLost:
                self._leads.clear()
            except LedgerError as exc:
                if isinstance(exc, NotDone):
                    effort.too_much()
                if not away:
                    logger.warning("%s waits: %s", _name_of(duty), exc)
                away, pause = True, max(pause, AWAY_PAUSE)
            except Exception:
                # One bad round must not end the keeper: nobody else would find lost jobs.
                logger.exception("%s failed, trying again", _name_of(duty))
                pause = max(pause, AWAY_PAUSE)
            self._stop.wait(pause)


@contextmanager
def _told() -> Iterator[None]:
    """A fault that is none of the house's counts as trouble of the round too."""
    try:
        yield
    except LedgerError:
        raise
    except Exception as exc:
        raise LedgerError("a fault of our own") from exc


def _name_of(duty: Duty) -> str:
    return type(duty).__name__
