"""The bill of materials: its content, its form, and the same bytes each time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kbuild.core.errors import BuildError
from kbuild.ship import sbom
from kbuild.ship.manifest import Manifest
from tests.unit import fake_kernel, papers

PROJECT = Path(__file__).resolve().parents[2]


def read(infos: tuple[Path, ...]) -> list[sbom.Packaging]:
    return [sbom.read_buildinfo(path) for path in infos]


def components(text: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(text)["components"]}


def graph(text: str) -> dict[str, list[str]]:
    return {one["ref"]: one.get("dependsOn", []) for one in json.loads(text)["dependencies"]}


def with_root(record: Manifest, root: dict[str, str]) -> Manifest:
    (kernel,) = record.kernels
    assert kernel.build is not None
    return replace(record, kernels=(replace(kernel, build=replace(kernel.build, root=root)),))


def test_it_is_valid_by_the_schema(tmp_path: Path) -> None:
    _, record, _, infos = papers.release(tmp_path)
    text = sbom.describe(record, read(infos))
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    # A validator that lets everything pass would be none.
    assert validator.validate_str(text.replace('"scope": "excluded"', '"scope": "unknown"'))
    raw = json.loads(text)
    assert (raw["bomFormat"], raw["specVersion"]) == ("CycloneDX", "1.6")


def test_every_package_is_a_component_with_its_digest(tmp_path: Path) -> None:
    _, record, packages, infos = papers.release(tmp_path)
    found = components(sbom.describe(record, read(infos)))
    for package in packages:
        one = found[package.name]
        assert one["hashes"] == [{"alg": "SHA-256", "content": package.sha256}]
        assert one["version"] == package.version
        assert one["purl"].startswith(
            f"pkg:deb/cplayground/{package.name}@6.1.192-2%2Bcplayground1"
        )
        assert "arch=amd64&distro=bookworm" in one["purl"]


def test_every_input_is_a_component(tmp_path: Path) -> None:
    _, record, _, infos = papers.release(tmp_path)
    (kernel,) = record.kernels
    found = components(sbom.describe(record, read(infos)))
    source = found["linux-source-6.1"]
    assert source["hashes"][0]["content"] == "0" * 64
    assert source["licenses"] == [{"expression": "GPL-2.0-only WITH Linux-syscall-note"}]
    signers = [one["value"] for one in source["properties"] if one["name"].endswith(":signer")]
    assert signers == list(kernel.signers)
    patch = found["patches/v5.11/0001-export.patch"]
    assert patch["hashes"][0]["content"] == kernel.patches[0].sha256
    assert {name: found[name]["version"] for name in papers.ROOT} == papers.ROOT
    assert all(found[name]["scope"] == "excluded" for name in papers.ROOT)
    compiler = found["gcc-12"]
    assert compiler["purl"] == "pkg:deb/debian/gcc-12@12.2.0-14%2Bdeb12u1?distro=bookworm"


def test_the_graph_leads_from_the_release_to_everything(tmp_path: Path) -> None:
    _, record, _, infos = papers.release(tmp_path)
    text = sbom.describe(record, read(infos))
    edges, reached, pending = graph(text), set[str](), ["release"]
    while pending:
        ref = pending.pop()
        if ref not in reached:
            reached.add(ref)
            pending += edges[ref]
    assert reached == edges.keys()
    assert reached == {"release"} | {one["bom-ref"] for one in json.loads(text)["components"]}
    found = components(text)
    image = edges[found["linux-image-" + fake_kernel.RELEASE]["bom-ref"]]
    assert found["linux-source-6.1"]["bom-ref"] in image
    assert found["patches/v5.11/0001-export.patch"]["bom-ref"] in image
    dkms = edges[found["cplayground-dkms"]["bom-ref"]]
    assert dkms == [found["compile root of bookworm"]["bom-ref"]]


def test_the_same_release_gives_the_same_bytes(tmp_path: Path) -> None:
    _, record, _, infos = papers.release(tmp_path)
    text = sbom.describe(record, read(infos))
    assert sbom.describe(record, read(infos[::-1])) == text
    turned = with_root(record, dict(reversed(list(papers.ROOT.items()))))
    assert sbom.describe(turned, read(infos)) == text
    raw = json.loads(text)
    assert raw["metadata"]["timestamp"] == "2026-11-16T10:17:40+00:00"
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5.*", raw["serialNumber"])
    other = json.loads(sbom.describe(replace(record, commit="d" * 40), read(infos)))
    assert other["serialNumber"] != raw["serialNumber"]


def test_a_package_with_other_bytes_than_its_buildinfo_is_refused(tmp_path: Path) -> None:
    _, record, packages, infos = papers.release(tmp_path)
    wrong = tuple(replace(one, sha256="1" * 64) for one in record.outputs[:1])
    with pytest.raises(BuildError, match="do not describe the packages") as caught:
        sbom.describe(replace(record, outputs=wrong + record.outputs[1:]), read(infos))
    assert packages[-1].sha256 in str(caught.value.found)
    with pytest.raises(BuildError, match="do not describe the packages") as caught:
        sbom.describe(record, read(infos[:2]))
    assert "not listed  cplayground-dkms" in str(caught.value.found)


def test_a_package_of_another_root_is_refused(tmp_path: Path) -> None:
    _, record, packages, infos = papers.release(tmp_path)
    other = papers.ROOT | {"gcc-12": "12.2.0-14+deb12u2"}
    papers.record(infos[0].parent, "kernel", packages[:2], root=other)
    with pytest.raises(BuildError, match="in another root") as caught:
        sbom.describe(record, read(infos))
    assert str(caught.value.found) == (
        "gcc-12: 12.2.0-14+deb12u1 in the record, 12.2.0-14+deb12u2 in kernel_1_amd64.buildinfo"
    )


def test_a_record_of_an_earlier_version_is_not_enough(tmp_path: Path) -> None:
    _, record, _, infos = papers.release(tmp_path)
    earlier = replace(record, kernels=(replace(record.kernels[0], build=None),))
    with pytest.raises(BuildError, match="does not say how it was built"):
        sbom.describe(earlier, read(infos))


@pytest.mark.parametrize("text", ["", "Format: 1.0\n", "garbage", "Checksums-Sha256:\n x\n"])
def test_a_file_that_is_no_buildinfo_is_named(tmp_path: Path, text: str) -> None:
    path = fake_kernel.write(tmp_path / "a.buildinfo", text)
    with pytest.raises(BuildError, match=r"a\.buildinfo is not a \.buildinfo file"):
        sbom.read_buildinfo(path)


def test_the_licenses_are_those_of_the_packages() -> None:
    """Debian's short name GPL-2 is SPDX's GPL-2.0-only."""
    for path in (PROJECT / "debian").glob("*/copyright"):
        assert set(re.findall(r"(?m)^License: (.*)$", path.read_text())) == {"GPL-2"}
    assert sbom.LICENSE == "GPL-2.0-only"
    (line,) = (PROJECT / "kmod/cplayground.c").read_text().splitlines()[:1]
    assert line == f"// SPDX-License-Identifier: {sbom.LICENSE}"


def test_a_real_buildinfo_is_read() -> None:
    found = sbom.read_buildinfo(Path(__file__).parent / "data/real.buildinfo")
    assert len(found.installed) > 100
    assert found.installed["g++"] == "4:12.2.0-3"
    assert found.packages["linux-image-cplayground-lab_6.1.192-3+cplayground1_amd64.deb"] == (
        "01cd9aa064d743f543f33e39c5d9b9dcd2af172a93867dc031532774c68f96ff"
    )
    assert found.finished.isoformat() == "2026-11-30T14:23:22+00:00"
