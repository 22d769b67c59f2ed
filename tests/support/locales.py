"""Two builds of glibc's locale en_US.UTF-8 that sort the hyphen differently, as two versions of glibc may."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

LOCALE = "en_US.UTF-8"
_SOURCE = Path("/usr/share/i18n/locales/en_US")
_RULES = 'copy "iso14651_t1"\n'
_HYPHEN_AFTER_NINE = """
reorder-after <U0039>
<U002D> <S0039>;<BASE>;<MIN>;<U002D>
reorder-end
"""


@dataclass(frozen=True)
class Locales:
    """Values of LOCPATH, the folder in which the processes of a server look for their locale."""

    original: Path
    """Ignores the hyphen at first, so that shop-9 is next to shop9."""
    changed: Path
    """Sorts the hyphen like a digit after 9."""


@contextmanager
def compiled_locales() -> Iterator[Locales]:
    """Skips the test if localedef or its sources are not installed, but fails it in CI."""
    if not (shutil.which("localedef") and _SOURCE.exists()):
        reason = "glibc's locale sources are missing: make system-packages"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with TemporaryDirectory(prefix="order-api-locales-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server may run as another user
        changed = folder / "en_US"
        changed.write_text(_SOURCE.read_text().replace(_RULES, _RULES + _HYPHEN_AFTER_NINE))
        locales = Locales(folder / "original", folder / "changed")
        _compile({locales.original: _SOURCE, locales.changed: changed})
        yield locales


def _compile(sources: Mapping[Path, Path]) -> None:
    """Compiles each folder's locale, at the same time."""
    running = []
    for folder, source in sources.items():
        folder.mkdir()
        arguments = ["--no-archive", "-f", "UTF-8", "-i", str(source), str(folder / LOCALE)]
        running.append(subprocess.Popen(["localedef", *arguments]))
    assert [process.wait() for process in running] == [0] * len(running)
