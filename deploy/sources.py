"""The API's own modules as every build ships them: with SQL in the place of the expressions it is made of.

So SQLModel and SQLAlchemy, which would be most of a cold start (docs/performance.md), stay at home.
"""

import os
import shutil
import ssl
from pathlib import Path

from chalicelib.database.statement import Statement
from chalicelib.settings.database_tls import BUILT_AUTHORITY, authority_file
from chalicelib.settings.environment import SettingsError

PROJECT = Path(__file__).parent.parent
AUTHORITY = f"chalicelib/{BUILT_AUTHORITY.name}"
"""Where the certificates of the database's authority are in a build that has them."""


def authority() -> bytes:
    """What is in the file that DB_SSLROOTCERT names on this machine; nothing when it is not set.

    Raises SystemExit on what the function could not use, and on what must not travel.
    """
    if not os.environ.get("DB_SSLROOTCERT"):
        return b""
    try:
        path = authority_file()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)  # as libpq will
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    except ssl.SSLError:
        raise SystemExit(f"DB_SSLROOTCERT is {path!r}: its certificates are damaged. Fetch it anew") from None
    found = Path(path).read_bytes()
    if b" PRIVATE KEY-----" in found:
        raise SystemExit(f"DB_SSLROOTCERT is {path!r}: it holds a private key. Use the certificates alone")
    return found


def copy(into: Path, authority: bytes) -> None:
    """app.py and chalicelib/, without the tables and with the text of each statement.

    And with the authority's certificates where there are any.
    """
    shutil.copy(PROJECT / "app.py", into)
    left_out = shutil.ignore_patterns("__pycache__", "tables.py", "statements.py", Path(AUTHORITY).name)
    shutil.copytree(PROJECT / "chalicelib", into / "chalicelib", ignore=left_out)
    (into / "chalicelib" / "orders" / "statements.py").write_text(compiled_statements())
    if authority:
        (into / AUTHORITY).write_bytes(authority)


def compiled_statements() -> str:
    """A module with the same names as chalicelib/orders/statements.py, made of text."""
    from chalicelib.orders import statements  # with SQLAlchemy: only a build needs them

    lines = [
        '"""The SQL of the repository, compiled from its expressions over the tables."""',
        "from chalicelib.database.statement import Statement",
        *(f"{name} = {found!r}" for name, found in vars(statements).items() if _is_one_or_more(found)),
    ]
    return "\n".join(lines) + "\n"


def _is_one_or_more(found: object) -> bool:
    if isinstance(found, dict):
        return bool(found) and all(isinstance(each, Statement) for each in found.values())
    return isinstance(found, Statement)
