"""Every row, asserted on stock Celery with Redis results and on a durable app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import kombu.pools
import pytest

from tests.parity.__main__ import PAGE, page
from tests.parity.rows import Row, all_rows
from tests.parity.side import SIDES, Side, both

ROWS = all_rows()

# Celery's own Redis backend calls it, on the stock side.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_connections_are_left() -> None:
    """In place of the session's: the apps of the two sides keep theirs for every row."""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Side]]:
    """The two sides, for every row of this module."""
    with both(tmp_path_factory.mktemp("parity")) as made:
        yield made
    kombu.pools.reset()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.area}: {row.says}")
def test_a_side_behaves_as_the_table_says(row: Row, side: str, sides: dict[str, Side]) -> None:
    assert row.ask(sides[side]) == getattr(row, side)


def test_there_are_enough_rows_and_none_twice() -> None:
    assert len(ROWS) >= 150
    assert [says for says, times in Counter(row.says for row in ROWS).items() if times > 1] == []


def test_the_page_is_made_of_these_rows() -> None:
    assert PAGE.read_text() == page(), "write the page anew: python -m tests.parity --page"
