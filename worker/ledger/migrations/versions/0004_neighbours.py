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


def add_tasks_of_workers() -> None:
    """A worker's lease says which tasks it knows; null is any."""
    op.add_column("workers", sa.Column("tasks", ARRAY(sa.Text()), nullable=True))
