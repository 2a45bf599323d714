"""The repository, as apt itself sees it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Package, Settings
from kbuild.ship import repo
from tests.unit import fake_kernel
from tests.unit.own_apt import Apt

DOCS = Path(__file__).parents[2] / "docs/howto/install-and-upgrade.md"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return fake_kernel.settings(tmp_path)


@pytest.fixture
def packages(tmp_path: Path) -> tuple[Package, ...]:
    return (
        fake_kernel.package(tmp_path / "debs", "linux-image-x", "6.1.192-2+cplayground1", "one"),
        fake_kernel.package(tmp_path / "debs", "cplayground-dkms", "0.1.0", "two"),
    )


def apt_of(tmp_path: Path, repository: Path) -> Apt:
    apt = Apt(
        tmp_path / "apt", (repository / "dists/bookworm/cplayground-build.sources").read_text()
    )
    apt("apt-get", "update")
    return apt


def test_apt_sees_and_downloads_the_packages(
    tmp_path: Path, settings: Settings, packages: Sequence[Package]
) -> None:
    repository = repo.publish(settings, {"bookworm": packages})
    assert repository == settings.build / "repo"
    apt = apt_of(tmp_path, repository)
    for package in packages:
        apt("apt-get", "download", f"{package.name}={package.version}")
        (file,) = (apt.top / "download").glob(f"{package.name}_*.deb")
        assert fs.sha256_file(file) == package.sha256
    assert "6.1.192-2+cplayground1" in apt("apt-cache", "policy", "linux-image-x")
    # Only what apt reads is there.
    assert {path.name for path in repository.iterdir()} == {"dists", "pool", "cplayground.gpg"}


NEWER, OLDER = "6.1.192-2+cplayground1", "6.1.187-1+cplayground1"
META = "linux-image-cplayground-cloud-amd64"


@pytest.fixture
def upgradable(tmp_path: Path, settings: Settings) -> Apt:
    """Return an apt with a metapackage installed that the repository has a newer version of."""
    newer = fake_kernel.package(tmp_path / "debs", META, NEWER)
    apt = apt_of(tmp_path, repo.publish(settings, {"bookworm": [newer]}))
    control = (tmp_path / "debs" / f"{META}.tree/DEBIAN/control").read_text()
    fake_kernel.write(
        apt.top / "dpkg/status",
        "Status: install ok installed\n" + control.replace(NEWER, OLDER) + "\n",
    )
    assert f"Installed: {OLDER}" in apt("apt-cache", "policy", META)
    return apt


def upgraded(apt: Apt) -> bool:
    said = apt("apt-get", "--simulate", "dist-upgrade")
    return f"Inst {META} [{OLDER}] ({NEWER} " in said


def test_an_older_metapackage_is_not_pinned_by_being_installed(upgradable: Apt) -> None:
    assert upgraded(upgradable)


def test_a_hold_pins_a_metapackage(upgradable: Apt) -> None:
    documented = re.search(r"^ *apt-mark hold .*$", DOCS.read_text(), re.MULTILINE)
    assert documented is not None
    command, hold, *names = documented[0].replace("<flavour>", "cloud-amd64").split()
    assert META in names
    upgradable(command, hold, META)
    assert not upgraded(upgradable)
    upgradable(command, "unhold", META)
    assert upgraded(upgradable)


def test_the_documented_pin_pins_a_metapackage(upgradable: Apt) -> None:
    documented = re.search(
        r"^Package: .*\nPin: .*\nPin-Priority: .*$", DOCS.read_text(), re.MULTILINE
    )
    assert documented is not None
    fake_kernel.write(upgradable.top / "etc/preferences.d/cplayground", documented[0] + "\n")
    assert not upgraded(upgradable)
    assert f"Candidate: {OLDER}" in upgradable("apt-cache", "policy", META)


def test_release_has_all_that_unattended_upgrades_names_it_by(upgradable: Apt) -> None:
    """Allowed-Origins by origin and archive, Origins-Pattern by codename too."""
    policy = upgradable("apt-cache", "policy")
    (line,) = re.findall(r"^ +release (.*o=cplayground-kernel.*)$", policy, re.MULTILINE)
    fields = dict(field.split("=", 1) for field in line.split(","))
    assert (fields["o"], fields["a"], fields["n"]) == ("cplayground-kernel", *["bookworm"] * 2)
    assert '"cplayground-kernel:bookworm";' in DOCS.read_text()


def test_apt_refuses_a_changed_package(
    tmp_path: Path, settings: Settings, packages: Sequence[Package]
) -> None:
    """The test above can fail: apt does check what it is given."""
    repository = repo.publish(settings, {"bookworm": packages})
    (victim,) = repository.rglob("cplayground-dkms_*.deb")
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)
    apt = apt_of(tmp_path, repository)
    said = apt("apt-get", "download", "cplayground-dkms", check=False)
    assert "Hash Sum mismatch" in said


def test_repository_is_made_anew(settings: Settings, packages: Sequence[Package]) -> None:
    repo.publish(settings, {"bookworm": packages})
    repository = repo.publish(settings, {"bookworm": packages[:1], "trixie": packages[1:]})
    indexes = {
        suite: (repository / f"dists/{suite}/main/binary-amd64/Packages").read_text()
        for suite in ("bookworm", "trixie")
    }
    assert "linux-image-x" in indexes["bookworm"]
    assert "cplayground-dkms" not in indexes["bookworm"]
    assert "cplayground-dkms" in indexes["trixie"]
    assert len(list(repository.rglob("*.deb"))) == 2
    assert not list(settings.build.glob(".rep*"))


def test_modes_are_those_that_apt_needs_whatever_the_umask(
    settings: Settings, packages: Sequence[Package], umask: int
) -> None:
    repository = repo.publish(settings, {"bookworm": packages, "trixie": packages[:1]})
    found = {
        path: oct(path.stat().st_mode & 0o7777) for path in (repository, *repository.rglob("*"))
    }
    assert found == {path: "0o755" if path.is_dir() else "0o644" for path in found}


def test_leftovers_of_a_killed_run_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, packages: Sequence[Package]
) -> None:
    """The scratch of the repository; what else lies there stays."""
    kept = fake_kernel.write(settings.build / ".report.json")
    program = tmp_path / "bin/apt-ftparchive"
    fake_kernel.write(program, "#!/bin/sh\nkill -9 $PPID\nsleep 60\n", mode=0o755)
    script = (
        "import sys; from pathlib import Path; from tests.unit import fake_kernel; "
        "from kbuild.ship import repo; "
        "repo.publish(fake_kernel.settings(Path(sys.argv[1])), {'bookworm': ()})"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=settings.project,
        env={"PATH": f"{program.parent}:{os.environ['PATH']}"},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(settings.build.glob(".repo.*/"))) == 1
    repo.publish(settings, {"bookworm": packages})
    assert list(settings.build.glob(".rep*")) == [kept]


def test_suite_without_packages_has_an_index(tmp_path: Path, settings: Settings) -> None:
    repository = repo.publish(settings, {"bookworm": ()})
    apt_of(tmp_path, repository)


@pytest.mark.parametrize("way", ["changed", "gone"])
def test_changed_package_is_refused_and_the_old_repository_stays(
    settings: Settings, packages: Sequence[Package], way: str
) -> None:
    repository = repo.publish(settings, {"bookworm": packages})
    before = fs.sha256_tree(repository)
    if way == "gone":
        packages[0].path.unlink()
    else:
        fake_kernel.package(packages[0].path.parent, packages[0].name, packages[0].version, "new")
    with pytest.raises(BuildError, match=r"has changed since|is gone"):
        repo.publish(settings, {"bookworm": packages})
    assert fs.sha256_tree(repository) == before
    assert not list(settings.build.glob(".rep*"))


def test_a_file_that_is_no_package_is_refused(tmp_path: Path, settings: Settings) -> None:
    path = fake_kernel.write(tmp_path / "x_1_amd64.deb", "not a package")
    package = Package("x", "1", "amd64", path, fs.sha256_file(path))
    with pytest.raises(BuildError, match="apt-ftparchive"):
        repo.publish(settings, {"bookworm": [package]})
    assert not (settings.build / "repo").exists()


def test_repository_needs_a_suite(settings: Settings) -> None:
    with pytest.raises(UserError):
        repo.publish(settings, {})
