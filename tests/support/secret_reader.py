"""Connects to the database at every input line, as a cloud's host would; runs in that cloud's environment.

A line with the variables of a database begins anew: no connection, no cached secret.
"""

import json
import logging
import os
import sys
from time import monotonic

from chalicelib import composition
from chalicelib.errors import Unavailable

SDKS = ("botocore", "azure.keyvault", "google.cloud.secretmanager", "oci")

logging.basicConfig(level=logging.DEBUG)  # as on OCI, where the root logger is at DEBUG
for line in sys.stdin:
    if variables := json.loads(line):
        composition.close()
        for name in [name for name in os.environ if name.startswith("DB_")]:
            del os.environ[name]
        os.environ.update(variables)
    started = monotonic()
    try:
        composition.connections().ping()
        outcome = "ready"
    except Unavailable:
        outcome = "unavailable"
    imported = [sdk for sdk in SDKS if sdk in sys.modules]
    sys.stdout.write(
        json.dumps({"outcome": outcome, "seconds": monotonic() - started, "sdks": imported}) + "\n"
    )
    sys.stdout.flush()
