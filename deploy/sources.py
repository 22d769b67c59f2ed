"""The API's own modules as every build ships them: with SQL in the place of the expressions it is made of.

So SQLModel and SQLAlchemy, which would be most of a cold start (docs/performance.md), stay at home.
"""

import shutil
from pathlib import Path

from chalicelib import statements
from chalicelib.database import Statement

PROJECT = Path(__file__).parent.parent


def copy(into: Path) -> None:
    """app.py and chalicelib/, without the tables and with the text of each statement."""
    shutil.copy(PROJECT / "app.py", into)
    left_out = shutil.ignore_patterns("__pycache__", "tables.py", "statements.py")
    shutil.copytree(PROJECT / "chalicelib", into / "chalicelib", ignore=left_out)
    (into / "chalicelib" / "statements.py").write_text(compiled_statements())


def compiled_statements() -> str:
    """A module with the same names as chalicelib/statements.py, made of text."""
    lines = [
        '"""The SQL of the repository, compiled from its expressions over the tables."""',
        "from chalicelib.database import Statement",
        *(f"{name} = {found!r}" for name, found in vars(statements).items() if _is_one_or_more(found)),
    ]
    return "\n".join(lines) + "\n"


def _is_one_or_more(found: object) -> bool:
    if isinstance(found, dict):
        return bool(found) and all(isinstance(each, Statement) for each in found.values())
    return isinstance(found, Statement)
