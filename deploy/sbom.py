"""The list of what a build brings along, as CycloneDX 1.6: for whoever looks for a known weakness in it."""

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
LONGEST_NAME = 60
"""Of a licence; what is longer is the licence's whole text, in the field for its name."""


def write(into: Path, target: str, pinned: Iterable[pins.Pin], pythons: Sequence[str], **where: Path) -> None:
    """sbom.cdx.json in `into`: what of `pinned` is installed on Linux with any of these Pythons.

    `artifact` is the file that it is about, where there is one, `authority` where the certificates of the
    database's authority are, if there are any. Licences are those that the packages name
    which are installed here or in the folder `packages`; others stay open. The same build gives the same
    bytes: the time is there only when SOURCE_DATE_EPOCH says it.
    """
    chosen = [pin for pin in pinned if any(pin.applies(_linux(python)) for python in pythons)]
    artifact, authority = where.get("artifact"), where.get("authority")
    digests = [_digest(artifact)] if artifact else []
    licences = dict(_licences({pin.name for pin in chosen}, where.get("packages")))
    ours = Component(
        name=f"order-api-{target}",
        version=__version__,
        type=ComponentType.APPLICATION,
        bom_ref="order-api",
        licenses=[LicenseFactory().make_from_string("MIT")],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in digests],
    )
    components = [_component(pin, licences.get(str(pin))) for pin in chosen]
    if authority and authority.is_file():
        digests.append(_digest(authority))
        hashed = HashType(alg=HashAlgorithm.SHA_256, content=digests[-1])
        kind, name = ComponentType.FILE, sources.AUTHORITY
        components.append(Component(name=name, type=kind, bom_ref=name, hashes=[hashed]))
    told = "\n".join([target, __version__, *digests, *(pin.line for pin in chosen)])
    bom = Bom(components=components, serial_number=uuid5(NAMESPACE_OID, told))
    bom.metadata.component = ours
    bom.metadata.properties = [Property(name="order-api:python", value=each) for each in pythons]
    bom.register_dependency(ours, components)
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
        hashes=[HashTypeFactory().from_composite_str(each) for each in pin.hashes],
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
    """What each of these packages says of itself where it is installed, by name and version."""
    path = [*sys.path, *([str(packages)] if packages else [])]
    for name in names:
        for each in metadata.distributions(name=name, path=path):
            told = each.metadata  # read anew at each look
            if said := _licence(told):
                yield f"{canonicalize_name(name)}=={told['Version']}", said


def _licence(told: metadata.PackageMetadata) -> License | None:
    make = LicenseFactory()
    if "License-Expression" in told:
        return make.make_from_string(told["License-Expression"])
    stated = told["License"].strip() if "License" in told else ""
    if stated and len(stated) <= LONGEST_NAME and "\n" not in stated:
        return make.make_from_string(stated)
    classifiers = [each for each in told.get_all("Classifier") or [] if each.startswith("License :: ")]
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.count(" :: ") > 1]
    return make.make_with_name(", ".join(named)) if named else None
