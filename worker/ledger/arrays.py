"""Array literals of Postgres: one text for a whole column, where a driver writes an expression.

Postgres parses `ARRAY['a', 'b', …]` into a node for each element, and psycopg2 asks for each how it
is to be quoted; of a literal it reads the elements in a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What a column may hold.
Value = str | bytes | bytearray | memoryview | int | float | None


def literal(values: Sequence[Value]) -> str:
    """The literal of a column of texts, of bytes or of numbers, with NULLs.

    Source: "Array Input and Output Syntax" of Postgres's documentation, section 8.15.6, and of
    "bytea Hex Format", section 8.4.1.

    Raises:
        TypeError: a value of another type.
    """
    if values and values.count(values[0]) == len(values):  # as of a batch's task and queue
        return "{" + ",".join([_element(values[0])] * len(values)) + "}"
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Value) -> str:
    # By the base types' own methods: a subclass may mean something else by them.
    if isinstance(value, str):
        escaped = str.replace(str.replace(value, "\\", "\\\\"), '"', '\\"')
        return f'"{escaped}"'
    if value is None:
        return "NULL"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f'"\\\\x{bytes(value).hex()}"'
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    raise TypeError(f"no column holds a {type(value).__name__}")
