"""The table in docs/configuration.md matches chalicelib/settings/table.py."""

import re

from chalicelib.settings.table import SETTINGS
from deploy import configuration_page
from tests.support.builds import PROJECT

PAGE = configuration_page.PAGE.read_text()


def test_the_page_has_the_current_table() -> None:
    assert configuration_page.with_table(PAGE) == PAGE, "run make docs"


def test_the_page_names_every_setting_once() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE)

    assert rows == list(SETTINGS)


def test_a_stale_table_is_replaced_and_the_rest_kept() -> None:
    stale = PAGE.replace("| `DB_POOL_SIZE` | `5` |", "| `DB_POOL_SIZE` | `4` |").replace("| `DOCS` |", "")

    assert stale != PAGE
    assert configuration_page.with_table(stale) == PAGE


def test_azures_example_settings_are_in_the_table() -> None:
    example = (PROJECT / "shims/azure/local.settings.example.json").read_text()
    names = set(re.findall(r'"([A-Z_]+)": ', example)) - {"FUNCTIONS_WORKER_RUNTIME"}

    assert names
    assert names <= SETTINGS.keys()
