"""The ledger: every job and every attempt, in Postgres. May touch: SQLAlchemy. May not: decide."""
