"""A server with the guard, made once for all tests that boot GRUB alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.archive.release import Release
from kbuild.core import fs
from kbuild.core.model import Root
from kbuild.core.run import run
from kbuild.gate import server
from tests.gate import alone
from tests.gate.alone import Boot, Installed

PACKAGE = "cplayground-kernel-guard"
# Debian's kernel, a good one of ours, and a newer one.
STOCK, GOOD, NEW = (f"6.1.0-{name}" for name in ("1-amd64", "1-cplayground-amd64", "2-cplayground"))
TRIAL = "cplayground_guard=trial"

_DEFAULTS = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX="console=ttyS0 quiet"
GRUB_CMDLINE_LINUX_DEFAULT=
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""
# The places in a tree that a test may change.
_CHANGED = (
    "boot",
    "etc/default",
    "etc/grub.d",
    "etc/cplayground",
    "etc/apt/apt.conf.d",
    "var/lib/cplayground-guard",
)


@pytest.fixture(scope="session")
def guarded(
    request: pytest.FixtureRequest, newer: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    """A server with the guard, on which a kernel of ours took the place of Debian's."""
    home = tmp_path_factory.mktemp("grub")
    disks = request.config.getoption("disks")
    with server.copy(Root(newer.target.suite, disks, ""), home / "tree", log=home / "log") as made:
        one = Installed(made, home, alone.assemble(home))
        (one.tree / "etc/default/grub").write_text(_DEFAULTS)
        (one.tree / "boot/grub").mkdir(exist_ok=True)
        # The initrds are not made by initramfs-tools.
        conf = one.tree / "etc/initramfs-tools/update-initramfs.conf"
        conf.write_text("update_initramfs=no\n")
        one.plant(STOCK)
        one.run(["grub-editenv", "/boot/grub/grubenv", "create"])
        one.menu()
        one.prepare()
        install_guard(one, newer)
        install(one, GOOD)
        first = one.start()
        assert is_trial(first, GOOD), first
        one.guard("probation", booted=first)
        assert one.status(first)["good"] == GOOD
        _keep(one)
        yield one


def install_guard(one: Installed, release: Release) -> None:
    """Install the guard's package, and switch its checks off: no system runs in a tree."""
    (deb,) = (package.path for package in release.packages if package.name == PACKAGE)
    one.server.install(deb)
    checks = one.tree / "usr/lib/cplayground/guard/check.d"
    for path in checks.iterdir():
        (one.tree / "etc/cplayground/check.d" / path.name).write_text("")
    conf = one.tree / "etc/cplayground/guard.conf"
    text = conf.read_text().replace("PROBATION=10min", "PROBATION=0")
    conf.write_text(text.replace("PATIENCE=3min", "PATIENCE=0"))


def _keep(one: Installed) -> None:
    for place in _CHANGED:
        _copy(one.tree / place, one.home / "guarded" / place)


def restore(one: Installed) -> None:
    """Bring the server back into the state in which only the good kernel was ever started."""
    for place in _CHANGED:
        fs.remove_tree(one.tree / place)
        _copy(one.home / "guarded" / place, one.tree / place)


def _copy(source: Path, path: Path) -> None:
    if source.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two names of one file stay two names of one file.
        run(["cp", "-a", source, path], timeout_s=60)


def install(one: Installed, release: str = NEW) -> str:
    """Do what dpkg does for a new kernel: its files, the guard's hook, and the menu."""
    one.plant(release)
    said = one.guard("hook", "installed", release)
    one.menu()
    return said


def is_good(seen: Boot, release: str = GOOD) -> bool:
    """True if a boot started the good kernel, with its own initrd and without a trial."""
    assert seen.kernel, seen.console
    assert seen.initrd == f"initrd of {seen.kernel}", seen
    return seen.kernel == release and TRIAL not in seen.words


def is_trial(seen: Boot, release: str = NEW) -> bool:
    """True if a boot started the kernel on trial."""
    assert seen.kernel, seen.console
    assert seen.initrd == f"initrd of {seen.kernel}", seen
    return seen.kernel == release and TRIAL in seen.words
