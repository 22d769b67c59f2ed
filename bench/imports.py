"""Imports the stack and connects once: the minimum of every cold start with it."""

import os
from typing import Any

import chalice.app  # noqa: F401
import psycopg2
import sqlmodel  # noqa: F401


def handler(_event: Any, _context: Any) -> dict[str, Any]:
    psycopg2.connect(os.environ["DATABASE_URL"])
    return {"statusCode": 201, "body": "{}"}
