"""Reads requirements files that `make lock` wrote: exact versions with the hashes of their files."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINUX = {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"}
"""Every build runs on Linux, whichever system makes it."""


@dataclass(frozen=True)
class Pin:
    requirement: Requirement
    hashes: tuple[str, ...]
    """As `sha256:...`, one for each wheel and source archive of the release."""

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        (only,) = self.requirement.specifier
        return only.version

    @property
    def line(self) -> str:
        """The line of a requirements file."""
        return " ".join([str(self.requirement), *(f"--hash={digest}" for digest in self.hashes)])

    def applies(self, environment: Mapping[str, str]) -> bool:
        """Whether it is installed in this environment; markers not in `environment` are this machine's."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(dict(environment))

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def read(requirements: Path) -> list[Pin]:
    """The pins of a file that `make lock` has written. Raises ValueError for any other line."""
    return list(_parsed(requirements.read_text()))


def _parsed(text: str) -> Iterator[Pin]:
    for line in text.replace("\\\n", " ").splitlines():
        head, *hashes = line.split(" --hash=")
        requirement = Requirement(head)
        if requirement.url or [part.operator for part in requirement.specifier] != ["=="]:
            raise ValueError(f"{head!r} pins no version")
        yield Pin(requirement, tuple(digest.strip() for digest in hashes))


def without_hashes(text: str) -> str:
    """The versions alone, so that uv fetches the hashes from the index instead of keeping the file's."""
    return re.sub(r"( \\\n)? +--hash=\S+", "", text)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(without_hashes(path.read_text()))
