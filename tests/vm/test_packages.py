"""The packages on an administrator's machine: installed by apt, removed and rebuilt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.core.model import PROCFILE, Kernel
from kbuild.guest.guest import Guest
from kbuild.lab import procfile
from kbuild.ship import versions
from tests import grub


def installed(guest: Guest) -> dict[str, tuple[str, str]]:
    """Return package → (dpkg's state, version)."""
    listed = guest.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\n"], timeout_s=30
    ).text
    rows = (line.split(" ") for line in listed.splitlines())
    return {name: (state, version) for name, state, version in rows}


def test_everything_is_installed_and_configured(guest: Guest, kernel: Kernel) -> None:
    packages = installed(guest)
    half = {name: state for name, (state, _) in packages.items() if state != "installed"}
    assert half == {}
    assert f"linux-image-{kernel.release}" in packages
    assert f"linux-headers-{kernel.release}" in packages
    assert "cplayground-dkms" in packages
    assert "linux-libc-dev" not in packages or "+cplayground" not in packages["linux-libc-dev"][1]
    audit = guest.run(["dpkg", "--audit"], timeout_s=60)
    assert (audit.status, audit.stdout) == (0, b"")


@pytest.mark.ours
def test_the_meta_packages_are_tied_to_their_versions(guest: Guest, kernel: Kernel) -> None:
    metas = {
        found[1]: (name, version)
        for name, (_, version) in installed(guest).items()
        if (found := re.match(r"linux-(image|headers)-cplayground-", name))
    }
    assert sorted(metas) == ["headers", "image"]
    for name, version in metas.values():
        depends = guest.run(["dpkg-query", "-W", "-f", "${Depends}", name], timeout_s=10).text
        assert f"(= {version})" in depends, f"{name}: {depends}"
        assert kernel.release in depends


def test_dkms_built_the_module_for_this_kernel_and_not_for_the_build_machines(
    guest: Guest, kernel: Kernel
) -> None:
    status = guest.run(["dkms", "status", "cplayground"], timeout_s=60).text
    rows = [line for line in status.splitlines() if kernel.release in line]
    assert len(rows) == 1, status
    assert rows[0].endswith("installed"), status
    chosen = guest.run(["modinfo", "-n", "cplayground"], timeout_s=10).text.strip()
    assert "/updates/dkms/" in chosen
    vermagic = guest.run(["modinfo", "-F", "vermagic", "cplayground"], timeout_s=10).text
    assert vermagic.split()[0] == kernel.release


def test_the_boot_loader_puts_our_kernel_beside_its_base(guest: Guest, tmp_path: Path) -> None:
    # The installed GRUB's order: our kernel directly next to its base, and the next security
    # kernel above both.
    library = tmp_path / "usr/share/grub/grub-mkconfig_lib"
    library.parent.mkdir(parents=True)
    library.write_bytes(guest.read("/usr/share/grub/grub-mkconfig_lib"))
    releases = sorted(
        name.removeprefix("vmlinuz-")
        for name in guest.run(["ls", "/boot"], timeout_s=10).text.split()
        if name.startswith("vmlinuz-")
    )
    if len(releases) == 1:
        pytest.skip("the guest has only Debian's own kernel")
    assert len(releases) == 2
    base = next(name for name in releases if not suites.is_ours(name))

    def neighbour(by: int) -> str:
        # 6.1.0-56-cloud-amd64, or since trixie 6.12.117+deb13-cloud-amd64
        number = r"(?<=-)\d+(?=-)|(?<=\.)\d+(?=\+)"
        return re.sub(number, lambda m: str(int(m[0]) + by), base, count=1)

    # A server may have later revisions of our kernel too.
    (ours,) = set(releases) - {base}
    revisions = [re.sub(r"-cplayground(\.\d+)?-", f"-cplayground.{n}-", ours) for n in (100, 99)]
    menu = [neighbour(-1), *revisions, *releases, neighbour(1)]
    expected = [neighbour(1), *revisions, ours, base, neighbour(-1)]
    assert list(grub.boot_order(menu, tmp_path)) == expected


@pytest.mark.ours
@pytest.mark.own_guest
def test_a_machine_that_cannot_build_is_no_unsupported_kernel(
    guest: Guest, kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    ours = f"cplayground/{versions.module_version(request.config.rootpath)}"
    guest.run(["dkms", "remove", ours, "-k", kernel.release], timeout_s=60, check=True)
    guest.run(["mv", "/usr/bin/make", "/usr/bin/make.away"], timeout_s=5, check=True)
    said = guest.run(["dkms", "install", ours, "-k", kernel.release], timeout_s=120)
    assert said.status not in (0, 9, 77)
    assert f"no verdict on {kernel.release}: " in (said.stderr + said.stdout).decode()


# DKMS builds in the same way for both kernels, and each build takes half a minute under TCG.
@pytest.mark.ours
@pytest.mark.own_guest
def test_the_prebuilt_module_loads_too(
    guest: Guest, kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    package: Path | None = request.config.getoption("prebuilt")
    assert package is not None, "--prebuilt has to name the package with the module"
    guest.put(package, f"/tmp/{package.name}", mode=0o644)
    guest.run(["dpkg", "--install", f"/tmp/{package.name}"], timeout_s=60, check=True)
    path = f"/lib/modules/{kernel.release}/extra/cplayground.ko"
    guest.run(["insmod", path], timeout_s=20, check=True)
    try:
        guest.run(["cat", PROCFILE], timeout_s=20, check=True)
    finally:
        guest.run(["rmmod", "cplayground"], timeout_s=20, check=True)
    # DKMS has built one already, which comes first.  Without it, DKMS keeps the prebuilt one.
    chosen = guest.run(["modinfo", "-n", "cplayground"], timeout_s=10, check=True).text
    assert "/updates/dkms/" in chosen
    ours = f"cplayground/{versions.module_version(request.config.rootpath)}"
    guest.run(["dkms", "remove", ours, "-k", kernel.release], timeout_s=60, check=True)
    said = guest.run(["dkms", "autoinstall", "-k", kernel.release], timeout_s=120)
    assert b"it has the module already" in said.stderr + said.stdout
    chosen = guest.run(["modinfo", "-n", "cplayground"], timeout_s=10, check=True).text
    assert chosen.strip() == path
    # After its removal DKMS builds the module, whatever the caller's environment is.
    hostile = ["CROSS_COMPILE=no-machine-", "KBUILD_OUTPUT=/nowhere", "MAKEFLAGS=n"]
    remove = ["dpkg", "--remove", f"cplayground-modules-{kernel.release}"]
    guest.run(["env", *hostile, *remove], timeout_s=300, check=True)
    chosen = guest.run(["modinfo", "-n", "cplayground"], timeout_s=10, check=True).text
    assert "/updates/dkms/" in chosen


# systemd's program, or kmod's init script on a machine without systemd.
LOADER = """
for program in /lib/systemd/systemd-modules-load /etc/init.d/kmod; do
    [ -x $program ] || continue
    [ $program = /etc/init.d/kmod ] && set -- start
    exec $program "$@"
done
exit 99
"""


def test_a_boot_loads_the_module(guest: Guest) -> None:
    """Also if another module is missing, as ours is on a kernel for which nothing built it."""
    place = "/run/modules-load.d"
    guest.run(["mkdir", "-p", place], timeout_s=5, check=True)
    guest.put(b"no-such-module\n", f"{place}/00-missing.conf")
    guest.run(["sh", "-c", LOADER], timeout_s=60, check=True)
    guest.run(["rmmod", "cplayground"], timeout_s=20, check=True)
    guest.run(["rm", "-r", place], timeout_s=5, check=True)


def test_the_example_is_what_c_playgrounds_server_needs(guest: Guest) -> None:
    """The server may open the file as its own user, and a header has nine columns."""
    place = "/etc/modprobe.d/cplayground.conf"
    example = "/usr/share/doc/cplayground-dkms/examples/cplayground.conf"
    guest.run(["cp", example, place], timeout_s=5, check=True)
    guest.run(["modprobe", "cplayground"], timeout_s=20, check=True)
    inside = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    command = ["unshare", "--fork", "--pid", *inside, "cat", PROCFILE]
    shown = guest.run(command, timeout_s=20, check=True).stdout
    guest.run(["rmmod", "cplayground"], timeout_s=20, check=True)
    guest.run(["rm", place], timeout_s=5, check=True)
    (process,) = procfile.parse(shown, extended=True)
    assert process.command == b"cat"
