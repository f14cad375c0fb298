"""A schema of our own: `worker.ledger.namespace` has moved the tables there before this runs.

The migrations name no schema: the path leads to the right one.
"""

revision = "0004"
down_revision = "0003"
#: The oldest code that runs on the schema after this: what is older looks in `public`.
RUNS_CODE_FROM = "0004"


def upgrade() -> None:
    """Each part of this release adds its columns in a function of its own, called here."""
