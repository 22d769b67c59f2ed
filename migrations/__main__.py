"""`make migrate`: brings the database of OWNER_DATABASE_URL to this release's schema, or prints the SQL."""

import os

import psycopg2
from psycopg2.extensions import set_wait_callback
from psycopg2.extras import wait_select

from chalicelib.database.schema_check import SCHEMA_VERSION
from chalicelib.settings.environment import SettingsError
from migrations.migrate import migrate, print_sql


def main() -> None:
    if os.environ.get("SQL"):
        print_sql(_start())
        return
    url = os.environ.get("OWNER_DATABASE_URL")
    if not url:
        raise SystemExit(
            "Set OWNER_DATABASE_URL=postgresql://owner:password@host:5432/orders, as the tables' owner. "
            "Without a connection: make migrate SQL=1 FROM=2 prints the migrations after version 2"
        )
    set_wait_callback(wait_select)  # without it Ctrl-C waits for the statement's end
    try:
        migrate(url, quiet=False)
    except (KeyboardInterrupt, psycopg2.errors.QueryCanceled):
        raise SystemExit("\nInterrupted. The API is not affected: repeat make migrate to continue") from None
    except (SettingsError, psycopg2.Error) as error:
        raise SystemExit(str(error).strip()) from None
    print(f"The database is at version {SCHEMA_VERSION}")


def _start() -> int:
    """FROM: the version that the database has, by `select max(version) from schema_version`."""
    start = os.environ.get("FROM") or "2"
    if not start.isdecimal() or not 2 <= int(start) < SCHEMA_VERSION:
        raise SystemExit(f"FROM={start}: take the database's version, from 2 to {SCHEMA_VERSION - 1}")
    return int(start)


if __name__ == "__main__":
    main()
