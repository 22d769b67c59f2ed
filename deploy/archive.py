"""Checks the zip for faults that would show only on Lambda."""

import csv
import importlib.util
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from packaging.utils import canonicalize_name

from deploy import pins

MAX_ZIP_BYTES = 50 * 1024 * 1024
"""Lambda's limit for a zip that is uploaded directly."""
MACHINES = {"x86_64": 62, "arm64": 183}
"""e_machine of an ELF file for Lambda's architectures (elf.h: EM_X86_64, EM_AARCH64)."""
UNCHECKED_HASH = 1
"""The flags of bytecode that Python uses without checking its source (PEP 552)."""
LEFT_OUT = ("pydantic/v1", "pydantic/mypy.py", "*/*.pyi")
"""Packages' files that no request needs: pydantic's first version, its mypy plugin, and type stubs."""
NOT_PINNED = ("app.py", "chalice/", "chalicelib/")


def make_readable(archive: Path) -> None:
    """Give every file in the zip mode 0644: Lambda runs it as another user than its owner."""
    with ZipFile(archive, "a") as zipped:
        for member in zipped.infolist():
            member.external_attr = 0o644 << 16
        zipped.comment = b""  # has the directory, which holds the modes, written again when it is closed


def faults(archive: Path, requirements: Path, architecture: str) -> list[str]:
    """The reasons why Lambda could not run the zip; empty for a good one."""
    with ZipFile(archive) as zipped:
        names = set(zipped.namelist())
        expected = {name for name in names if name.startswith(NOT_PINNED)}
        faults = []
        for pin in (pin for pin in pins.read(requirements) if pin.applies(pins.LINUX)):
            files = _files(zipped, pin)
            if not files:
                faults.append(f"{pin} is pinned in {requirements.name} but not in the zip")
            missing = [name for name in sorted(files - names) if not _is_left_out(name)]
            faults += [f"{name} of {pin} is missing" for name in missing]
            expected |= files
        unexpected = {name for name in names - expected if _source(name) not in expected}
        faults += [
            f"{name} is of no package that {requirements.name} pins" for name in _top_folders(unexpected)
        ]
        faults += [
            f"{name} is not compiled" for name in sorted(names) if _lacks_bytecode(name, zipped, names)
        ]
        faults += _foreign(zipped, architecture)
    if archive.stat().st_size > MAX_ZIP_BYTES:
        faults.append(f"it has {archive.stat().st_size:,} bytes, more than Lambda's {MAX_ZIP_BYTES:,}")
    return faults


def _files(zipped: ZipFile, pin: pins.Pin) -> set[str]:
    """The files in the RECORD of the pinned package; none if that version is not in the zip."""
    for record in (name for name in zipped.namelist() if name.endswith(".dist-info/RECORD")):
        name, _, version = record.partition(".dist-info/")[0].partition("-")
        if (canonicalize_name(name), version) == (pin.name, pin.version):
            return {path for path, *_ in csv.reader(zipped.read(record).decode().splitlines())}
    return set()


def _is_left_out(name: str) -> bool:
    path = PurePosixPath(name)
    return any(part.match(pattern) for part in (path, *path.parents) for pattern in LEFT_OUT)


def _source(name: str) -> str:
    """The path of a bytecode file's source; any other path as it is."""
    if not name.endswith(".pyc"):
        return name
    try:
        return importlib.util.source_from_cache(name)
    except ValueError:
        return name


def _top_folders(names: Iterable[str]) -> list[str]:
    return sorted({name.partition("/")[0] for name in names})


def _lacks_bytecode(name: str, zipped: ZipFile, names: set[str]) -> bool:
    if not name.endswith(".py"):
        return False
    compiled = importlib.util.cache_from_source(name)
    if compiled not in names:
        return True
    with zipped.open(compiled) as file:
        head = file.read(8)
    return head != importlib.util.MAGIC_NUMBER + struct.pack("<I", UNCHECKED_HASH)


def _foreign(zipped: ZipFile, architecture: str) -> Iterator[str]:
    """Compiled modules that the target cannot load."""
    for name in sorted(zipped.namelist()):
        with zipped.open(name) as file:
            head = file.read(20)
        if head.startswith(b"\x7fELF") and struct.unpack_from("<H", head, 18)[0] != MACHINES[architecture]:
            yield f"{name} is compiled for another machine than {architecture}"
        elif Path(name).suffix in (".dll", ".dylib", ".pyd"):
            yield f"{name} is compiled for another system than Linux"


def runtime() -> str:
    """Lambda's name of the running Python: a build is for that version."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"
