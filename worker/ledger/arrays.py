"""Array literals of Postgres: one text for a whole column, where a driver writes an expression.

Postgres parses `ARRAY['a', 'b', …]` into a node for each element, and psycopg2 asks for each how it
is to be quoted; of a literal it reads the elements in a loop.
"""

from __future__ import annotations

from collections.abc import Sequence


def literal(values: Sequence[str | bytes | float | None]) -> str:
    """The literal of a column of texts, of bytes or of numbers, with NULLs.

    Source: "Array Input and Output Syntax" of Postgres's documentation, section 8.15.6, and of
    "bytea Hex Format", section 8.4.1.
    """
    if values and values.count(values[0]) == len(values):  # as of a batch's task and queue
        return "{" + ",".join([_element(values[0])] * len(values)) + "}"
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | bytes | float | None) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    return repr(value)
