"""Ask both sides every row, and print what they show; or write the page of the table.

    python -m tests.parity [--area AREA] [--page]

A program for people: the test of the same rows is test_parity.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Final

from tests import leftovers
from tests.parity.rows import Row, all_rows
from tests.parity.side import SIDES, Side, both

PAGE: Final = Path(__file__).parents[2] / "docs" / "parity.md"

_HEAD: Final = """\
# Celery's documented behaviours, on stock Celery and here

Each line is one behaviour that Celery documents. One program asserts it twice: on stock Celery
5.7 with Redis as broker and result backend, and on the same tasks in a durable app. `make test`
runs it; `python -m tests.parity` prints what each side shows.

This page is written by `python -m tests.parity --page`, and a test compares it with the program.

{rows} behaviours, of which {differ} differ on purpose. The differences come first.

## What differs, and why

| behaviour | stock | here | why |
|---|---|---|---|
"""


def page() -> str:
    """The page, from the rows."""
    rows = all_rows()
    different = [row for row in rows if row.differs]
    lines = [_HEAD.format(rows=len(rows), differ=len(different))]
    lines += [
        f"| {row.says} | `{_cell(row.stock)}` | `{_cell(row.durable)}` | {row.why} |\n"
        for row in different
    ]
    for area, group in groupby((row for row in rows if not row.differs), key=lambda row: row.area):
        lines.append(f"\n## The same: {area}\n\n| behaviour | both show |\n|---|---|\n")
        lines += [f"| {row.says} | `{_cell(row.stock)}` |\n" for row in group]
    return "".join(lines)


def _cell(value: object) -> str:
    return repr(value).replace("|", "\\|")


def _seen(row: Row, side: Side) -> str:
    try:
        return repr(row.ask(side))
    except Exception as exc:
        return f"raised {type(exc).__name__}: {exc}"


def main() -> int:
    """Run the program; 1 when a side shows something else than the table says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--area", help="only the rows of this area")
    parser.add_argument("--page", action="store_true", help="write docs/parity.md and end")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page())
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, both(Path(folder)) as sides:
        for row in all_rows():
            if options.area in (None, row.area):
                wrong += _compare(row, sides)
    print(f"{wrong} of the answers are not what the table says.")
    return 1 if wrong else 0


def _compare(row: Row, sides: dict[str, Side]) -> int:
    wrong = 0
    print(f"{row.area}: {row.says}")
    for name in SIDES:
        began = time.monotonic()
        seen, wanted = _seen(row, sides[name]), repr(getattr(row, name))
        took = time.monotonic() - began
        if seen == wanted:
            print(f"   {name:8} {took:5.2f} s  {seen}")
        else:
            wrong += 1
            print(f" ! {name:8} {took:5.2f} s  {seen}\n     the table says  {wanted}")
    sys.stdout.flush()
    return wrong


if __name__ == "__main__":
    leftovers.begin()  # what it makes goes with it, however it ends
    sys.exit(main())
