"""The papers of a release: which files they are, and what they must agree with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kbuild.core import fs, stamp
from kbuild.core.errors import BuildError, SigningError
from kbuild.core.model import Target
from kbuild.pipeline import papers
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, manifest, provenance, signing
from tests.unit import fake_kernel
from tests.unit import papers as fakes

ENDED = fake_kernel.EPOCH + 600


@pytest.fixture
def made(tmp_path: Path) -> Made:
    settings, record, packages, _ = fakes.release(tmp_path)
    target, base = Target("bookworm", "cloud-amd64"), fake_kernel.base()
    result = Made(settings, target, base=base, kernel_packages=packages)
    manifest.write(result.where.home / manifest.RECORD, record)
    mark = result.where.version / "kernel.json"
    output = fake_kernel.write(result.where.version / "vmlinux", "x")
    stamp.write(mark, {}, [output], 90.0)
    os.utime(mark, (ENDED, ENDED))
    return result


def test_they_are_everything_but_the_packages(made: Made) -> None:
    found = papers.write(made, sign=lambda data: b"signed: " + str(len(data)).encode())
    assert [path.name for path in found] == [
        "dkms_1_amd64.buildinfo",
        "dkms_1_amd64.changes",
        "kernel_1_amd64.buildinfo",
        "kernel_1_amd64.changes",
        "manifest.json",
        "module_1_amd64.buildinfo",
        "module_1_amd64.changes",
        "provenance.intoto.json",
        "provenance.intoto.json.asc",
        "sbom.cdx.json",
    ]
    by_name = {path.name: path for path in found}
    statement = by_name[provenance.NAME]
    subjects = {one.path.name: one.sha256 for one in made.packages}
    assert provenance.subjects(statement) == subjects
    signature = by_name[provenance.SIGNATURE].read_text()
    assert signature == f"signed: {len(statement.read_bytes())}"
    assert manifest.read(by_name["manifest.json"]).commit == "c" * 40


def test_a_signed_kernel_has_its_signatures_among_them(made: Made) -> None:
    record = manifest.read(made.where.home / manifest.RECORD)
    (kernel,) = record.kernels
    assert kernel.build is not None
    build = replace(kernel.build, certificate="c" * 64)
    signed = replace(record, kernels=(replace(kernel, build=build),))
    manifest.write(made.where.home / manifest.RECORD, signed)
    names = ("cplayground.ko.sig", "kernel.sig", "mok.pem")
    for name in names:
        fake_kernel.write(made.where.signatures / name, f"{name}\n")
    found = {path.name: path for path in papers.write(made)}
    assert {name: found[name].read_text() for name in names} == {n: f"{n}\n" for n in names}


def test_the_signature_of_the_provenance_verifies(made: Made, tmp_path: Path) -> None:
    settings = replace(made.settings, keys=tmp_path / "keys")
    key = signing.make_key(settings)
    found = papers.write(made, sign=lambda data: signing.sign_detached(settings, data))
    (path,) = (one for one in found if one.name == provenance.NAME)
    signature = path.with_name(provenance.SIGNATURE).read_bytes()
    ring = tmp_path / "ring.gpg"
    ring.write_bytes(signing.keyring(settings))
    signed = signing.verify_detached(ring, path.read_bytes(), signature)
    assert signed == (key.fingerprint,)


def test_the_times_are_those_of_the_build(made: Made) -> None:
    found = {path.name: path for path in papers.write(made)}
    metadata = json.loads(found[provenance.NAME].read_text())["predicate"]["runDetails"]["metadata"]
    assert metadata["startedOn"] == "2026-11-16T10:26:10Z"
    assert metadata["finishedOn"] == "2026-11-16T11:00:00Z"


def test_the_same_packages_have_the_same_papers(made: Made) -> None:
    first = fs.sha256_tree(papers.write(made)[0].parent)
    assert fs.sha256_tree(papers.write(made)[0].parent) == first


def test_a_signature_that_fails_leaves_the_earlier_papers(made: Made) -> None:
    place = papers.write(made)[0].parent
    before = fs.sha256_tree(place)

    def fail(data: bytes) -> bytes:
        raise SigningError("no key")

    with pytest.raises(SigningError):
        papers.write(made, sign=fail)
    assert fs.sha256_tree(place) == before


def test_a_record_of_other_packages_is_refused(made: Made) -> None:
    fewer = replace(made, kernel_packages=made.kernel_packages[1:])
    with pytest.raises(BuildError, match="the record is not that of the packages"):
        papers.write(fewer)


def test_a_lost_buildinfo_is_named(made: Made) -> None:
    changes = made.settings.build / "packages-module/module_1_amd64.changes"
    text = changes.read_text()
    lines = [line for line in text.splitlines(keepends=True) if "buildinfo" not in line]
    changes.write_text("".join(lines))
    with pytest.raises(BuildError, match="lack the record of their build") as caught:
        deb.records(made.packages)
    assert str(caught.value.found).startswith("cplayground-modules-")
    changes.unlink()
    with pytest.raises(BuildError, match="lack the record of their build"):
        papers.write(made)


def test_a_package_that_changed_since_is_refused(made: Made) -> None:
    with made.packages[0].path.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BuildError, match="differs from its digest"):
        papers.write(made)
