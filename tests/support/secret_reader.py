"""Connects to the database at every input line, as a cloud's host would; runs in that cloud's environment."""

import json
import logging
import sys
from time import monotonic

from chalicelib.composition import connections
from chalicelib.errors import Unavailable

SDKS = ("botocore", "azure.keyvault", "google.cloud.secretmanager", "oci")

logging.basicConfig(level=logging.DEBUG)  # as on OCI, where the root logger is at DEBUG
for _ in sys.stdin:
    started = monotonic()
    try:
        connections().ping()
        outcome = "ready"
    except Unavailable:
        outcome = "unavailable"
    imported = [sdk for sdk in SDKS if sdk in sys.modules]
    sys.stdout.write(
        json.dumps({"outcome": outcome, "seconds": monotonic() - started, "sdks": imported}) + "\n"
    )
    sys.stdout.flush()
