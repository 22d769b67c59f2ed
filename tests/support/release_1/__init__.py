"""Release 1.0.0, as migrations and deployments meet it: its schema, and the SQL that it sends."""

from pathlib import Path

from tools.postgres_server import connected

SCHEMA = Path(__file__).parent / "schema.sql"


def apply_release_1(owner_url: str) -> None:
    """Release 1.0.0's schema.sql, on an empty database."""
    with connected(owner_url) as connection:
        connection.cursor().execute(SCHEMA.read_text())
