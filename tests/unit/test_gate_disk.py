"""A server's disk: sector 0, GRUB behind it, and the file system."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.gate import disk, server

MIB = 1 << 20
MENU = "menuentry 'Debian' {\n\tlinux\t/boot/vmlinuz-6.1.0-57-amd64 ro\n}\n"


def tree(tmp_path: Path, *, core: bytes = b"CORE" * 1000) -> Path:
    """Make a tree with GRUB's images, a menu and a file that tells it from others."""
    root = tmp_path / "root"
    for name, content in {
        server.GRUB_IMAGES[0]: b"B" * 512,
        server.GRUB_IMAGES[1]: core,
        "boot/grub/grub.cfg": MENU.encode(),
        "etc/hostname": b"server\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write(tmp_path: Path, root: Path, free_bytes: int = 8 * MIB) -> Path:
    return disk.write(root, tmp_path / "disk.img", log=tmp_path / "log", free_bytes=free_bytes)


def test_the_firmware_finds_grub_and_grub_finds_the_partition(tmp_path: Path) -> None:
    raw = write(tmp_path, tree(tmp_path)).read_bytes()
    # The firmware runs sector 0 only with this signature, and GRUB's first stage loads sector 1.
    assert raw[510:512] == b"\x55\xaa"
    assert raw[:440] == b"B" * 440
    assert raw[440:446] != b"B" * 6
    assert raw[512:].startswith(b"CORE" * 1000)
    active, kind = raw[446], raw[446 + 4]
    first, sectors = (int.from_bytes(raw[at : at + 4], "little") for at in (446 + 8, 446 + 12))
    assert (active, kind, first * 512) == (0x80, 0x83, MIB)
    assert len(raw) == (first + sectors) * 512
    assert not any(raw[462:510])


def test_the_partition_has_the_tree(tmp_path: Path) -> None:
    made = write(tmp_path, tree(tmp_path))
    partition = tmp_path / "partition"
    partition.write_bytes(made.read_bytes()[MIB:])
    checked = subprocess.run(["e2fsck", "-fn", partition], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    for name, content in (("/etc/hostname", "server\n"), ("/boot/grub/grub.cfg", MENU)):
        said = subprocess.run(
            ["debugfs", "-R", f"cat {name}", partition], capture_output=True, text=True
        )
        assert said.stdout == content
    shown = subprocess.run(["dumpe2fs", "-h", partition], capture_output=True, text=True).stdout
    fields = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    # The server's fstab and its menu name it by these.
    assert fields["Filesystem volume name"].strip() == server.LABEL
    assert fields["Filesystem UUID"].strip() == server.UUID
    assert "has_journal" in fields["Filesystem features"]


def test_a_disk_is_sparse_and_qemu_may_read_it(tmp_path: Path) -> None:
    status = write(tmp_path, tree(tmp_path), free_bytes=1 << 30).stat()
    assert status.st_size > 1 << 30
    assert status.st_blocks * 512 < 200 * MIB
    assert status.st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", [*server.GRUB_IMAGES, "boot/grub/grub.cfg"])
def test_a_tree_that_cannot_boot_becomes_no_disk(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path)
    (root / name).unlink()
    with pytest.raises(BuildError, match="no boot loader") as caught:
        write(tmp_path, root)
    assert caught.value.expected is not None
    assert caught.value.expected.endswith(name)


def test_a_menu_without_a_kernel_becomes_no_disk(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "boot/grub/grub.cfg").write_text("menuentry 'UEFI Firmware Settings' {\n}\n")
    with pytest.raises(BuildError, match="the boot menu has no kernel"):
        write(tmp_path, root)


def test_a_boot_loader_that_would_overwrite_the_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="does not fit"):
        write(tmp_path, tree(tmp_path, core=bytes(MIB - 511)))


def test_a_disk_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    root = tree(tmp_path)
    old = write(tmp_path, root).read_bytes()
    (root / "large").write_bytes(b"x" * 4 * MIB)
    with pytest.raises(InfrastructureError, match="mke2fs"):
        write(tmp_path, root, free_bytes=-3 * MIB)
    assert (tmp_path / "disk.img").read_bytes() == old
    assert [one.name for one in tmp_path.glob("*.img*")] == ["disk.img"]
    assert not list(tmp_path.glob(".disk*"))
