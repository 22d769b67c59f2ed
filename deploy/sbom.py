"""The software bill of materials of a build, as CycloneDX 1.6."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from chalicelib import __version__
from deploy import pins, sources

NAME = "sbom.cdx.json"
PYTHONS = ("3.11", "3.12", "3.13")
MAX_NAME_LENGTH = 60
"""Of a licence: a longer `License` field holds the licence's text instead of its name."""


def write(into: Path, target: str, pinned: Iterable[pins.Pin], pythons: Sequence[str], **where: Path) -> None:
    """Write sbom.cdx.json into `into`: the packages of `pinned` that Linux installs with any of `pythons`.

    `where` may hold `artifact` (the file that the SBOM describes), `authority` (the certificates of the
    database's authority) and `packages` (a folder of installed packages, searched for licences after this
    interpreter's own). Equal builds give equal bytes: a timestamp is set only from SOURCE_DATE_EPOCH.
    """
    chosen = [pin for pin in pinned if any(pin.applies(_linux(python)) for python in pythons)]
    artifact, authority = where.get("artifact"), where.get("authority")
    digests = [_digest(artifact)] if artifact else []
    licences = dict(_licences({pin.name for pin in chosen}, where.get("packages")))
    application = Component(
        name=f"order-api-{target}",
        version=__version__,
        type=ComponentType.APPLICATION,
        bom_ref="order-api",
        licenses=[LicenseFactory().make_from_string("MIT")],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in digests],
    )
    components = [_component(pin, licences.get(str(pin))) for pin in chosen]
    if authority and authority.is_file():
        digests.append(_digest(authority))
        hashed = HashType(alg=HashAlgorithm.SHA_256, content=digests[-1])
        kind, name = ComponentType.FILE, sources.AUTHORITY
        components.append(Component(name=name, type=kind, bom_ref=name, hashes=[hashed]))
    identity = "\n".join([target, __version__, *digests, *(pin.line for pin in chosen)])
    bom = Bom(components=components, serial_number=uuid5(NAMESPACE_OID, identity))
    bom.metadata.component = application
    bom.metadata.properties = [Property(name="order-api:python", value=python) for python in pythons]
    bom.register_dependency(application, components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        document["metadata"]["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
    (into / NAME).write_text(json.dumps(document, indent=1) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _linux(python: str) -> dict[str, str]:
    machine = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**pins.LINUX, **machine, "python_version": python, "python_full_version": f"{python}.0"}


def _component(pin: pins.Pin, licence: License | None) -> Component:
    purl = PackageURL("pypi", name=pin.name, version=pin.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        comment="One of these files, by system and Python",
        hashes=[HashTypeFactory().from_composite_str(digest) for digest in pin.hashes],
    )
    marker = pin.requirement.marker
    return Component(
        name=pin.name,
        version=pin.version,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=[licence] if licence else [],
        external_references=[files],
        properties=[Property(name="order-api:marker", value=str(marker))] if marker else [],
    )


def _licences(names: Iterable[str], packages: Path | None) -> Iterator[tuple[str, License]]:
    """`name==version` and licence of each of these packages that is installed."""
    path = [*sys.path, *([str(packages)] if packages else [])]
    for name in names:
        for distribution in metadata.distributions(name=name, path=path):
            fields = distribution.metadata  # each access parses the file again
            if licence := _licence(fields):
                yield f"{canonicalize_name(name)}=={fields['Version']}", licence


def _licence(fields: metadata.PackageMetadata) -> License | None:
    make = LicenseFactory()
    if "License-Expression" in fields:
        return make.make_from_string(fields["License-Expression"])
    stated = fields["License"].strip() if "License" in fields else ""
    if stated and len(stated) <= MAX_NAME_LENGTH and "\n" not in stated:
        return make.make_from_string(stated)
    classifiers = [line for line in fields.get_all("Classifier") or [] if line.startswith("License :: ")]
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.count(" :: ") > 1]
    return make.make_with_name(", ".join(named)) if named else None
