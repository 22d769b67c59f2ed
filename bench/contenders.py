"""Who is measured: this project and its peers, each installed alone, as a plain zip ships it to Lambda."""

import compileall
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from py_compile import PycInvalidationMode
from zipfile import ZipFile

import chalice.app

from chalicelib.settings.table import SETTINGS
from local.issuer import CLIENT_ID, USER_POOL_ARN

PROJECT = Path(__file__).parent.parent
PEERS = PROJECT / "bench" / "peers"
INSTALLED = PROJECT / "build" / "bench"
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""Lambda's name of this machine's."""
CHALICE = Path(chalice.app.__file__).parent
SHIPPED_OF_CHALICE = ("__init__.py", "app.py")
"""What Chalice's own packager puts into a zip."""


@dataclass(frozen=True)
class Contender:
    """Something that answers the contract, and the process that it is measured in."""

    key: str
    name: str
    module: str = "main"
    attribute: str = "handler"
    role: str = "bench_peer"
    """Who it logs in as: peers bypass row-level security and filter by themselves."""
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    """Of its trees, where two contenders share them."""

    @property
    def trees(self) -> "Trees":
        return Trees(INSTALLED / (self.folder or self.key))


@dataclass(frozen=True)
class Trees:
    """The installed files of a contender. While it runs nothing is written there: Lambda's are read-only."""

    folder: Path

    @property
    def with_bytecode(self) -> Path:
        return self.folder / "with-bytecode"

    @property
    def without_bytecode(self) -> Path:
        return self.folder / "without-bytecode"


def _ours(key: str, name: str, prepare: str) -> Contender:
    variables = {
        "COGNITO_USER_POOL_ARN": USER_POOL_ARN,
        "AUTH_AUDIENCE": CLIENT_ID,
        "DB_PREPARE": prepare,
    }
    return Contender(key, name, "app", "app", "orders_app", variables, "ours")


OURS = _ours("ours", "this project", "on")
UNPREPARED = _ours("ours_unprepared", "this project, DB_PREPARE=off", "off")
FLOOR = Contender("floor", "floor: raw psycopg2")
FASTAPI = Contender("fastapi_sqlmodel", "FastAPI + SQLModel, Mangum")
POWERTOOLS = Contender("powertools", "Powertools + psycopg2")
CHALICE_ORM = Contender("chalice_orm", "Chalice + SQLModel ORM")
CONTENDERS = (OURS, UNPREPARED, FLOOR, POWERTOOLS, CHALICE_ORM, FASTAPI)
IMPORTS = Contender("imports", "bare imports and a connect")
"""No service: the time that the fixed stack takes before anybody's code runs. For the cold section alone."""


def install(contenders: Sequence[Contender], advance: Callable[[str], None]) -> None:
    """Bring every contender's two trees up to date, once for this Python, these pins and these sources.

    Raises SystemExit with the installer's words when that fails.
    """
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for contender in contenders:
        advance(contender.name)
        folder = contender.trees.folder
        with _locked(folder.with_suffix(".lock")):
            recipe, make = _recipe(contender)
            done = folder / "installed"
            if not done.is_file() or done.read_text() != recipe:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(contender.trees)
                done.write_text(recipe)


def packages(contender: Contender) -> dict[str, str]:
    """Name and version of each package in its tree."""
    found = distributions(path=[str(contender.trees.without_bytecode)])
    return dict(sorted((each.metadata["Name"], each.version) for each in found))


def _recipe(contender: Contender) -> tuple[str, Callable[[Trees], None]]:
    """What its trees are made from, as a fingerprint, and how they are made."""
    if contender.trees == OURS.trees:
        sources = [
            PROJECT / name for name in ("app.py", "chalicelib", "deploy", ".chalice", "requirements.txt")
        ]
        return _fingerprint(sources), _build_ours
    source, pins = _source_of(contender)
    return _fingerprint([source, Path(__file__)], pins), lambda trees: _install_peer(trees, source, pins)


def _source_of(contender: Contender) -> tuple[Path, str]:
    """Its main.py or the folder of it, and its requirements."""
    stack = (PEERS / CHALICE_ORM.key / "requirements.txt").read_text()
    if contender is IMPORTS:
        return Path(__file__).with_name("imports.py"), stack
    if contender is FLOOR:
        pins = re.split(r"\n(?! )", stack)
        return Path(__file__).with_name("floor.py"), "\n".join(
            pin for pin in pins if pin.startswith("psycopg2")
        )
    folder = PEERS / contender.key
    return folder, (folder / "requirements.txt").read_text()


def _build_ours(trees: Trees) -> None:
    """The zip that goes to AWS, unpacked. It ships bytecode: the tree without has lost it."""
    built = trees.folder / "build"
    # The bench builds with no setting of this shell.
    deploys = ("AWS_", "SECURITY_", "SUBNET_")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS and not name.startswith(deploys)
    }
    command = ["-m", "deploy", "build", "aws", "--into", str(built), "--arch", ARCHITECTURE]
    _run(command, PROJECT, environment)
    with ZipFile(built / "package" / "deployment.zip") as zipped:
        zipped.extractall(trees.with_bytecode)
    shutil.copytree(trees.with_bytecode, trees.without_bytecode, ignore=shutil.ignore_patterns("__pycache__"))


def _install_peer(trees: Trees, source: Path, pins: str) -> None:
    """What `pip install --target` and a copy of the sources give; and the same with bytecode."""
    plain = trees.without_bytecode
    requirements = trees.folder / "requirements.txt"
    requirements.write_text(pins)
    command = ["-m", "uv", "pip", "install", "--quiet", "--no-config", "--no-deps", "--link-mode", "copy"]
    command += ["--require-hashes"]
    command += ["--python", sys.executable, "--target", str(plain), "--requirement", str(requirements)]
    _run(command, PROJECT, dict(os.environ))
    if source.is_dir():
        not_shipped = shutil.ignore_patterns("__pycache__", "requirements.txt")
        shutil.copytree(source, plain, ignore=not_shipped, dirs_exist_ok=True)
    else:
        shutil.copy(source, plain / "main.py")
    if (plain / "sqlmodel").is_dir() and not (plain / "fastapi").is_dir():
        (plain / "chalice").mkdir()
        for name in SHIPPED_OF_CHALICE:
            shutil.copy(CHALICE / name, plain / "chalice")
    shutil.copytree(plain, trees.with_bytecode)
    unchecked = PycInvalidationMode.UNCHECKED_HASH
    # Not every package's every file compiles, such as templates: an import would say so.
    compileall.compile_dir(trees.with_bytecode, quiet=2, invalidation_mode=unchecked)


def _fingerprint(sources: Sequence[Path], *texts: str) -> str:
    found = hashlib.sha256(f"{sys.version}\0{platform.machine()}".encode())
    for text in texts:
        found.update(text.encode())
    for source in sources:
        for path in sorted([source, *source.rglob("*")] if source.is_dir() else [source]):
            if path.is_file() and "__pycache__" not in path.parts and "deployed" not in path.parts:
                found.update(str(path.relative_to(PROJECT)).encode())
                found.update(path.read_bytes())
    return found.hexdigest()


def _run(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stdout[-3000:].strip()}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One installation at a time; freed by the system even when we are killed."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
