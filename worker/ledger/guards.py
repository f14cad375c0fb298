"""Guards: the state that a statement expects of a row which its id names.

Each stands in a subquery, where the planner does not see it. Else it takes the partial index of
that state, which the statistics of a quiet time call tiny, and reads all of it, the entries of
every earlier version of a row included.
"""

from __future__ import annotations

from typing import Final

QUEUED: Final = "(SELECT 'queued')"
RUNNING: Final = "(SELECT 'running')"
