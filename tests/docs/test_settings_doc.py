from __future__ import annotations

import re

from pydantic_core import PydanticUndefined

from tests.docs.pages import read
from worker.settings import Settings, variable_of


def row_of(field: str) -> str:
    """A setting's line in docs/settings.md."""
    info = Settings.model_fields[field]
    return f"| `{variable_of(field)}` | {shown(info.default)} | {info.description} |"


def shown(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_has_its_line_in_the_page() -> None:
    page = read("docs/settings.md").splitlines()

    missing = [row for row in map(row_of, Settings.model_fields) if row not in page]

    assert not missing, "docs/settings.md lacks:\n" + "\n".join(missing)


def test_the_page_has_no_line_for_a_setting_that_is_not() -> None:
    told = re.findall(r"^\| `(\w+)` \|", read("docs/settings.md"), re.MULTILINE)

    assert sorted(told) == sorted(map(variable_of, Settings.model_fields))


def test_every_setting_has_a_description() -> None:
    assert all(info.description for info in Settings.model_fields.values())
