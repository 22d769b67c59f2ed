"""Every build has a software bill of materials: sbom.cdx.json, CycloneDX 1.6."""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from deploy import hosts, pins, sbom
from tests.support.builds import PROJECT, AwsBuild

pytestmark = pytest.mark.slow

Json = dict[str, Any]
CLOUDS = tuple(hosts.SHIM_FILES)
NOT_ON_LINUX = {"ansicon", "colorama", "pywin32"}


@pytest.fixture(scope="module", params=CLOUDS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    cloud: str = request.param
    folder = tmp_path_factory.mktemp("sbom") / cloud
    hosts.build(cloud, folder)
    return cloud, folder


def sbom_in(folder: Path) -> Json:
    document: Json = json.loads((folder / sbom.NAME).read_text())
    return document


def versions(document: Json) -> set[tuple[str, str]]:
    return {(component["name"], component["version"]) for component in document["components"]}


def schema_errors(folder: Path) -> object:
    """Errors by the CycloneDX schema, including unknown members; None if there are none."""
    return validator().validate_str((folder / sbom.NAME).read_text())


@cache
def validator() -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator  # takes seconds to import

    return JsonStrictValidator(SchemaVersion.V1_6)


def test_sbom_of_each_host_is_valid(host: tuple[str, Path]) -> None:
    assert schema_errors(host[1]) is None


def test_sbom_lists_what_the_host_installs_on_linux(host: tuple[str, Path]) -> None:
    cloud, folder = host
    listed = versions(sbom_in(folder))

    assert listed == {
        (pin.name, pin.version)
        for pin in pins.read(folder / "requirements.txt")
        if pin.name not in NOT_ON_LINUX
    }
    assert {("psycopg2-binary", "2.9.11"), ("psycopg2-binary", "2.9.13"), ("chalice", "1.34.0")} <= listed
    assert sbom_in(folder)["metadata"]["component"]["name"] == f"order-api-{cloud}"


def test_sbom_components_have_the_hashes_of_their_pins(host: tuple[str, Path]) -> None:
    folder = host[1]
    pinned = {str(pin): {*pin.hashes} for pin in pins.read(folder / "requirements.txt")}

    for component in sbom_in(folder)["components"]:
        (files,) = component["externalReferences"]
        hashes = {f"sha256:{digest['content']}" for digest in files["hashes"]}
        assert hashes == pinned[f"{component['name']}=={component['version']}"]


def test_sbom_component_names_its_python_version_marker(host: tuple[str, Path]) -> None:
    markers = {
        (component["name"], component["version"]): [
            entry["value"] for entry in component.get("properties", [])
        ]
        for component in sbom_in(host[1])["components"]
    }

    assert markers["psycopg2-binary", "2.9.11"] == ['python_full_version < "3.12"']
    assert markers["pydantic", "2.14.3"] == []


def test_sbom_names_licences_of_installed_packages(host: tuple[str, Path]) -> None:
    licences = {component["name"]: component.get("licenses") for component in sbom_in(host[1])["components"]}

    assert licences["pydantic"] == [{"license": {"id": "MIT"}}]
    assert licences["requests"] is not None


def test_sbom_timestamp_comes_from_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = pins.read(PROJECT / "deploy/requirements.txt")

    def write() -> bytes:
        sbom.write(tmp_path, "aws", pinned, sbom.PYTHONS)
        return (tmp_path / sbom.NAME).read_bytes()

    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    without_timestamp = write()
    assert "timestamp" not in sbom_in(tmp_path)["metadata"]
    assert write() == without_timestamp
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert write() == write() != without_timestamp
    assert sbom_in(tmp_path)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert schema_errors(tmp_path) is None


def test_sbom_with_an_authority_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_text("-----BEGIN CERTIFICATE-----")

    sbom.write(tmp_path, "aws", [], sbom.PYTHONS, authority=tmp_path / "authority.pem")

    assert [component["type"] for component in sbom_in(tmp_path)["components"]] == ["file"]
    assert schema_errors(tmp_path) is None


def test_different_packages_give_a_different_sbom(tmp_path: Path) -> None:
    pinned = pins.read(PROJECT / "deploy/requirements.txt")
    sbom.write(tmp_path, "aws", pinned, sbom.PYTHONS)
    complete = sbom_in(tmp_path)

    sbom.write(tmp_path, "aws", pinned[1:], sbom.PYTHONS)

    assert sbom_in(tmp_path)["serialNumber"] != complete["serialNumber"]
    assert versions(sbom_in(tmp_path)) < versions(complete)


def test_sbom_is_not_uploaded_to_azure() -> None:
    assert sbom.NAME in (PROJECT / "shims/azure/.funcignore").read_text().splitlines()


def test_lambda_sbom_lists_exactly_the_zips_packages(aws_build: AwsBuild) -> None:
    folder = aws_build.zip.parent
    document = sbom_in(folder)

    assert schema_errors(folder) is None
    assert versions(document) == {*packages_in(aws_build.zip), ("chalice", "1.34.0")}
    digest = hashlib.sha256(aws_build.zip.read_bytes()).hexdigest()
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert all(
        component["licenses"] and component["externalReferences"] for component in document["components"]
    )


def packages_in(archive: Path) -> Iterator[tuple[str, str]]:
    with ZipFile(archive) as zipped:
        assert sbom.NAME not in zipped.namelist()
        for name in zipped.namelist():
            if match := re.fullmatch(r"([^/]+)-([^/-]+)\.dist-info/METADATA", name):
                yield match[1].replace("_", "-").lower(), match[2]
