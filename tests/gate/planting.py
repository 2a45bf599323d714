"""Releases with a defect, made of a good one by changing single packages."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from kbuild.archive.release import Release
from kbuild.core import fs, suites
from kbuild.core.model import Settings
from kbuild.core.run import run
from kbuild.gate.secure_boot import without_signature
from kbuild.ship import mok, versions

_TIMEOUT_S = 300


def plant(release: Release, name: str, change: Callable[[Path], None], into: Path) -> Release:
    """Return a release whose package ``name`` was unpacked, changed and packed again."""
    package = next(one for one in release.packages if one.name == name)
    tree = into / "tree"
    run(["dpkg-deb", "--raw-extract", package.path, tree], timeout_s=_TIMEOUT_S)
    change(tree)
    path = into / package.path.name
    run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, path],
        timeout_s=_TIMEOUT_S,
    )
    fs.remove_tree(tree)
    bad = dataclasses.replace(package, path=path, sha256=fs.sha256_file(path))
    packages = tuple(bad if one is package else one for one in release.packages)
    return dataclasses.replace(release, packages=packages)


def sign(release: Release, settings: Settings, into: Path) -> Release:
    """Return a release whose kernel and modules are signed for Secure Boot, and no others."""
    certificate, key = settings.mok_certificate, settings.mok_key
    assert certificate is not None and key is not None

    def sign_kernel(tree: Path) -> None:
        (image,) = tree.glob("boot/vmlinuz-*")
        # One that the pipeline signed has a signature already.
        run(["sbattach", "--remove", image], timeout_s=_TIMEOUT_S, check=False)
        image.write_bytes(mok.sign_kernel(settings, image, (), into).read_bytes())
        if release.target.flavour not in suites.DEBIAN_FLAVOURS:
            sign_modules(tree)

    def sign_modules(tree: Path) -> None:
        for module in tree.glob("**/*.ko"):
            content = into / "content"
            content.write_bytes(without_signature(module.read_bytes()))
            signature = into / "signature"
            mok._sign_module(key, certificate, content, signature)
            # struct module_signature of include/linux/module_signature.h: PKCS#7, and the length.
            tail = struct.pack(">BBBBBxxxI", 0, 0, 2, 0, 0, signature.stat().st_size)
            whole = content.read_bytes() + signature.read_bytes() + tail
            module.write_bytes(whole + b"~Module signature appended~\n")

    image = versions.image_package(release.kernel)
    modules = versions.modules_package(release.kernel)
    with_kernel = plant(release, image, sign_kernel, into)
    return plant(with_kernel, modules, sign_modules, into)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    """Return the change that gives a file another content."""

    def change(tree: Path) -> None:
        (found,) = tree.glob(name)
        found.write_bytes(content)

    return change


def failing_postinst(tree: Path) -> None:
    """Let the package's configuration fail."""
    script = tree / "DEBIAN/postinst"
    script.write_text("#!/bin/sh\necho 'planted: this postinst fails'\nexit 1\n")
    script.chmod(0o755)


def missing_dependency(tree: Path) -> None:
    """Let the package depend on something that no archive has."""
    control = tree / "DEBIAN/control"
    text = re.sub(r"^(Depends: .*)$", r"\1, gate-nowhere", control.read_text(), flags=re.M)
    control.write_text(text)


def not_loadable(tree: Path) -> None:
    """Let only the loading of the module fail: it says that it is for another kind of kernel."""
    (module,) = tree.glob("**/cplayground.ko")
    content, changes = re.subn(rb"(vermagic=\S+) SMP ", rb"\1 XMP ", module.read_bytes())
    assert changes == 1
    module.write_bytes(content)


# The type of relocations that put the address of an object into an instruction, and the type that
# the kernel skips (System V ABI for AMD64).
_R_X86_64_32S, _R_X86_64_NONE = 11, 0


def oopsing(tree: Path) -> None:
    """Let the module's start dereference null: no address is put into its instructions."""
    (module,) = tree.glob("**/cplayground.ko")
    with module.open("r+b") as file:
        section = ELFFile(file).get_section_by_name(".rela.init.text")
        assert isinstance(section, RelocationSection)
        places = [
            section["sh_offset"] + number * section["sh_entsize"]
            for number, one in enumerate(section.iter_relocations())
            if one["r_info_type"] == _R_X86_64_32S
        ]
        assert places
        for place in places:
            # Elf64_Rela: the offset, then the type, then the symbol.
            file.seek(place + 8)
            file.write(struct.pack("<I", _R_X86_64_NONE))
