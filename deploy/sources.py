"""Copies the API's modules into a build, with the SQL expressions compiled to text.

So a build needs neither SQLModel nor SQLAlchemy, whose import would be most of a cold start
(docs/performance.md).
"""

import ast
import importlib
import os
import shutil
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from chalicelib.database.statement import Insert, Statement
from chalicelib.settings.database_tls import BUILT_AUTHORITY, authority_file
from chalicelib.settings.environment import SettingsError

PROJECT = Path(__file__).parent.parent
AUTHORITY = f"chalicelib/{BUILT_AUTHORITY.name}"
"""Where the certificates of the database's authority are in a build that has them."""


def authority() -> bytes:
    """The content of the file that DB_SSLROOTCERT names on this machine; empty when it is not set.

    Raises SystemExit if the function could not use it, and if it contains a private key.
    """
    if not os.environ.get("DB_SSLROOTCERT"):
        return b""
    try:
        path = authority_file()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)  # as libpq will
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    except ssl.SSLError:
        raise SystemExit(
            f"DB_SSLROOTCERT is {path!r}: its certificates are damaged. Fetch it again"
        ) from None
    certificates = Path(path).read_bytes()
    if b" PRIVATE KEY-----" in certificates:
        raise SystemExit(f"DB_SSLROOTCERT is {path!r}: it holds a private key. Use the certificates alone")
    return certificates


def copy(into: Path, authority: bytes) -> None:
    """Copy app.py and chalicelib/, without `tables.py` modules and with each `statements.py` compiled.

    `authority`: the certificates of the database's authority; empty for none.
    """
    shutil.copy(PROJECT / "app.py", into)
    left_out = shutil.ignore_patterns("__pycache__", "tables.py", "statements.py", Path(AUTHORITY).name)
    shutil.copytree(PROJECT / "chalicelib", into / "chalicelib", ignore=left_out)
    for source in statement_modules():
        (into / source).write_text(compiled(source))
    if authority:
        (into / AUTHORITY).write_bytes(authority)


def statement_modules() -> list[Path]:
    """Every `statements.py` in chalicelib/, relative to the project."""
    return sorted(path.relative_to(PROJECT) for path in (PROJECT / "chalicelib").rglob("statements.py"))


def compiled(source: Path) -> str:
    """The source of a module with the public names of a `statements.py`, and text as their values.

    Raises SystemExit on a name whose value cannot be written as text.
    """
    module = importlib.import_module(".".join(source.with_suffix("").parts))  # imports SQLAlchemy
    values = {name: getattr(module, name) for name in exports((PROJECT / source).read_text())}
    for name, value in values.items():
        if not _is_text(value):
            raise SystemExit(f"{source}: a build cannot represent {name}, a {type(value).__name__}")
    rows = {row for value in values.values() for row in _row_types(value)}
    lines = [
        '"""SQL compiled from expressions over the tables (deploy/sources.py)."""',
        "from chalicelib.database.statement import Insert, Statement",
        *sorted(f"from {row.__module__} import {row.__name__}" for row in rows),
        *(f"{name} = {value!r}" for name, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def exports(source: str) -> list[str]:
    """The public names that a module binds itself, without imports."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [
                name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            ]
    return [name for name in names if not name.startswith("_")]


def _is_text(value: object) -> bool:
    """Whether its repr is its source."""
    if isinstance(value, dict):
        return all(map(_is_text, (*value, *value.values())))
    if type(value) in (tuple, list, set, frozenset):
        return all(map(_is_text, cast("Iterable[object]", value)))
    return value is None or type(value) in (Statement, Insert, str, bytes, int, float, bool)


def _row_types(value: object) -> Iterator[type]:
    """The NamedTuples that the statements in a value name."""
    if isinstance(value, Statement):
        yield from [value.row] if value.row else []
    elif isinstance(value, dict):
        for member in value.values():
            yield from _row_types(member)
    elif isinstance(value, tuple | list | set | frozenset):
        for member in value:
            yield from _row_types(member)
