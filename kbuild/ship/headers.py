"""Collect the files of a linux-headers package, which external modules are built against.

They form one directory that needs no other package.  Debian's own headers are spread over four
(the flavour's, the common ones, kbuild's programs, the compiler's dependency).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import BuildError
from kbuild.core.model import BuiltKernel

_ARCH = "arch/x86"
# The makefiles and Kconfig files in these directories do not matter for building a module.
_SKIPPED = {"Documentation", "LICENSES", "samples", "tools"}
# Below scripts/: tools for the kernel's own developers, test data, and links into the trees of
# other architectures.
_SKIPPED_SCRIPTS = {
    "atomic",
    "coccinelle",
    "dtc",
    "gdb",
    "ksymoops",
    "package",
    "selinux",
    "tests",
    "tracing",
}
_BUILD_FILES = ("Makefile", "Kconfig", "Kbuild", "Platform")

_RELEASE = re.compile(r'^#define UTS_RELEASE "(.+)"$', re.MULTILINE)

# A module does not build without these; whether a kernel needs objtool depends on its options.
_NEEDED = (
    "Makefile",
    "Module.symvers",
    "include/config/auto.conf",
    "include/config/kernel.release",
    "include/generated/autoconf.h",
    "include/generated/utsrelease.h",
    "arch/x86/include/generated/uapi/asm/types.h",
    "scripts/basic/fixdep",
    "scripts/mod/modpost",
    "scripts/module.lds",
)
# Each option makes objtool check every module; before Linux 5.19 only the second existed
# (kernel commit 03f16cd020eb, "objtool: Add CONFIG_OBJTOOL").
_OBJTOOL = {"CONFIG_OBJTOOL=y", "CONFIG_STACK_VALIDATION=y"}


def stage(kernel: BuiltKernel, target: Path, *, compiler: str) -> None:
    """Collect the headers of a kernel below ``target``: usr/src/... and the build link.

    ``compiler`` is the full name of the program for compiling modules (gcc-12).  Raises
    BuildError that names the files missing in the kernel's output.
    """
    tree = target / "usr/src" / f"linux-headers-{kernel.release}"
    for relative in _from_source(kernel.source):
        _copy(kernel.source / relative, tree / relative)
    # Generated files go last, because they are this kernel's.
    for relative in _from_output(kernel.output):
        _copy(kernel.output / relative, tree / relative)
    _copy(kernel.symvers, tree / "Module.symvers")
    _copy(kernel.config, tree / ".config")
    # The generated file does not know the values from make's command line.
    fs.write_atomic(tree / "include/config/kernel.release", kernel.release + "\n")
    fs.write_atomic(tree / ".kernelvariables", kernel_variables(kernel.release, compiler))
    link = target / "lib/modules" / kernel.release / "build"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"/usr/src/linux-headers-{kernel.release}")
    check(tree)


def built_release(output: Path) -> str:
    """Return the uname -r of the kernel that was built in an output directory.

    Debian passes the release to make as KERNELRELEASE.  include/config/kernel.release does not
    know that value; only the compiled-in header has it.
    """
    header = output / "include/generated/utsrelease.h"
    found = _RELEASE.search(header.read_text()) if header.exists() else None
    if found is None:
        raise BuildError("the kernel's output does not name its release", expected=str(header))
    return found.group(1)


def kernel_variables(release: str, compiler: str) -> str:
    """Return the file in which Debian's kernel Makefile and DKMS find a kernel's compiler.

    A prefix with the machine's name (x86_64-linux-gnu-gcc-14) becomes a variable of its own, as
    in Debian's headers.  The kernel's Makefile compares the compiler's name.
    """
    machine, _, name = compiler.rpartition("-gcc-")
    prefix = f"override CROSS_COMPILE = {machine}-\n" if machine else ""
    return (
        "override ARCH = x86\n"
        f"override KERNELRELEASE = {release}\n"
        f"CC = $(CROSS_COMPILE){'gcc-' + name if machine else compiler}\n"
        f"{prefix}"
    )


def check(tree: Path) -> None:
    """Raise BuildError unless a tree of headers is complete."""
    needed = list(_NEEDED)
    configuration = tree / "include/config/auto.conf"
    if configuration.exists() and _OBJTOOL & set(configuration.read_text().splitlines()):
        needed.append("tools/objtool/objtool")
    missing = [name for name in needed if not (tree / name).exists()]
    if missing:
        raise BuildError(
            "the kernel's headers are incomplete: no module could be built against them",
            expected="\n".join(missing),
            found="nothing there",
            hint="prepare the kernel for modules (make modules_prepare)",
        )


def _from_source(source: Path) -> Iterator[Path]:
    for path in _walk(source, "include", skip=set()):
        yield path
    for path in _walk(source, "scripts", skip=_SKIPPED_SCRIPTS):
        if path.name != ".gitignore":
            yield path
    for path in _walk(source, ".", skip=_SKIPPED | {"include", "scripts"}):
        name = path.name
        inside = path.as_posix().startswith(f"{_ARCH}/")
        if path.parts[0] == "arch" and len(path.parts) > 2 and not inside:
            continue
        if name.startswith(_BUILD_FILES):
            yield path
    # Each part of the architecture has its own headers, so they lie in several places.
    for directory, names, _ in os.walk(source / _ARCH):
        names.sort()
        for name in names:
            if name in ("include", "scripts"):
                inner = (Path(directory) / name).relative_to(source)
                yield from _walk(source, inner.as_posix(), skip=set())


def _from_output(output: Path) -> Iterator[Path]:
    for directory in ("include/config", "include/generated", f"{_ARCH}/include/generated"):
        for path in _walk(output, directory, skip=set()):
            if not _is_litter(path):
                yield path
    for path in _walk(output, "scripts", skip=_SKIPPED_SCRIPTS):
        # Programs and plugins that a build runs, and the modules' linker script, but not their
        # sources.
        program = os.access(output / path, os.X_OK) or path.suffix == ".so"
        if (program or path.name == "module.lds") and not _is_litter(path):
            yield path
    for name in ("tools/objtool/objtool", "tools/bpf/resolve_btfids/resolve_btfids"):
        if (output / name).exists():
            yield Path(name)


def _is_litter(path: Path) -> bool:
    return path.suffix in (".cmd", ".o", ".d", ".tmp")


def _walk(top: Path, below: str, *, skip: set[str]) -> Iterator[Path]:
    """Yield every file and link below a directory, relative to ``top``, sorted."""
    for directory, names, files in os.walk(top / below):
        names[:] = sorted(name for name in names if name not in skip and name != ".git")
        here = Path(directory)
        for name in sorted([*files, *(n for n in names if (here / n).is_symlink())]):
            yield (here / name).relative_to(top)


def _copy(origin: Path, target: Path) -> None:
    """Copy a file or link with its permissions, but without its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        target.unlink()
    shutil.copyfile(origin, target, follow_symlinks=False)
    if not origin.is_symlink():
        shutil.copymode(origin, target)
