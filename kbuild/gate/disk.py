"""A disk that boots through GRUB, made of a tree without a loop device.

The disk has a partition table of the MBR and one ext4.  GRUB lies where grub-install puts it: its
first stage in sector 0, the rest between that and the partition.
"""

from __future__ import annotations

import logging
import re
import struct
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.progress import size
from kbuild.core.run import run
from kbuild.gate.server import GRUB_IMAGES, LABEL, UUID

logger = logging.getLogger(__name__)

_SECTOR = 512
# The partition's first byte; all of Debian's tools leave the first MiB to the boot loader.
START = 1 << 20
# The first stage ends where the MBR's disk signature and partition table begin.
_BOOT_CODE = 440
_SIGNATURE, _LINUX, _ACTIVE = b"\x55\xaa", 0x83, 0x80
# A partition table's oldest kind of address; this one says "look at the newer kind".
_NO_CYLINDER = b"\xfe\xff\xff"
_DISK_ID = b"cpg\x01"
# Room for kernels, their initrds, and modules that a server builds.
_FREE_BYTES = 1 << 30
_TIMEOUT_S = 600.0
_NO_LOADER = "the tree has no boot loader, so no disk is made of it"
# The line of a menu entry that loads a kernel.
_OFFERED = re.compile(r"^\s*linux\s+\S*/vmlinuz-", re.MULTILINE)


def write(tree: Path, disk: Path, *, log: Path, free_bytes: int = _FREE_BYTES) -> Path:
    """Write a server's tree to a bootable raw disk, sparse and by rename, and return ``disk``.

    Every user may read the disk, as QEMU must.  Raises BuildError if the tree lacks GRUB's images
    or its menu, InfrastructureError if mke2fs fails.
    """
    boot, core = _grub(tree)
    if len(core) > START - _SECTOR:
        raise BuildError(
            "GRUB does not fit in front of the first partition",
            expected=f"a core.img of at most {START - _SECTOR} bytes",
            found=f"{len(core)} bytes",
        )
    length = file_system_bytes(tree, free_bytes=free_bytes)
    disk.parent.mkdir(parents=True, exist_ok=True)
    made = disk.with_name(f".{disk.name}.new")
    try:
        with made.open("wb") as stream:
            stream.truncate(START + length)
            stream.write(boot[:_BOOT_CODE] + _partition_table(length))
            stream.write(core)
        made.chmod(0o644)
        write_file_system(tree, made, at=START, length=length, log=log)
        fs.sync(made)
        fs.rename(made, disk)
    finally:
        made.unlink(missing_ok=True)
    logger.info("disk %s: %s", disk.name, size(length))
    return disk


def file_system_bytes(tree: Path, *, free_bytes: int = _FREE_BYTES) -> int:
    """Return the size of a file system with a tree and some free room, in whole MiB."""
    used = int(run(["du", "-s", "-B1", "--", tree], timeout_s=_TIMEOUT_S).stdout.split()[0])
    # ext4's own tables take some of the room.
    return (int(used * 1.1) + free_bytes) >> 20 << 20


def write_file_system(tree: Path, disk: Path, *, at: int, length: int, log: Path) -> None:
    """Write an ext4 with a tree into a disk, from byte ``at`` on; raises InfrastructureError."""
    run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-U", UUID),
            # GRUB of bullseye and bookworm cannot read a file system with such a seed.
            *("-O", "^metadata_csum_seed", "-E", f"offset={at},lazy_itable_init=1"),
            *("-d", tree, disk, f"{length >> 10}k"),
        ],
        timeout_s=_TIMEOUT_S,
        log=log,
        error=InfrastructureError,
    )


def check_menu(tree: Path) -> None:
    """Raise BuildError unless a tree has a boot menu with a kernel."""
    menu = tree / "boot/grub/grub.cfg"
    if not menu.exists():
        raise BuildError(_NO_LOADER, expected=str(menu))
    if not _OFFERED.search(menu.read_text()):
        raise BuildError(
            "the boot menu has no kernel, so no disk is made of this tree",
            expected="an entry for a kernel in /boot",
            found=str(menu),
            hint="read the log of the installation: its hooks call update-grub",
        )


def _grub(tree: Path) -> list[bytes]:
    check_menu(tree)
    try:
        return [(tree / name).read_bytes() for name in GRUB_IMAGES]
    except FileNotFoundError as error:
        raise BuildError(_NO_LOADER, expected=error.filename) from None


def _partition_table(length: int) -> bytes:
    """Return the end of sector 0, from the disk's id on, with one active partition of Linux."""
    entry = struct.pack(
        "<B3sB3sII", _ACTIVE, _NO_CYLINDER, _LINUX, _NO_CYLINDER, START // _SECTOR,
        length // _SECTOR,
    )  # fmt: skip
    return _DISK_ID + bytes(2) + entry.ljust(4 * len(entry), b"\0") + _SIGNATURE
