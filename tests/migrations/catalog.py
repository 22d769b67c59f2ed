"""What a schema has made, as text to compare."""

import subprocess

from tools.postgres_server import EMBEDDED, Server


def catalog(server: Server, database: str = "orders") -> list[str]:
    """Tables, constraints, indexes, policies, functions, owners and grants, as pg_dump writes them."""
    dump = subprocess.run(
        [EMBEDDED / "pg_dump", "--schema-only", "--dbname", server.url("postgres", database)],
        check=True,
        capture_output=True,
        text=True,
    )
    return [line for line in dump.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
