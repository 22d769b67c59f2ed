"""The settings table is complete: code reads every entry and no other variable."""

import ast
import re
from pathlib import Path

import pytest
from opentelemetry.sdk import environment_variables

from chalicelib.settings.environment import text
from chalicelib.settings.table import BUILD, EVERY_HOST, LAMBDA, OPENTELEMETRY, OTHER_HOSTS, SETTINGS
from tests.support.builds import PROJECT

READERS = PROJECT / "chalicelib" / "settings"
SOURCES = [PROJECT / "app.py", *(PROJECT / "chalicelib").rglob("*.py"), *(PROJECT / "shims").rglob("*.py")]


def variables_in(module: Path) -> set[str]:
    """String constants of a module that look like a variable's name."""
    constants = (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant))
    texts = {node.value for node in constants if isinstance(node.value, str)}
    return {name for name in texts if re.fullmatch("[A-Z]+(_[A-Z]+)+", name) or name in SETTINGS}


def test_the_readers_read_exactly_the_table() -> None:
    modules = [module for module in READERS.glob("*.py") if module.name != "table.py"]
    read = {name for module in modules for name in variables_in(module)}

    declared = {name for name, setting in SETTINGS.items() if setting.passed_to != OPENTELEMETRY}
    assert read - declared == set(), "read, but not in the table"
    assert declared - read == set(), "in the table, but never read"


def test_opentelemetry_reads_its_entries_of_the_table() -> None:
    passed_on = {name for name, setting in SETTINGS.items() if setting.passed_to == OPENTELEMETRY}

    assert passed_on <= set(vars(environment_variables))


def test_only_the_readers_read_the_environment() -> None:
    other_modules = [module for module in SOURCES if module != READERS / "environment.py"]

    assert [str(module) for module in other_modules if reads_environment(module)] == []


def reads_environment(module: Path) -> bool:
    """Whether it uses `os.environ` or `getenv`, other than to set a variable for a library."""
    without_assignments = re.sub(r"(?m)^os\.environ\[.*\] = ", "", module.read_text())
    return bool(re.search(r"os\.environ|getenv|import environ", without_assignments))


def test_a_variable_outside_the_table_cannot_be_read() -> None:
    with pytest.raises(KeyError):
        text("DB_UNKNOWN")


def test_every_setting_says_where_it_is_passed() -> None:
    assert {setting.passed_to for setting in SETTINGS.values()} == {
        BUILD,
        EVERY_HOST,
        LAMBDA,
        OPENTELEMETRY,
        OTHER_HOSTS,
    }
