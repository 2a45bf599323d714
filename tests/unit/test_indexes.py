"""The indexes of an archive, as apt itself reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from debian.deb822 import Deb822, Packages
from debian.deb822 import Release as ReleaseFile

from kbuild.core import fs
from kbuild.core.errors import BuildError, EvidenceError, SigningError
from kbuild.core.model import Package
from kbuild.ship import deb, indexes
from kbuild.ship.indexes import Group
from tests.unit import fake_kernel, signed_archive
from tests.unit.own_apt import Apt

NOW = datetime.now(UTC).replace(microsecond=0)
META = "linux-image-cplayground-cloud-amd64"
BINARIES = "main/binary-amd64"


def sign(release: bytes) -> bytes:
    return signed_archive.key().clearsign(release.decode())


class Archive:
    """An archive of one suite below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def package(self, name: str, version: str, content: str = "") -> Package:
        return fake_kernel.package(self.root / "pool/main/x", name, version, content)

    def write(
        self,
        *groups: Group,
        at: str = "dists/bookworm",
        now: datetime = NOW,
        valid: timedelta | None = indexes.VALID,
        earlier: Sequence[Path] = (),
        sign: Callable[[bytes], bytes] = sign,
    ) -> Path:
        into = self.root / at
        indexes.write(
            *(into, self.root, "bookworm", groups),
            now=now,
            valid=valid,
            sign=sign,
            earlier=earlier,
        )
        return into

    def apt(self, top: Path, options: str = "") -> Apt:
        return Apt(
            top,
            f"Types: deb\nURIs: file:{self.root}\nSuites: bookworm\nComponents: main\n"
            f"Signed-By: {signed_archive.key().keyring}\n{options}",
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def stanzas(dist: Path) -> list[dict[str, str]]:
    with (dist / BINARIES / "Packages").open("rb") as stream:
        return [dict(one) for one in Packages.iter_paragraphs(stream, use_apt_pkg=False)]


def by_hash(dist: Path) -> set[str]:
    found = {path.name for path in (dist / BINARIES / "by-hash/SHA256").iterdir()}
    for name in found:
        path = dist / BINARIES / "by-hash/SHA256" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    return found


def listed(dist: Path) -> set[str]:
    with (dist / "Release").open() as stream:
        return {one["sha256"] for one in ReleaseFile(stream)["SHA256"]}


def test_apt_accepts_the_index_and_sees_every_version(archive: Archive, tmp_path: Path) -> None:
    older, newer = (archive.package(META, version) for version in ("6.1.187-1", "6.1.192-2"))
    archive.write(Group((older, newer)))
    apt = archive.apt(tmp_path / "apt")
    apt("apt-get", "update")
    shown = apt("apt-cache", "madison", META)
    assert "6.1.187-1" in shown and "6.1.192-2" in shown
    for package in (older, newer):
        apt("apt-get", "download", f"{META}={package.version}")
        (file,) = (apt.top / "download").glob("*.deb")
        assert fs.sha256_file(file) == package.sha256
        file.unlink()
    policy = apt("apt-cache", "policy")
    assert (
        "release o=cplayground-kernel,a=bookworm,n=bookworm,l=cplayground-kernel,c=main" in policy
    )


def test_release_says_what_servers_go_by(archive: Archive) -> None:
    dist = archive.write(Group(()), now=datetime(2026, 11, 30, 12, tzinfo=UTC))
    with (dist / "Release").open() as stream:
        fields = ReleaseFile(stream)
    assert (fields["Suite"], fields["Codename"]) == ("bookworm", "bookworm")
    assert fields["Date"] == "Mon, 30 Nov 2026 12:00:00 UTC"
    assert fields["Valid-Until"] == "Wed, 30 Dec 2026 12:00:00 UTC"
    assert fields["Acquire-By-Hash"] == "yes"
    assert {one["name"] for one in fields["SHA256"]} == {
        f"{BINARIES}/Packages{end}" for end in ("", ".gz", ".xz")
    }
    assert by_hash(dist) == listed(dist)
    endless = archive.write(Group(()), at="endless", valid=None)
    assert "Valid-Until" not in (endless / "Release").read_text()


@pytest.mark.parametrize("way", ["expired", "future", "unsigned", "another-key", "changed"])
def test_apt_refuses_an_index_that_is_not_right(archive: Archive, tmp_path: Path, way: str) -> None:
    now = NOW + {"expired": timedelta(days=-31), "future": timedelta(days=1)}.get(way, timedelta())
    dist = archive.write(Group((archive.package(META, "1"),)), now=now)
    inrelease = dist / "InRelease"
    if way == "unsigned":
        inrelease.write_bytes((dist / "Release").read_bytes())
    elif way == "another-key":
        text = (dist / "Release").read_text()
        inrelease.write_bytes(signed_archive.key("other").clearsign(text))
    elif way == "changed":
        inrelease.write_text(inrelease.read_text().replace("Label: cp", "Label: xp"))
    apt = archive.apt(tmp_path / "apt", "Check-Valid-Until: yes\nCheck-Date: yes\n")
    said = apt("apt-get", "update", check=False)
    assert "E: " in said
    assert META not in apt("apt-cache", "pkgnames")


def test_versions_of_one_name_have_their_own_percentages(archive: Archive, tmp_path: Path) -> None:
    old, middle, new = (archive.package(META, version) for version in "123")
    dist = archive.write(Group((old,)), Group((new,), 10), Group((middle,), 50))
    found = {one["Version"]: one.get("Phased-Update-Percentage") for one in stanzas(dist)}
    assert found == {"1": None, "2": "50", "3": "10"}
    # An override changes nothing else.
    for one in stanzas(dist):
        assert (one["Priority"], one["Section"]) == ("optional", "kernel")
    apt = archive.apt(tmp_path / "apt")
    apt("apt-get", "update")
    assert "(phased 10%)" in apt("apt-cache", "policy", META)


def test_a_package_of_two_groups_reaches_the_most_servers(archive: Archive) -> None:
    """The DKMS package of a new release may be that of an older one, which all servers get."""
    shared, new = archive.package("cplayground-dkms", "1"), archive.package(META, "2")
    for groups in (
        [Group((shared, new), 10), Group((shared,))],
        [Group((shared,), 50), Group((shared, new), 10)],
    ):
        dist = archive.write(*groups, at=f"dists/{groups[0].percentage}")
        found = [(one["Package"], one.get("Phased-Update-Percentage")) for one in stanzas(dist)]
        widest = None if groups[0].percentage == 10 else "50"
        assert sorted(found) == [("cplayground-dkms", widest), (META, "10")]


@pytest.mark.parametrize("source", ["linux-cplayground (2)", ""])
def test_packages_of_one_source_reach_the_same_servers(
    archive: Archive, tmp_path: Path, source: str
) -> None:
    """Otherwise a server could get a new kernel without the module for it."""
    names = (META, "cplayground-modules-cloud-amd64")
    new = tuple(archive.package(name, "2") for name in names)
    archive.write(Group(new, 50, source))
    apt = archive.apt(tmp_path / "apt")
    apt("apt-get", "update")
    installed = "Package: {}\nVersion: 1\nArchitecture: amd64\nStatus: install ok installed\n"
    lines = f"{installed}Maintainer: x\nDescription: x\n"
    (apt.top / "dpkg/status").write_text("\n".join(lines.format(name) for name in names))
    chosen = []
    for number in range(24):
        machine = f"APT::Machine-ID={number:032x}"
        said = apt("apt-get", "--simulate", "--option", machine, "upgrade")
        chosen.append(tuple(f"Inst {name} " in said for name in names))
    assert {(True, True), (False, False)} <= set(chosen)
    assert (len(set(chosen)) == 2) == bool(source), chosen


def test_the_same_arguments_give_the_same_bytes(archive: Archive) -> None:
    packages = tuple(archive.package(name, "1") for name in ("c", "a", "b"))
    first = archive.write(Group(packages), at="one", sign=lambda release: release)
    again = archive.write(Group(packages[::-1]), at="two", sign=lambda release: release)
    assert fs.sha256_tree(first) == fs.sha256_tree(again)


def test_the_indexes_of_three_generations_stay_available(archive: Archive) -> None:
    trees: list[Path] = []
    for number in range(6):
        package = archive.package(META, str(number))
        trees.insert(0, archive.write(Group((package,)), at=f"{number}", earlier=trees))
    newest, *earlier, oldest = trees[:5]
    assert by_hash(newest) == listed(newest).union(*map(listed, earlier))
    assert not by_hash(newest) & listed(oldest)
    (name, *_) = listed(earlier[0])
    inside = f"{BINARIES}/by-hash/SHA256/{name}"
    assert (newest / inside).samefile(earlier[0] / inside)


def test_a_damaged_earlier_index_is_not_carried_over(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    first = archive.write(Group((archive.package(META, "1"),)), at="one")
    (victim, *_) = sorted(listed(first))
    (first / BINARIES / "by-hash/SHA256" / victim).write_text("damaged")
    second = archive.write(Group((archive.package(META, "2"),)), at="two", earlier=[first])
    assert by_hash(second) == (listed(first) - {victim}) | listed(second)
    assert victim in caplog.text


@pytest.mark.parametrize("way", ["changed", "gone", "no-package", "wrong-digest"])
@pytest.mark.parametrize("percentage", [None, 10])
def test_a_package_that_is_not_as_recorded_is_refused(
    archive: Archive, way: str, percentage: int | None
) -> None:
    good, bad = archive.package("a", "1"), archive.package("b", "1", "content")
    if way == "changed":
        fake_kernel.package(bad.path.parent, "b", "1", "other content")
    elif way == "gone":
        bad.path.unlink()
    elif way == "no-package":
        bad.path.write_text("no package")
        bad = dataclasses.replace(bad, sha256=fs.sha256_file(bad.path))
    else:
        bad = dataclasses.replace(bad, sha256="0" * 64)
    with pytest.raises(BuildError):
        archive.write(Group((good, bad), percentage))
    assert not (archive.root / "dists/bookworm/InRelease").exists()


def test_two_files_of_one_version_are_refused(archive: Archive, tmp_path: Path) -> None:
    one = archive.package("a", "1")
    other = dataclasses.replace(one, path=tmp_path / "other.deb", sha256="0" * 64)
    with pytest.raises(BuildError, match="two different packages a 1"):
        archive.write(Group((one,)), Group((other,), 10))


def test_without_a_signature_there_is_no_inrelease(archive: Archive) -> None:
    def fail(release: bytes) -> bytes:
        raise SigningError("no key")

    with pytest.raises(SigningError):
        archive.write(Group(()), sign=fail)
    assert not (archive.root / "dists/bookworm/InRelease").exists()


def test_the_path_of_an_archive_may_have_any_character(tmp_path: Path) -> None:
    archive = Archive(tmp_path / 'an "archive"; # {x}')
    dist = archive.write(Group((archive.package(META, "1"),), 10))
    (one,) = stanzas(dist)
    assert one["Filename"] == f"pool/main/x/{META}_1_amd64.deb"


def test_the_machines_apt_configuration_does_not_count(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = fake_kernel.write(tmp_path / "conf", 'APT::FTPArchive::Release::Origin "machine";\n')
    monkeypatch.setenv("APT_CONFIG", str(conf))
    dist = archive.write(Group(()))
    assert "machine" not in (dist / "Release").read_text()


# The fields of a package.


@pytest.fixture(params=["none", "gzip", "xz"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree, path = tmp_path / "tree", tmp_path / "x.deb"
    fake_kernel.write(
        tree / "DEBIAN/control",
        "Package: x\nVersion: 1:6.1-1\nArchitecture: all\nMaintainer: N <n@n.invalid>\n"
        "Section: kernel\nPriority: optional\nDepends: a,\n b\nDescription: one\n more\n",
    )
    subprocess.run(["dpkg-deb", f"-Z{request.param}", "--build", tree, path], check=True)
    return path


def test_the_fields_of_a_package_are_dpkgs(packed: Path) -> None:
    shown = subprocess.run(["dpkg-deb", "--field", packed], capture_output=True, text=True)
    assert dict(Deb822(shown.stdout)) == deb.control(packed)


def test_a_damaged_package_is_refused_by_name_of_error(packed: Path) -> None:
    whole, good = packed.read_bytes(), deb.control(packed)
    refused = 0
    for length in range(0, len(whole), 7):
        packed.write_bytes(whole[:length])
        try:
            # Its end is its files, which have no fields.
            assert deb.control(packed, error=EvidenceError) == good
        except EvidenceError:
            refused += 1
    assert refused
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        raw = bytearray(whole)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        packed.write_bytes(raw)
        with contextlib.suppress(EvidenceError):
            deb.control(packed, error=EvidenceError)
    with pytest.raises(EvidenceError):
        deb.control(packed.parent, error=EvidenceError)
