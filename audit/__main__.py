"""`python -m audit`, for `make audit`. 1: there are findings; 2: none, but the advisories were not asked."""

import os
import sys

from audit import findings

SERVICES = ("pypi", "osv")


def main() -> int:
    chosen = os.environ.get("SERVICE") or "pypi"
    if chosen not in SERVICES:
        print(f"SERVICE is {chosen!r}: use {' or '.join(SERVICES)}", file=sys.stderr)
        return 2
    in_code = findings.of_the_code()
    _tell("code (bandit)", in_code)
    try:
        in_dependencies = findings.of_the_dependencies(["--vulnerability-service", chosen])
    except findings.Unasked as error:
        print(f"dependencies (pip-audit): NOT AUDITED\n  {error}", file=sys.stderr)
        return 1 if in_code else 2
    _tell("dependencies (pip-audit)", in_dependencies)
    return 1 if in_code or in_dependencies else 0


def _tell(what: str, found: list[str]) -> None:
    print(f"{what}: {len(found) or 'no'} findings beyond audit/accepted.toml", flush=True)
    for each in found:
        print(f"  {each}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
