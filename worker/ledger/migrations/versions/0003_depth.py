"""Ten million jobs: an index for dead letters, statistics and vacuums in time."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
#: The oldest code that runs on the schema after this.
RUNS_CODE_FROM = "0002"


def upgrade() -> None:
    """Lock nothing of `workers` that a claim wants: it has that table, and waits for this one.

    The index blocks writes while it reads the table. Where that takes too long, it is built before,
    by hand and `CONCURRENTLY`, and found here; one whose building failed is built anew.
    """
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_index
                       WHERE indexrelid = to_regclass('jobs_listed') AND NOT indisvalid) THEN
                DROP INDEX jobs_listed;
            END IF;
        END $$
    """)
    op.create_index(
        "jobs_listed",
        "jobs",
        ["state", "id"],
        unique=False,
        postgresql_include=["queue", "task"],
        postgresql_where=sa.text("state IN ('failed', 'cancelled')"),
        if_not_exists=True,
    )
    op.create_index("groups_created", "groups", ["created_at"], unique=False)
    op.execute("""
        ALTER TABLE jobs SET (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02
        )
    """)
    op.execute("""
        ALTER TABLE attempts SET (
            autovacuum_vacuum_scale_factor = 0.05
        )
    """)
    op.execute("ALTER TABLE workers SET (fillfactor = 50)")
