"""`make docs`: writes the table of docs/configuration.md from chalicelib/settings/table.py."""

from pathlib import Path

from chalicelib.settings.table import SETTINGS, Setting

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
START = "<!-- Made by `make docs` from chalicelib/settings/table.py -->\n"
END = "<!-- End of what `make docs` writes -->\n"


def with_table(page: str) -> str:
    """The page with the current table between START and END."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + table() + END + after


def table() -> str:
    head = "| variable | default | meaning | passed on to |\n|---|---|---|---|\n"
    return head + "".join(map(_row, SETTINGS.values()))


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else setting.note
    return f"| `{setting.name}` | {default} | {setting.meaning} | {setting.passed_to} |\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
