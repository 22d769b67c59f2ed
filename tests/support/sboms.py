"""Checks an SBOM by the schema of CycloneDX 1.6."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from deploy import sbom


def schema_errors(folder: Path) -> object:
    """Errors of the folder's SBOM, including unknown members; None if there are none."""
    return errors_in(json.loads((folder / sbom.NAME).read_text()))


def errors_in(document: dict[str, Any]) -> object:
    return _validator().validate_str(json.dumps(document))


@cache
def _validator() -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator  # takes seconds to import

    return JsonStrictValidator(SchemaVersion.V1_6)
