"""DB_SSLROOTCERT at build time: the build contains the file, and its path nowhere.

tests/chalicelib/database/test_database_tls.py checks that a build then connects only to the right database,
tests/deploy/test_build_aws.py checks the zip.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chalicelib.settings.database_tls import BUILT_AUTHORITY
from deploy import hosts, sbom, sources
from tests.support.builds import PROJECT, python_m_deploy
from tests.support.certificates import certify

pytestmark = pytest.mark.slow

CLOUDS = tuple(hosts.SHIM_FILES)
CONNECT_ARGUMENTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from chalicelib.settings.database import connect_arguments
secret = {"DB_HOST": "a.example,b.example", "DB_NAME": "orders", "DB_USER": "orders_app"}
print(json.dumps(connect_arguments(secret)))
"""
"""Prints the connect arguments of a build for a secret that names the database."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority, in a file that only its owner can read."""
    path = certify(tmp_path_factory.mktemp("elsewhere-on-this-machine"))
    path.chmod(0o600)
    return path


@pytest.fixture
def broken_file(certificate: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Creates a file that is not a usable authority, by kind of defect."""

    def make(defect: str) -> Path:
        text = certificate.read_text()
        contents = {
            "no certificate": "<html>404</html>",
            "damaged": text.replace(text[200:220], "?" * 20),
            "cut off": text[: len(text) // 2],
            "private key": text + certificate.with_name("server.key").read_text(),
        }
        path = tmp_path / "authority.pem"
        if defect in contents:
            path.write_text(contents[defect])
        return path

    return make


def build(cloud: str, folder: Path, authority: Path | None = None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DB_SSLROOTCERT", str(authority or ""))
        hosts.build(cloud, folder)
    return folder


@pytest.fixture(scope="module", params=CLOUDS)
def builds(
    request: pytest.FixtureRequest, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A cloud, its build without an authority, and its build with one, made under a strict umask."""
    folder = tmp_path_factory.mktemp("builds")
    without = build(request.param, folder / "without")
    before = os.umask(0o077)
    try:
        return request.param, without, build(request.param, folder / "with", certificate)
    finally:
        os.umask(before)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def connect_arguments(built: Path, **variables: str) -> dict[str, str]:
    """The connect arguments of a build with only these variables."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", CONNECT_ARGUMENTS, built],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    arguments: dict[str, str] = json.loads(result.stdout)
    return arguments


def test_build_bundles_the_authority_file_world_readable(
    builds: tuple[str, Path, Path], certificate: Path
) -> None:
    without, built = files(builds[1]), builds[2]

    contents = files(built)
    assert contents.keys() - without.keys() == {sources.AUTHORITY}
    assert contents[sources.AUTHORITY] == certificate.read_bytes()
    assert (built / sources.AUTHORITY).stat().st_mode & 0o777 == 0o644
    unchanged = contents.keys() - {sources.AUTHORITY, sbom.NAME}
    assert {name: contents[name] for name in unchanged} == {name: without[name] for name in unchanged}
    assert not any(str(certificate.parent).encode() in content for content in contents.values())


def test_sbom_lists_the_authority_file(tmp_path: Path, certificate: Path) -> None:
    sboms = [
        json.loads((build("oci", tmp_path / "oci", authority) / sbom.NAME).read_text())
        for authority in (certificate, certify(tmp_path / "other"))
    ]

    entries, other_entries = (
        [entry for entry in document["components"] if entry["type"] == "file"] for document in sboms
    )
    digest = hashlib.sha256(certificate.read_bytes()).hexdigest()
    hashes = [{"alg": "SHA-256", "content": digest}]
    assert entries == [
        {"bom-ref": sources.AUTHORITY, "type": "file", "name": sources.AUTHORITY, "hashes": hashes}
    ]
    assert other_entries != entries
    assert sboms[0]["serialNumber"] != sboms[1]["serialNumber"]


def test_rebuild_without_an_authority_removes_the_file(
    builds: tuple[str, Path, Path], tmp_path: Path
) -> None:
    cloud, without, built = builds
    rebuilt = shutil.copytree(built, tmp_path / "build")

    build(cloud, rebuilt)

    assert files(rebuilt) == files(without)


def test_rebuild_can_reuse_its_own_authority_file(tmp_path: Path, certificate: Path) -> None:
    built = build("gcp", tmp_path / "build", certificate)

    build("gcp", built, built / sources.AUTHORITY)

    assert (built / sources.AUTHORITY).read_bytes() == certificate.read_bytes()


def test_authority_file_in_working_copy_is_not_bundled(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "chalicelib", project / "chalicelib")
    shutil.copy(PROJECT / "app.py", project)
    shutil.copy(certificate, project / sources.AUTHORITY)
    monkeypatch.setattr(sources, "PROJECT", project)

    build("gcp", tmp_path / "gcp")

    assert (tmp_path / "gcp" / "chalicelib").is_dir()
    assert not (tmp_path / "gcp" / sources.AUTHORITY).exists()


def test_bundled_authority_is_used_unless_another_is_configured(tmp_path: Path, certificate: Path) -> None:
    built = build("gcp", tmp_path / "with", certificate)
    expected = {"sslmode": "verify-full", "sslrootcert": str(built / sources.AUTHORITY)}

    assert connect_arguments(built).items() >= expected.items()
    assert (
        connect_arguments(built, DB_SSLMODE="verify-ca").items()
        >= {**expected, "sslmode": "verify-ca"}.items()
    )
    configured = connect_arguments(built, DB_SSLROOTCERT=str(certificate))
    assert configured.items() >= {**expected, "sslrootcert": str(certificate)}.items()
    without = connect_arguments(build("gcp", tmp_path / "without"))
    assert (without["sslmode"], without.get("sslrootcert")) == ("require", None)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("absent", "No such file or directory. Use a PEM file"),
        ("no certificate", "it holds no certificate. Use a PEM file"),
        ("damaged", "its certificates are damaged"),
        ("cut off", "its certificates are damaged"),
        ("private key", "it holds a private key"),
    ],
)
def test_unusable_authority_file_is_rejected(
    monkeypatch: pytest.MonkeyPatch, broken_file: Callable[[str], Path], defect: str, message: str
) -> None:
    path = broken_file(defect)
    monkeypatch.setenv("DB_SSLROOTCERT", str(path))

    with pytest.raises(SystemExit) as error:
        sources.authority()

    assert f"DB_SSLROOTCERT is {str(path)!r}: {message}" in str(error.value)
    assert "PRIVATE" not in str(error.value)


def test_missing_authority_file_is_reported_before_building(
    builds: tuple[str, Path, Path], tmp_path: Path
) -> None:
    cloud, _, built = builds
    before = files(built)

    for folder in (built, tmp_path / "new"):
        with pytest.raises(SystemExit, match="DB_SSLROOTCERT is '/nowhere': No such file"):
            build(cloud, folder, Path("/nowhere"))

    assert files(built) == before
    assert not (tmp_path / "new").exists()


def test_aws_reports_missing_authority_file_before_building(tmp_path: Path) -> None:
    variables = {"DB_SSLROOTCERT": "/nowhere/authority.pem"}

    result = python_m_deploy("build", "aws", "--into", tmp_path / "build", variables=variables)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("DB_SSLROOTCERT is '/nowhere/authority.pem': No such file or directory.")
    assert not (tmp_path / "build").exists()


def test_build_and_settings_agree_on_authority_path() -> None:
    assert BUILT_AUTHORITY == PROJECT / sources.AUTHORITY
    assert not BUILT_AUTHORITY.exists()
