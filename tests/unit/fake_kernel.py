"""A compiled kernel of a few small files, for tests of packages and images."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from kbuild.core.fs import sha256_file
from kbuild.core.model import (
    Base,
    BuiltKernel,
    Package,
    Patch,
    Series,
    Settings,
    Target,
    VerifiedFile,
)

RELEASE = "6.1.0-56-cplayground-cloud-amd64"
EPOCH = 1794824260  # 2026-11-16 10:17:40 UTC


def write(path: Path, text: str = "", *, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def verified(name: str) -> VerifiedFile:
    return VerifiedFile(name, "6.1.192-2", Path("/nowhere") / name, "0" * 64, 1)


def base() -> Base:
    return Base(
        suite="bookworm",
        flavour="cloud-amd64",
        version="6.1.192-2",
        abi="6.1.0-56",
        signers=("A" * 40, "B" * 40),
        source=verified("linux-source-6.1"),
        image=verified("linux-image-6.1.0-56-cloud-amd64"),
        headers=verified("linux-headers-6.1.0-56-cloud-amd64"),
        support=(verified("linux-kbuild-6.1"),),
    )


def kernel(top: Path) -> BuiltKernel:
    """Lay a source tree, an output directory and modules out below ``top``."""
    source, output, modules = top / "src", top / "out", top / "modules"
    for name in (
        "Makefile",
        "Kconfig",
        "drivers/net/Makefile",
        "drivers/net/secret.c",
        "include/linux/module.h",
        "scripts/Makefile.build",
        "scripts/.gitignore",
        "scripts/gdb/linux/tool.py",
        "arch/x86/Makefile",
        "arch/x86/include/asm/io.h",
        "arch/x86/kernel/entry.c",
        "arch/arm64/Makefile",
        "arch/arm64/include/asm/io.h",
        "Documentation/Makefile",
        "tools/perf/Makefile",
    ):
        write(source / name, f"{name}\n")
    write(source / "scripts/checkpatch.pl", "#!/usr/bin/perl\n", mode=0o755)
    for name in (
        "arch/x86/boot/bzImage",
        "System.map",
        "include/config/.auto.conf.cmd",
        "include/generated/autoconf.h",
        "arch/x86/include/generated/uapi/asm/types.h",
        "scripts/module.lds",
        "scripts/mod/modpost.o",
        "certs/signing_key.pem",
        "vmlinux",
    ):
        write(output / name, f"{name}\n")
    for name in ("scripts/basic/fixdep", "scripts/mod/modpost", "tools/objtool/objtool"):
        write(output / name, "\x7fELF", mode=0o755)
    write(output / "include/config/kernel.release", "6.1.192\n")
    write(output / "include/config/auto.conf", "CONFIG_OBJTOOL=y\n")
    write(output / "include/generated/utsrelease.h", f'#define UTS_RELEASE "{RELEASE}"\n')
    write(modules / "kernel/fs/ext4/ext4.ko", "module~Module signature appended~\n")
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        write(modules / name, f"{name}\n")
    for name in ("modules.dep", "modules.dep.bin", "modules.alias", "modules.builtin.bin"):
        write(modules / name, "depmod's\n")
    patch = write(top / "patches/0001-export.patch", "--- a\n+++ b\n")
    return BuiltKernel(
        target=Target("bookworm", "cloud-amd64"),
        base=base(),
        series=Series(
            name="v5.11",
            range=">=5.11,<8",
            patches=(
                Patch(patch, "fs: export file tables", ("put_files_struct", "get_files_struct")),
            ),
            digest="5" * 64,
        ),
        release=RELEASE,
        method="fast",
        source=source,
        output=output,
        modules=modules,
        symvers=write(top / "Module.symvers", "0x1\tget_files_struct\tvmlinux\n"),
        config=write(top / "config", "CONFIG_MODULES=y\n"),
        compiler="gcc-12 (Debian 12.2.0-14) 12.2.0",
        digest="d" * 64,
        seconds=1.5,
    )


def variant(built: BuiltKernel, name: str, release: str) -> BuiltKernel:
    """Return the same kernel as if it were another variant."""
    return replace(built, target=replace(built.target, variant=name), release=release)


def settings(top: Path) -> Settings:
    return Settings(project=Path(__file__).parents[2], build=top / "build", cache=top / "cache")


def package(directory: Path, name: str, version: str, content: str = "") -> Package:
    """Build a small real .deb."""
    tree = directory / f"{name}.tree"
    write(tree / f"usr/share/{name}/content", content)
    write(
        tree / "DEBIAN/control",
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nSection: kernel\n"
        "Priority: optional\nMaintainer: Nobody <nobody@example.org>\nDescription: a test\n",
    )
    path = directory / f"{name}_{version}_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True
    )
    return Package(name, version, "amd64", path, sha256_file(path))
