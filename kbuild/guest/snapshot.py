"""Booted guests kept on disk, each under a digest of everything inside.

A guest is booted with its memory in a file that it shares with us, and with its disk's changes in
a qcow2 overlay.  Then QEMU migrates the rest, processors and devices, to a third file.  A restored
guest maps the memory privately and copies a page when it writes to it.  So no memory is read or
written before it is used, and several guests share the pages that they only read.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, results, run, stamp
from kbuild.core.progress import size
from kbuild.guest import qemu
from kbuild.guest.channel import PROTOCOL
from kbuild.guest.guest import Guest
from kbuild.guest.spec import KVM, GuestSpec, Snapshot

logger = logging.getLogger(__name__)

_FORMAT = "3"
_MARK = "snapshot.json"
_PORT = "port"
# A snapshot has at most the size of the guest's memory.  The most recently used ones are kept,
# and a caller that has just got one must find it.
_KEPT = 6
_RECENT_S = 3600.0
# No run works on a snapshot for so long, so an older unfinished one is from a killed run.
_ABANDONED_S = 86400.0
# struct ext4_super_block: 1,024 bytes into the disk, s_uuid 0x68 bytes into that.
_UUID_AT = 1024 + 0x68


@dataclass(frozen=True)
class Provision:
    """An action in the guest before it is saved, and its part of the snapshot's key."""

    inputs: Mapping[str, str]
    apply: Callable[[Guest], None]


NOTHING = Provision({}, lambda _: None)


def ensure(
    cache: Path, spec: GuestSpec, *, workdir: Path, provision: Provision = NOTHING
) -> Snapshot:
    """Return a snapshot of a booted guest, and make it if ``cache`` has none with this content.

    ``workdir`` receives the console of the boot.  Raises GuestLost when the guest does not
    come up clean, InfrastructureError when QEMU does not save it.
    """
    inputs = describe(spec) | dict(provision.inputs)
    shelf = cache / "snapshots"
    home = shelf / stamp.digest(inputs)[:16]

    def make(scratch: Path) -> list[Path]:
        made = Snapshot(scratch, spec)
        _make(made, workdir, provision)
        logger.info("snapshot %s: %s", home.name, size(fs.disk_usage(scratch)))
        return _files(made)

    results.kept(
        home / _MARK,
        inputs,
        make,
        lambda: home,
        lock=shelf / f"{home.name}.lock",
        doing=f"booting {spec.kernel.release} for a snapshot",
        fresh=True,
    ).ensure()
    fs.mark_used(home)
    prune(shelf, keep=_KEPT)
    port = (home / _PORT).read_text() or None
    return Snapshot(home, spec, port)


def describe(spec: GuestSpec) -> dict[str, str]:
    """Return the manifest of a booted guest's inputs."""
    release = spec.kernel.release
    boot = spec.kernel.root / "boot"
    placeholder = Snapshot(Path("snapshot"), spec)
    wires = qemu.Wires(control=0, bulk=0, qmp=0, console=0)
    inputs = {
        "format": _FORMAT,
        "protocol": str(PROTOCOL),
        "kernel": fs.sha256_file(boot / f"vmlinuz-{release}"),
        "disk": _disk_identity(spec.disk),
        "qemu": run.run([qemu.QEMU, "--version"], timeout_s=30).stdout.splitlines()[0],
        "machine": " ".join(qemu.command(spec, wires, placeholder, restored=False)),
    }
    initrd = boot / f"initrd.img-{release}"
    if spec.initrd and initrd.exists():
        inputs["initrd"] = fs.sha256_file(initrd)
    if spec.accelerator is KVM:
        # Under KVM the guest saw this machine's processor.
        inputs["host"] = f"{platform.node()} {platform.release()}"
    return inputs


def prune(shelf: Path, *, keep: int) -> None:
    """Remove all but the ``keep`` most recently used snapshots, and the leftovers of killed runs.

    A snapshot that was used within the hour stays, because a guest may soon be restored from it.
    """
    now = time.time()
    homes = sorted(
        (path for path in shelf.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=_used,
        reverse=True,
    )
    old = [home for home in homes[keep:] if now - _used(home) > _RECENT_S]
    left = [path for path in shelf.glob(".*") if now - _used(path) > _ABANDONED_S]
    for path in (*old, *left):
        logger.info("removing the snapshot %s, which was not used recently", path.name)
        fs.remove_tree(path)


def _used(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _disk_identity(disk: Path) -> str:
    # Two disks from the same inputs differ.  The path is part of the machine's options.
    with disk.open("rb") as stream:
        stream.seek(_UUID_AT)
        uuid = stream.read(16).hex()
    status = disk.stat()
    return f"ext4 {uuid}, {status.st_size} bytes of {status.st_mtime_ns}"


def _make(made: Snapshot, workdir: Path, provision: Provision) -> None:
    qemu.overlay(made.spec.disk, made.disk)
    # QEMU's user may neither create a file here nor extend one to the size of a guest's memory.
    with made.memory.open("wb") as stream:
        stream.truncate(made.spec.memory_mib << 20)
    qemu.lend(made.memory)
    guest = Guest.boot_to_save(made, workdir=workdir)
    try:
        provision.apply(guest)
        (made.home / _PORT).write_text(guest.port or "")
        guest.save(made.state)
    finally:
        guest.abandon()
    qemu.take_back(made.disk)
    shutil.copyfile(guest.machine.console.path, made.console)


def _files(made: Snapshot) -> list[Path]:
    return [made.memory, made.disk, made.state, made.console, made.home / _PORT]
