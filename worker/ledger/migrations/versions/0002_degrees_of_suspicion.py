"""Suspicion has degrees; a lease says whose pod it is in, and how many jobs it has room for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
#: The oldest code that runs on the schema after this.
RUNS_CODE_FROM = "0002"


def upgrade() -> None:
    """Keep who is a suspect: all of them were lost among others, and none truly alone."""
    op.add_column(
        "jobs",
        sa.Column("suspicion", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.execute("UPDATE jobs SET suspicion = 1 WHERE suspect")
    op.drop_index("jobs_suspects", "jobs")
    op.drop_column("jobs", "suspect")
    op.create_index(
        "jobs_suspects",
        "jobs",
        ["queue", "dispatch_seq"],
        unique=False,
        postgresql_where=sa.text("suspicion > 0 AND state = 'queued'"),
    )
    op.add_column("workers", sa.Column("pod", sa.Text(), nullable=True))
    op.add_column(
        "workers", sa.Column("slots", sa.Integer(), server_default=sa.text("1"), nullable=False)
    )
