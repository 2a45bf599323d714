"""Packages from each suite's debhelper: their bytes and modes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.core import sandbox
from kbuild.core.model import Package, Settings
from kbuild.core.run import run
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.ship import deb, dkms
from tests.unit import fake_kernel
from tests.unit.fake_kernel import EPOCH, RELEASE

Maker = Callable[[Path], tuple[Package, ...]]


@pytest.fixture(params=["kernel", "modules", "dkms"])
def make(request: pytest.FixtureRequest, settings: Settings, suite: str) -> Maker:
    """A function that builds the packages of one source package in a given directory."""
    root = roots.compile_root(settings, suite)

    def made(top: Path) -> tuple[Package, ...]:
        log, out = top / "log", top / "debs"
        if request.param == "dkms":
            return dkms.build_package(settings, root, log=log, out=out)
        kernel = fake_kernel.kernel(top)
        for name in ("scripts/basic/fixdep", "scripts/mod/modpost", "tools/objtool/objtool"):
            # dpkg-shlibdeps can read these programs; their modes are those after a build.
            shutil.copyfile(root.path / "bin/true", kernel.output / name)
        if request.param == "kernel":
            return deb.build_kernel_packages(settings, root, kernel, epoch=EPOCH, log=log, out=out)
        module = fake_kernel.write(top / "cplayground.ko", "module")
        return deb.build_prebuilt(settings, root, kernel, module, epoch=EPOCH, log=log, out=out)

    return made


@pytest.fixture
def mask() -> Iterator[Callable[[int], int]]:
    """The function os.umask; the test's umask is restored at its end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(package: Package) -> set[str]:
    listed = run(["dpkg-deb", "--contents", package.path], timeout_s=60).stdout
    return {re.sub(r"^l.*", "l", line.split()[0]) for line in listed.splitlines()}


def test_packages_are_the_same_under_every_umask(
    make: Maker, mask: Callable[[int], int], tmp_path: Path
) -> None:
    made = {}
    for given in (0o022, 0o077):
        mask(given)
        made[given] = make(tmp_path / oct(given))
    expected = {package.name: package.sha256 for package in made[0o022]}
    for given, packages in made.items():
        assert {package.name: package.sha256 for package in packages} == expected, oct(given)
        for package in packages:
            assert package.path.stat().st_mode & 0o777 == 0o644
    for package in made[0o077]:
        assert modes(package) <= {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "l"}, package.name


@pytest.mark.parametrize("make", ["kernel"], indirect=True)
def test_purge_leaves_nothing_that_the_depmod_of_the_suite_made(
    make: Maker, settings: Settings, suite: str, tmp_path: Path
) -> None:
    image = next(p for p in make(tmp_path) if p.name == f"linux-image-{RELEASE}")
    run(["dpkg-deb", "--control", image.path, tmp_path / "control"], timeout_s=60)
    # kmod of trixie looks in /usr/lib, that of the others in /lib.
    modules = tmp_path / "machine/usr/lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (tmp_path / "machine/lib").symlink_to("usr/lib")
    script = (tmp_path / "control/postrm").read_text().replace("/lib/modules/", "/mnt/lib/modules/")
    (tmp_path / "machine/postrm").write_text(script)

    def enter(*argv: str) -> None:
        binds = [Bind(tmp_path / "machine", "/mnt", writable=True)]
        sandbox.enter(roots.compile_root(settings, suite), argv, binds=binds, timeout_s=60)

    enter("depmod", "-b", "/mnt", RELEASE)
    made = {path.name for path in modules.iterdir()}
    assert made >= {"modules.dep", "modules.softdep"}
    assert ("modules.weakdep" in made) == suite.startswith("trixie")
    enter("sh", "/mnt/postrm", "purge")
    assert not modules.exists()
