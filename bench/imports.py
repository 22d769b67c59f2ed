"""The fixed stack, imported, and one connect: what every cold start of it pays at least."""

import os
from typing import Any

import chalice.app  # noqa: F401
import psycopg2
import sqlmodel  # noqa: F401


def handler(_event: Any, _context: Any) -> dict[str, Any]:
    psycopg2.connect(os.environ["DATABASE_URL"])
    return {"statusCode": 201, "body": "{}"}
