"""Write the bill of materials of a release: CycloneDX 1.6, as JSON.

Components are our packages, the distro's files, the patches, and every package of the root that
compiled and packaged them.  A dependency means "was made from".  The record of the target and the
.buildinfo files are the only sources, so the same release gives the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from debian.deb822 import BuildInfo, PkgRelation
from packageurl import PackageURL

from kbuild.core import suites
from kbuild.core.errors import BuildError
from kbuild.ship import manifest, versions
from kbuild.ship.manifest import BuildRecord, InputFile, KernelRecord, Manifest, Output

NAME = "sbom.cdx.json"
# The license of our packages (debian/*/copyright), and of Linux (its file COPYING).
LICENSE = "GPL-2.0-only"
LINUX_LICENSE = "GPL-2.0-only WITH Linux-syscall-note"

_VENDOR = "cplayground"
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cplayground-kernel.invalid/sbom")


@dataclass(frozen=True)
class Packaging:
    """A .buildinfo file: the packages of one source package, and what they were packaged with."""

    file: str
    packages: Mapping[str, str]  # file name -> SHA-256
    installed: Mapping[str, str]  # package -> version
    finished: datetime


def read_buildinfo(path: Path) -> Packaging:
    """Read a .buildinfo file; raises BuildError if it is not one."""
    try:
        with path.open(encoding="utf-8") as stream:
            found = BuildInfo(stream)
        listed: list[dict[str, str]] = found["Checksums-Sha256"]
        packages = {one["name"]: one["sha256"] for one in listed}
        # A relation may have alternatives, but those of a .buildinfo never have.
        relations = PkgRelation.parse_relations(found["Installed-Build-Depends"])
        installed = {one["name"]: one["version"][1] for (one,) in relations if one["version"]}
        finished = parsedate_to_datetime(found["Build-Date"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BuildError(
            f"{path.name} is not a .buildinfo file", found=f"{type(error).__name__}: {error}"
        ) from error
    return Packaging(path.name, packages, installed, finished)


def describe(record: Manifest, packagings: Sequence[Packaging]) -> str:
    """Return the bill of materials of a target's record, as the text of a JSON file.

    Raises BuildError if a package is in no .buildinfo file, or has other bytes there.  Raises it
    too if a .buildinfo file has another version of a package than the root.
    """
    kernel, build = manifest.single(record)
    _check(record.outputs, build, packagings)
    codename = suites.suite(kernel.suite).codename
    tools = [_tool(name, version, codename) for name, version in sorted(build.root.items())]
    files = [_distro_file(kernel, one, codename) for one in kernel.files]
    patches = [_patch(kernel, index) for index in range(len(kernel.patches))]
    root = Component(
        name=f"compile root of {kernel.suite}",
        type=ComponentType.PLATFORM,
        bom_ref=f"root:{kernel.suite}",
        scope=ComponentScope.EXCLUDED,
        properties=[_property("compiler", kernel.compiler)],
    )
    ours = {one.name: _package(one, codename) for one in record.outputs}
    whole = _release(kernel, build, record)
    headers = ours.get(f"linux-headers-{kernel.release}")
    depends = [
        Dependency(whole.bom_ref, [Dependency(one.bom_ref) for one in ours.values()]),
        Dependency(root.bom_ref, [Dependency(one.bom_ref) for one in tools]),
    ]
    for name, one in ours.items():
        made_from = [root]
        if name.startswith("linux-"):
            made_from += [*files, *patches]
        elif name.startswith("cplayground-modules-") and headers:
            made_from.append(headers)
        depends.append(Dependency(one.bom_ref, [Dependency(each.bom_ref) for each in made_from]))
    depends += [Dependency(one.bom_ref) for one in (*tools, *files, *patches)]
    bom = Bom(
        metadata=BomMetaData(
            component=whole,
            timestamp=datetime.fromtimestamp(build.epoch, UTC),
            tools=ToolRepository(components=[_pipeline(record)]),
        ),
        components=[*ours.values(), root, *tools, *files, *patches],
        dependencies=depends,
        serial_number=_SPACE,
    )
    # The number is one of the content, which has none yet.
    bom.serial_number = uuid.uuid5(_SPACE, _text(bom))
    return _text(bom)


def _text(bom: Bom) -> str:
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return str(outputter.output_as_string(indent=2)) + "\n"


def _check(outputs: Iterable[Output], build: BuildRecord, packagings: Sequence[Packaging]) -> None:
    listed = {name: digest for one in packagings for name, digest in one.packages.items()}
    files = ((Path(one.path).name, one.sha256) for one in outputs)
    wrong = [(name, digest) for name, digest in files if listed.get(name) != digest]
    if wrong:
        raise BuildError(
            "the .buildinfo files do not describe the packages of the record",
            expected="\n".join(f"{digest}  {name}" for name, digest in wrong),
            found="\n".join(f"{listed.get(name, 'not listed')}  {name}" for name, _ in wrong),
            hint="run ./inv package again",
        )
    for one in packagings:
        others = [
            f"{name}: {build.root.get(name, 'none')} in the record, {version} in {one.file}"
            for name, version in sorted(one.installed.items())
            if build.root.get(name) != version
        ]
        if others:
            raise BuildError(
                "the packages were made in another root than the record says",
                found="\n".join(others),
                hint="run ./inv package again",
            )


def _property(name: str, value: str) -> Property:
    return Property(name=f"{_VENDOR}:{name}", value=value)


def _sha256(digest: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]


def _release(kernel: KernelRecord, build: BuildRecord, record: Manifest) -> Component:
    return Component(
        name=kernel.release,
        version=versions.package_version(kernel.base_version, build.revision),
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="release",
        description=f"Linux with the cplayground exports, and its module {record.module_version}",
        licenses=[LicenseExpression(LINUX_LICENSE)],
        properties=[
            _property("suite", kernel.suite),
            _property("flavour", kernel.flavour),
            _property("variant", kernel.variant),
            _property("method", kernel.method),
            _property("config_sha256", kernel.config_sha256),
            *(_property(f"fragment:{one.name}", f"sha256:{one.sha256}") for one in build.fragments),
        ],
    )


def _pipeline(record: Manifest) -> Component:
    return Component(
        name="cplayground-kernel",
        version=record.module_version,
        type=ComponentType.APPLICATION,
        bom_ref="pipeline",
        licenses=[LicenseExpression("GPL-2.0-or-later")],
        properties=[_property("commit", record.commit or "unknown")],
    )


def _package(output: Output, codename: str) -> Component:
    qualifiers = {"arch": output.architecture, "distro": codename}
    url = PackageURL("deb", _VENDOR, output.name, output.version, qualifiers)
    linux = output.name.startswith("linux-")
    return Component(
        name=output.name,
        version=output.version,
        type=ComponentType.OPERATING_SYSTEM if linux else ComponentType.DEVICE_DRIVER,
        bom_ref=url.to_string(),
        purl=url,
        hashes=_sha256(output.sha256),
        licenses=[LicenseExpression(LINUX_LICENSE if linux else LICENSE)],
        properties=[
            _property("file", Path(output.path).name),
            _property("size", str(output.size)),
        ],
    )


def debian_url(name: str, version: str, codename: str) -> PackageURL:
    """Return the package URL of a package of Debian's."""
    return PackageURL("deb", "debian", name, version, {"distro": codename})


def _tool(name: str, version: str, codename: str) -> Component:
    url = debian_url(name, version, codename)
    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=f"tool:{url.to_string()}",
        purl=url,
        scope=ComponentScope.EXCLUDED,
    )


def _distro_file(kernel: KernelRecord, file: InputFile, codename: str) -> Component:
    url = debian_url(file.name, file.version, codename)
    return Component(
        name=file.name,
        version=file.version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"distro:{url.to_string()}",
        purl=url,
        hashes=_sha256(file.sha256),
        licenses=[LicenseExpression(LINUX_LICENSE)],
        properties=[
            _property("size", str(file.size)),
            *(_property("signer", signer) for signer in kernel.signers),
        ],
    )


def _patch(kernel: KernelRecord, index: int) -> Component:
    patch = kernel.patches[index]
    return Component(
        name=f"patches/{kernel.series}/{patch.name}",
        type=ComponentType.FILE,
        bom_ref=f"patch:{index + 1}:{patch.name}",
        description=patch.description,
        hashes=_sha256(patch.sha256),
        licenses=[LicenseExpression(LICENSE)],
    )
