"""Checks the locks that each migration takes (squawk, https://squawkhq.com), for `make lint`."""

import subprocess
import sys
from pathlib import Path

from alembic.script import ScriptDirectory

from migrations.migrate import alembic_config, migration_sql
from migrations.session import SESSION

SQUAWK = Path(sys.executable).with_name("squawk")


def main() -> None:
    """Exits with 1 when squawk objects to one."""
    results = []
    for script in ScriptDirectory.from_config(alembic_config()).walk_revisions():
        if script.down_revision:
            sql = SESSION + migration_sql(f"{script.down_revision}:{script.revision}")
            command = [str(SQUAWK), "--stdin-filepath", script.path]
            result = subprocess.run(command, input=sql, text=True, capture_output=True, check=False)  # noqa: S603
            if result.returncode:
                print(result.stdout or result.stderr)
            results.append(result.returncode)
    if any(results):
        raise SystemExit(1)
    print(f"squawk: {len(results)} migrations are clean")


if __name__ == "__main__":
    main()
