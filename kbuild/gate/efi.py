"""A disk that UEFI boots through Debian's shim and signed GRUB, and a firmware that trusts a key.

The disk has a GPT with an EFI system partition and one ext4.  It is made of a tree without a loop
device.  The firmware is OVMF with Microsoft's keys, as machines have them, and with machine owner
keys, as if an administrator had enrolled them.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.progress import size
from kbuild.core.run import run
from kbuild.gate import disk
from kbuild.gate.server import UUID
from kbuild.guest.spec import Firmware

logger = logging.getLogger(__name__)

# Debian's package ovmf: the program that enforces Secure Boot, and variables with Microsoft's keys.
_OVMF = Path("/usr/share/OVMF")
_PROGRAM, _VARIABLES = _OVMF / "OVMF_CODE_4M.secboot.fd", _OVMF / "OVMF_VARS_4M.ms.fd"
# The owner that is written next to an enrolled key; firmware makes nothing of it.
_OWNER = "605dab50-e046-4300-abb6-3dd810dd8b23"

_MIB = 1 << 20
_START = _MIB  # of the first partition
_ESP_BYTES = 64 * _MIB
_TABLE_BYTES = _MIB  # for the copy of the table at the end
_TIMEOUT_S = 600.0
# As grub-install(8) does with --removable: firmware without a boot entry starts BOOTX64.EFI.
_FILES = {
    "EFI/BOOT/BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "EFI/BOOT/mmx64.efi": "usr/lib/shim/mmx64.efi.signed",
    "EFI/BOOT/grubx64.efi": "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
}
# Debian's signed GRUB reads this file, which grub-install writes, too.
_MENU = "EFI/debian/grub.cfg"
_FIND = f"search.fs_uuid {UUID} root\nset prefix=($root)/boot/grub\n"


def write(tree: Path, made: Path, *, log: Path) -> Path:
    """Write a server's tree to a disk for UEFI, sparse and by rename, and return ``made``.

    Raises BuildError if the tree lacks a boot loader or its menu, InfrastructureError if a program
    fails.
    """
    disk.check_menu(tree)
    length = disk.file_system_bytes(tree)
    root = _START + _ESP_BYTES
    scratch = made.with_name(f".{made.name}.new")
    try:
        with scratch.open("wb") as stream:
            stream.truncate(root + length + _TABLE_BYTES)
        scratch.chmod(0o644)
        table = (
            "label: gpt\nunit: sectors\n"
            f"start={_START // 512}, size={_ESP_BYTES // 512}, type=uefi\n"
            f"start={root // 512}, size={length // 512}, type=linux\n"
        )
        _run(log, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", scratch, data=table)
        _write_loaders(tree, scratch, log)
        write_menu(scratch, log=log)
        disk.write_file_system(tree, scratch, at=root, length=length, log=log)
        fs.sync(scratch)
        fs.rename(scratch, made)
    finally:
        scratch.unlink(missing_ok=True)
    logger.info("disk %s for UEFI: %s", made.name, size(length))
    return made


def write_menu(disk: Path, *, instead: str = "", log: Path) -> None:
    """Let GRUB read the server's menu from a disk, or run other lines ``instead``."""
    with tempfile.TemporaryDirectory(prefix="cplayground-esp-") as name:
        menu = Path(name, "grub.cfg")
        menu.write_text(_FIND + (instead or "configfile $prefix/grub.cfg\n"))
        _run(log, "mcopy", "-o", "-i", _partition(disk), menu, f"::/{_MENU}")


def _partition(disk: Path) -> str:
    """Return the EFI system partition of a disk as mtools(1) names it."""
    return f"{disk}@@{_START}"


def _write_loaders(tree: Path, disk: Path, log: Path) -> None:
    """Fill the EFI system partition, but for the menu's place."""
    files = {place: tree / origin for place, origin in _FILES.items()}
    for path in files.values():
        if not path.exists():
            raise BuildError(
                "the tree has no boot loader for UEFI, so no disk is made of it",
                expected=str(path),
            )
    at, sectors = ("-i", _partition(disk)), str(_ESP_BYTES // 512)
    _run(log, "mformat", *at, "-T", sectors, "-h", "64", "-s", "32", "-F", "::")
    directories = {str(one) for place in (*files, _MENU) for one in Path(place).parents} - {"."}
    _run(log, "mmd", *at, *(f"::/{one}" for one in sorted(directories)))
    for place, path in files.items():
        _run(log, "mcopy", *at, path, f"::/{place}")


def firmware(variables: Path, certificates: Sequence[Path]) -> Firmware:
    """Write a firmware's variables with enrolled keys to ``variables``, and return the firmware.

    ``certificates`` are PEM files.  Every user may read the result, as QEMU must.
    """
    keys = [word for one in certificates for word in ("--add-mok", _OWNER, one)]
    run(
        [
            *(sys.executable, "-P", "-m", "virt.firmware.vars"),
            *("--input", _VARIABLES, "--output", variables, *keys),
        ],
        timeout_s=_TIMEOUT_S,
        error=InfrastructureError,
        hint="is Debian's package ovmf installed?",
    )
    variables.chmod(0o644)
    program = variables.with_name(f"{variables.name}.program")
    shutil.copyfile(_PROGRAM, program)
    program.chmod(0o644)
    return Firmware(program, variables)


def _run(log: Path, *argv: str | Path, data: str = "") -> None:
    run(
        argv,
        data=data.encode() if data else None,
        log=log,
        timeout_s=_TIMEOUT_S,
        error=InfrastructureError,
    )
