"""A schema of our own: `worker.ledger.namespace` has moved the tables there before this runs.

The migrations name no schema: the path leads to the right one.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0004"
down_revision = "0003"
#: The oldest code that runs on the schema after this: what is older looks in `public`.
RUNS_CODE_FROM = "0004"


def upgrade() -> None:
    """Each part of this release adds its columns in a function of its own, called here."""
    add_tasks_of_workers()
    list_jobs_by_time()


def add_tasks_of_workers() -> None:
    """A worker's lease says which tasks it knows; null is any."""
    op.add_column("workers", sa.Column("tasks", ARRAY(sa.Text()), nullable=True))


def list_jobs_by_time() -> None:
    """Indexes for people, who list jobs by time.

    They block writes while they are built. Where that takes too long, they are built before, by
    hand and `CONCURRENTLY`, and found here; one whose building failed is built anew.
    """
    for name in ("jobs_created", "jobs_dead_letters"):
        op.execute(f"""
            DO $$ BEGIN
                IF EXISTS (SELECT FROM pg_index
                           WHERE indexrelid = to_regclass('{name}') AND NOT indisvalid) THEN
                    DROP INDEX {name};
                END IF;
            END $$
        """)
    op.create_index("jobs_created", "jobs", ["created_at"], unique=False, if_not_exists=True)
    op.create_index(
        "jobs_dead_letters",
        "jobs",
        ["state", "created_at", "id"],
        unique=False,
        postgresql_include=["queue", "task"],
        postgresql_where=sa.text("state IN ('failed', 'cancelled')"),
        if_not_exists=True,
    )
    op.drop_index("jobs_listed", "jobs", if_exists=True)
