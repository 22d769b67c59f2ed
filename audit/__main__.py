"""`python -m audit`, for `make audit`. 1: there are findings; 2: the advisories could not be read."""

import os
import sys

from audit import advisories

SERVICES = ("pypi", "osv")


def main() -> int:
    service = os.environ.get("SERVICE") or "pypi"
    if service not in SERVICES:
        print(f"SERVICE is {service!r}: use {' or '.join(SERVICES)}", file=sys.stderr)
        return 2
    try:
        findings = advisories.findings(["--vulnerability-service", service])
    except advisories.NotAudited as error:
        print(f"dependencies (pip-audit): NOT AUDITED\n  {error}", file=sys.stderr)
        return 2
    print(f"dependencies (pip-audit): {len(findings) or 'no'} findings beyond audit/accepted.toml")
    for finding in findings:
        print(f"  {finding}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
