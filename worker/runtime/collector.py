"""Python's collector of cycles: a worker lets it look less often, and never at what it began with.

Each job makes and forgets some hundred objects, nearly all without a cycle. With Python's own
threshold of 700 or 2,000 the collector comes every few jobs, and at every tenth time looks at more.
"""

from __future__ import annotations

import gc
from typing import Final

#: Objects made, less those forgotten, before the collector looks at the youngest.
YOUNG: Final = 20_000
#: What Python 3.11 to 3.13 begin with.
PYTHONS: Final = frozenset({700, 2000})


def collect_seldom() -> None:
    """Call once, when everything is imported and nothing has forked: what is there by now is never
    looked at again, which also keeps its memory shared with children. A threshold of the user's own
    stays."""
    gc.collect()
    gc.freeze()
    youngest, *older = gc.get_threshold()
    if youngest in PYTHONS:
        gc.set_threshold(YOUNG, *older)
