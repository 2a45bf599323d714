"""The installed kernels: their release and exports, and the distro's own modules in ours."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from kbuild.core.model import Kernel
from kbuild.guest.guest import Guest
from kbuild.guest.image import is_ours
from kbuild.guest.outcome import taint_letters
from kbuild.kernel import quilt

# Directories of lib/modules, one for each kind of module that a server needs.
KINDS = (
    "kernel/fs",
    "kernel/net",
    "kernel/drivers/virtio",
    "kernel/drivers/net",
    "kernel/drivers/block",
    "kernel/drivers/md",
    "kernel/crypto",
    "kernel/arch/x86/crypto",
)
# Modules without hardware in the guest refuse to load on any kernel (arc-rimi with EIO).  The
# module loader's own refusals have other texts: ENOEXEC, EINVAL, EKEYREJECTED.
ABSENT = (
    *("ENODEV", "No such device", "Operation not supported", "No such file or directory"),
    "Input/output error",
)
PER_KIND = 12


def modules(guest: Guest) -> dict[str, list[str]]:
    """Return kind → names of the modules that the running kernel came with."""
    listed = guest.run(
        ["find", f"/lib/modules/{guest.release}/kernel", "-name", "*.ko*"], timeout_s=30
    ).text
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for line in sorted(listed.splitlines()):
        for kind in KINDS:
            if f"/{kind}/" in line:
                names[kind].append(PurePosixPath(line).name.partition(".ko")[0].replace("-", "_"))
    return names


def test_the_kernel_is_the_one_that_was_asked_for(guest: Guest, kernel: Kernel) -> None:
    assert guest.run(["uname", "-r"], timeout_s=10).text.strip() == kernel.release
    version = guest.run(["uname", "-v"], timeout_s=10).text
    assert ("+cplayground" in version) == is_ours(kernel)


def test_exactly_the_declared_symbols_are_exported(
    guest: Guest, kernel: Kernel, request: pytest.FixtureRequest
) -> None:
    upstream = re.split(r"[-+]", guest.release)[0]
    series = quilt.choose(request.config.rootpath / "patches", upstream)
    exported = {
        line.split()[2].removeprefix("__ksymtab_")
        for line in guest.run(["cat", "/proc/kallsyms"], timeout_s=60).text.splitlines()
        if "__ksymtab_" in line
    }
    assert len(exported) > 1000
    for symbol in series.exports:
        assert (symbol in exported) == is_ours(kernel), symbol


@pytest.mark.own_guest(booted=True)
def test_every_kind_of_module_loads_verified_and_without_taint(guest: Guest) -> None:
    before = guest.taint()
    assert before == 0, taint_letters(before)
    kinds = modules(guest)
    if not any(kinds.values()):
        # In our small kernel everything is built in.
        assert "-lab" in guest.release
        return
    loaded: dict[str, list[str]] = {}
    for kind, names in kinds.items():
        for name in names:
            if len(loaded.setdefault(kind, [])) == PER_KIND:
                break
            done = guest.run(["modprobe", name], timeout_s=30)
            if done.status == 0:
                loaded[kind].append(name)
            else:
                said = done.stderr.decode(errors="replace")
                assert any(word in said for word in ABSENT), f"{name}: {said}"
    assert all(loaded.values()), {kind: len(names) for kind, names in loaded.items()}
    assert guest.taint() == 0, taint_letters(guest.taint())
    present = guest.run(["ls", "/sys/module"], timeout_s=10).text.split()
    with_btf = set(guest.run(["ls", "/sys/kernel/btf"], timeout_s=10).text.split())
    wanted = {name for names in loaded.values() for name in names} & set(present)
    assert wanted
    # Modules have BTF since Linux 5.11; the kernel itself had it before.
    config = guest.run(["cat", f"/boot/config-{guest.release}"], timeout_s=10, check=True).text
    if "CONFIG_DEBUG_INFO_BTF_MODULES=y" not in config.splitlines():
        assert with_btf == {"vmlinux"}
        return
    assert wanted - with_btf == set()
