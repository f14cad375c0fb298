from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.docs.pages import ROOT, read

LEVELS = {"warning", "error", "exception", "critical"}


def warnings_of_the_service() -> Iterator[str]:
    """Each text that a `logger.warning` or worse may log, as the source has it."""
    for file in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield str(node.args[0].value)


def test_every_warning_has_its_line_in_the_page() -> None:
    page = read("docs/operations.md")
    missing = {text for text in warnings_of_the_service() if f"| `{text}` |" not in page}

    assert not missing, "docs/operations.md lacks:\n" + "\n".join(sorted(missing))


def test_the_page_explains_no_warning_that_is_not_given() -> None:
    given = set(warnings_of_the_service())
    told = {
        line.split("`")[1]
        for line in read("docs/operations.md").partition("## What the log says")[2].splitlines()
        if line.startswith("| `")
    }

    assert told <= given, sorted(told - given)
