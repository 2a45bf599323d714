"""cplayground-archive-keyring: its files, its version, and what apt makes of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from debian.deb822 import Deb822
from debian.debian_support import Version

from kbuild.core import fs
from kbuild.core.errors import SigningError, UserError
from kbuild.core.model import Package, Settings
from kbuild.ship import indexes, keyring_package, mok, signing
from kbuild.ship.indexes import Group
from tests.unit import fake_kernel, secure_boot
from tests.unit.own_apt import Apt

NOW = datetime.now(UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    one = dataclasses.replace(
        fake_kernel.settings(tmp_path),
        keys=tmp_path / "keys",
        archive_url="http://kernels.example/",
    )
    signing.make_key(one)
    return one


def build(
    settings: Settings,
    out: Path,
    *,
    suite: str = "bookworm",
    now: datetime = NOW,
    last: Package | None = None,
    withdrawn: str = "",
) -> Package:
    return keyring_package.build(settings, suite, out, now=now, last=last, withdrawn=withdrawn)


def unpacked(package: Package, into: Path) -> Path:
    subprocess.run(["dpkg-deb", "-R", package.path, into], check=True)
    return into


def source(top: Path) -> Deb822:
    return Deb822((top / keyring_package.SOURCES).read_text())


def test_apt_reads_the_archive_with_what_the_package_has(
    settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "archive"
    settings = dataclasses.replace(settings, archive_url=f"file:{root}")
    package = build(settings, root / "pool")
    indexes.write(
        *(root / "dists/bookworm", root, "bookworm", [Group((package,))]),
        now=NOW,
        valid=indexes.VALID,
        sign=lambda release: signing.sign(settings, release),
    )
    top = unpacked(package, tmp_path / "server")
    stanza = (top / keyring_package.SOURCES).read_text().replace("/usr/share/", f"{top}/usr/share/")
    apt = Apt(tmp_path / "apt", stanza)
    apt("apt-get", "update")
    assert package.version in apt("apt-cache", "policy", package.name)


def test_the_files_are_its_own(settings: Settings, tmp_path: Path) -> None:
    package = build(settings, tmp_path / "out")
    top = unpacked(package, tmp_path / "x")
    assert (top / keyring_package.KEYRING).read_bytes() == signing.keyring(settings)
    found = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    doc = "usr/share/doc/cplayground-archive-keyring"
    assert found == {
        *("DEBIAN/control", "DEBIAN/conffiles", "DEBIAN/md5sums"),
        *(f"{doc}/copyright", f"{doc}/changelog.gz"),
        "usr/share/lintian/overrides/cplayground-archive-keyring",
        "etc/apt/sources.list.d/cplayground.sources",
        "usr/share/keyrings/cplayground-archive-keyring.gpg",
    }
    assert (top / "DEBIAN/conffiles").read_text() == f"/{keyring_package.SOURCES}\n"
    sums = subprocess.run(["md5sum", "-c", "DEBIAN/md5sums"], cwd=top, capture_output=True)
    assert sums.returncode == 0
    assert dict(source(top)) == {
        "Types": "deb",
        "URIs": "http://kernels.example/",
        "Suites": "bookworm",
        "Components": "main",
        "Architectures": "amd64",
        "Signed-By": "/usr/share/keyrings/cplayground-archive-keyring.gpg",
    }


def test_without_an_address_the_entry_is_off(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, archive_url="")
    package = build(settings, tmp_path / "out", suite="trixie-backports")
    top = unpacked(package, tmp_path / "x")
    assert (source(top)["Enabled"], source(top)["Suites"]) == ("no", "trixie-backports")
    apt = Apt(tmp_path / "apt", (top / keyring_package.SOURCES).read_text())
    apt("apt-get", "update")
    assert "archive.invalid" not in apt("apt-cache", "policy")


@pytest.mark.parametrize(
    "url", ["ftp://x.example/", "http://x.example/ y", "x", "http://a\nb", "http://[x"]
)
def test_an_address_that_apt_cannot_use_is_refused(
    settings: Settings, tmp_path: Path, url: str
) -> None:
    with pytest.raises(UserError):
        build(dataclasses.replace(settings, archive_url=url), tmp_path / "out")


def test_a_login_is_not_published(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, archive_url="http://u:secret@x.example/")
    with pytest.raises(UserError) as caught:
        build(settings, tmp_path / "out")
    assert "secret" not in str(caught.value)


def test_the_same_content_has_the_same_bytes(
    settings: Settings, tmp_path: Path, umask: int
) -> None:
    first = build(settings, tmp_path / "one")
    os.umask(0o022)
    again = build(settings, tmp_path / "two", now=NOW + timedelta(days=9))
    assert (first.version, first.sha256) == (again.version, again.sha256)
    assert first.version == f"{signing.keys(settings)[0].made:%Y.%m.%d}+deb12"


def test_the_version_rises_with_the_content_and_only_then(
    settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = [build(settings, out)]

    def next_one(**changes: str) -> Package:
        nonlocal settings
        settings = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
        before = fs.sha256_tree(out)
        assert build(settings, out, last=made[-1], now=NOW) == made[-1] or changes
        if not changes:
            assert fs.sha256_tree(out) == before
            return made[-1]
        made.append(build(settings, out, last=made[-1], now=NOW))
        return made[-1]

    assert next_one() is made[0]
    next_one(archive_url="http://other.example/")
    next_one(archive_url="http://third.example/")
    signing.rotate(settings)
    made.append(build(settings, out, last=made[-1], now=NOW + timedelta(days=1)))
    signing.finish(settings)
    made.append(build(settings, out, last=made[-1], now=NOW + timedelta(days=1)))
    versions = [Version(one.version) for one in made]
    assert versions == sorted(set(versions))
    assert len(versions) == 5
    # The next Debian's is above it, for the upgrade of a server.
    assert Version(build(settings, out, suite="trixie").version) > versions[0]


def test_without_a_key_there_is_no_package(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, keys=tmp_path / "none")
    with pytest.raises(SigningError):
        build(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_certificates_for_secure_boot_come_with_a_higher_version(
    settings: Settings, tmp_path: Path
) -> None:
    plain = build(settings, tmp_path / "pool")
    assert not (unpacked(plain, tmp_path / "plain") / keyring_package.MOK).exists()
    own = secure_boot.with_key(settings, tmp_path / "mok")
    signed = build(own, tmp_path / "pool", last=plain)
    assert Version(signed.version) > Version(plain.version)
    top = unpacked(signed, tmp_path / "signed")
    (certificate,) = mok.certificates(own)
    assert (top / keyring_package.MOK).read_bytes() == certificate.der
    assert build(own, tmp_path / "pool", last=signed) == signed
    # The next key is enrolled before it signs.
    following = secure_boot.with_key(settings, tmp_path / "next")
    assert own.mok_certificate is not None and following.mok_certificate is not None
    with own.mok_certificate.open("ab") as stream:
        stream.write(following.mok_certificate.read_bytes())
    both = unpacked(build(own, tmp_path / "pool", last=signed), tmp_path / "both")
    assert (both / "usr/share/cplayground/mok.der").read_bytes() == certificate.der
    (second,) = mok.certificates(following)
    assert (both / "usr/share/cplayground/mok-2.der").read_bytes() == second.der


def test_a_certificate_stays_until_it_is_withdrawn(settings: Settings, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    old, new = (secure_boot.with_key(settings, tmp_path / name) for name in ("old", "new"))
    first, second = (mok.certificates(one)[0] for one in (old, new))
    one = build(old, pool)
    # A task without the settings, or with those of the next key only, takes nothing away.
    assert build(settings, pool, last=one) == one
    two = build(new, pool, last=one)
    assert keyring_package.certificates(two) == (second.der, first.der)
    assert build(settings, pool, last=two) == two
    three = build(new, pool, last=two, withdrawn=first.digest)
    assert keyring_package.certificates(three) == (second.der,)
    assert Version(one.version) < Version(two.version) < Version(three.version)
    # It does not come back.
    assert build(new, pool, last=three) == three
    assert (
        keyring_package.certificates(build(settings, pool, last=three, withdrawn=second.digest))
        == ()
    )
