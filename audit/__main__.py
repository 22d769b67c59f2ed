"""`python -m audit`, for `make audit`. Ends with 1 on a finding, with 2 where advisories were not asked."""

import os
import sys

from audit import findings


def main() -> int:
    in_code = findings.of_the_code()
    _tell("code (bandit)", in_code)
    service = ["--vulnerability-service", os.environ.get("SERVICE") or "pypi"]
    try:
        in_dependencies = findings.of_the_dependencies(service)
    except findings.Unasked as error:
        print(f"dependencies (pip-audit): NOT AUDITED\n  {error}", file=sys.stderr)
        return 2
    _tell("dependencies (pip-audit)", in_dependencies)
    return 1 if in_code or in_dependencies else 0


def _tell(what: str, found: list[str]) -> None:
    print(f"{what}: {len(found) or 'no'} findings beyond audit/accepted.toml", flush=True)
    for each in found:
        print(f"  {each}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
