"""One leader among several replicas, by a lease row on the database's clock."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from worker.errors import LeaseLost
from worker.ledger.database import Ledger
from worker.ledger.guards import is_ahead

# A lead that lasts for longer than any lead is from before a step of the clock: its holder, if it
# lives, extends it every second, and loses at the worst the economy of leading.
_TAKE = text(f"""
    INSERT INTO ledger.leaders (name, holder, expires_at)
    VALUES (:name, :holder, clock_timestamp() + :seconds * interval '1 second')
    ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, expires_at = excluded.expires_at
    WHERE leaders.holder = excluded.holder OR leaders.expires_at < clock_timestamp()
       OR {is_ahead("leaders.expires_at - :seconds * interval '1 second'")}
    RETURNING holder
""")  # noqa: S608 -- constants of the ledger

# Share-locked until the duty commits: nobody can take over in the middle of it.
_CHECK = text("""
    SELECT FROM ledger.leaders
    WHERE name = :name AND holder = :holder AND expires_at > clock_timestamp()
    FOR SHARE
""")

_RESIGN = text("""
    DELETE FROM ledger.leaders
    WHERE holder = :holder AND (name = :name OR starts_with(name, :name || ' standby '))
""")

# Nothing depends on it: people want to know who would take over.
_STAND_BY = text("""
    WITH gone AS (
        DELETE FROM ledger.leaders
        WHERE starts_with(name, :name || ' standby ') AND holder <> :holder
          AND expires_at < clock_timestamp() - interval '1 minute'
    )
    INSERT INTO ledger.leaders (name, holder, expires_at)
    VALUES (:name || ' standby ' || :holder, :holder,
            clock_timestamp() + :seconds * interval '1 second')
    ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at
""")


@dataclass(frozen=True, slots=True)
class Leadership:
    """A claim to lead.

    A session's advisory lock would be simpler, and leaves no leader for as long as its holder is
    stopped or half-open. This lease just expires.

    Attributes:
        name: what is led.
        holder: unique to this process.
        seconds: how long the lease lasts without being taken again.
    """

    name: str
    holder: str
    seconds: float

    def take(self, ledger: Ledger) -> bool:
        """Take or extend the lead; False when somebody else holds it.

        Raises:
            Unavailable: Postgres is away.
        """
        parameters = {"name": self.name, "holder": self.holder, "seconds": self.seconds}

        def work(connection: Connection) -> bool:
            return connection.execute(_TAKE, parameters).first() is not None

        return ledger.run(work)

    def stand_by(self, ledger: Ledger, seconds: float) -> None:
        """Make known for `seconds` that this process would lead if nobody did.

        Raises:
            Unavailable: Postgres is away.
        """
        parameters = {"name": self.name, "holder": self.holder, "seconds": seconds}
        ledger.run(lambda connection: connection.execute(_STAND_BY, parameters))

    def check(self, connection: Connection) -> None:
        """Make sure, inside a duty's transaction, that the lead is still held.

        Raises:
            LeaseLost: it is not; the transaction must not go on.
        """
        row = connection.execute(_CHECK, {"name": self.name, "holder": self.holder}).first()
        if row is None:
            raise LeaseLost(f"{self.holder} no longer leads {self.name}.")

    def resign(self, ledger: Ledger) -> None:
        """Let somebody else lead at once."""
        parameters = {"name": self.name, "holder": self.holder}
        ledger.run(lambda connection: connection.execute(_RESIGN, parameters))
