"""GRUB alone: a disk boots through it, and the kernels are ours and only say who they are.

The menu is made by Debian's grub-mkconfig in a server's tree.  A boot takes seconds instead of a
minute, because no Linux starts.  It shows which entry GRUB chose and what it wrote to the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs
from kbuild.core import run as programs
from kbuild.core.run import Arg, run
from kbuild.core.sandbox import Bind
from kbuild.gate import server
from kbuild.gate.server import Server
from kbuild.guest import qemu

_SOURCE = Path(__file__).with_name("kernel.S")
_TIMEOUT_S = 120.0
# A machine that has not started a kernel by then waits for a key.
_BOOT_S = 60.0
# More than one in a row would not end.
_RESETS = 3
# isa-debug-exit's port and the value that tests/gate/kernel.S writes to it, as a status of QEMU.
_EXIT = "isa-debug-exit,iobase=0x501,iosize=1"
_STARTED = 2 * 0x10 + 1
# Numbers of boots, for stand-ins of the kernel's boot_id.
BOOTS = itertools.count(1)
_SECTOR, _MIB = 512, 1 << 20
_BOOT_CODE = 440
_LINUX = 0x83
_TYPES = {"vfat": 0xEF}


# --- kernels -------------------------------------------------------------------------------


def assemble(into: Path) -> bytes:
    """Return the kernel without its name."""
    run(["as", "--32", "-o", into / "kernel.o", _SOURCE], timeout_s=60)
    run(
        ["objcopy", "-O", "binary", "-j", ".text", into / "kernel.o", into / "kernel"], timeout_s=60
    )
    return (into / "kernel").read_bytes()


def plant(boot: Path, release: str, code: bytes, *, name: str = "") -> None:
    """Put a kernel and its initrd into a /boot by rename, as dpkg and update-initramfs do.

    ``name`` is what it says when it starts: the release unless it is given.
    """
    said = (name or release).encode() + b"\0"
    fs.write_atomic(boot / f"vmlinuz-{release}", code + said)
    fs.write_atomic(boot / f"initrd.img-{release}", b"initrd of " + said)
    fs.write_atomic(boot / f"config-{release}", "CONFIG_MODULES=y\n")


# --- disks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a server is installed: the file system with /boot, and the firmware."""

    name: str
    kind: str = "ext4"  # of the partition with /boot: ext4, xfs, or vfat, which is the ESP then
    separate: bool = False  # /boot is a file system of its own
    efi: bool = False

    @property
    def grub(self) -> str:
        """The place of GRUB's files on their partition."""
        return "/grub" if self.separate else "/boot/grub"

    @property
    def partition(self) -> str:
        """GRUB's name for the partition with /boot."""
        return f"msdos{2 if self.separate else 1}"


BIOS = Layout("bios")
_ROOT_UUID = "f2b1a3a0-5c07-4f0c-8d8e-2d3c7c1a9f01"
# The partition with /boot has these.
_UUIDS = {"ext4": server.UUID, "xfs": "5ba1c9a4-8d3f-4c57-9c58-0a8b5a6c0b02", "vfat": "0C91-F0E5"}
_GRUB_NAMES = {"ext4": "ext2", "xfs": "xfs", "vfat": "fat"}
# The smallest xfs that mkfs.xfs makes.
_OUT = "/tmp/out"
_MIBS = {"ext4": 64, "xfs": 304, "vfat": 80}


def probe(layout: Layout) -> str:
    """Return a stand-in for grub-probe(8): the answers on a server with this layout.

    kbuild/gate/in_root/grub-probe has the reasons.  A device or a path below /boot is that of
    the partition with /boot.
    """
    boot = int(layout.separate)
    return f"""#!/bin/sh
target=fs at=0
while [ $# -gt 0 ]; do
	case $1 in
	--target=*) target=${{1#--target=}} ;;
	-t) target=$2 && shift ;;
	/boot | /boot/* | /dev/vda2) at={boot} ;;
	esac
	shift
done
case $target in
device) echo "/dev/vda$((at + 1))" ;;
disk) echo /dev/vda ;;
drive) echo "(hd0,msdos$((at + 1)))" ;;
fs) [ "$at" = {boot} ] && echo {_GRUB_NAMES[layout.kind]} || echo ext2 ;;
fs_uuid) [ "$at" = {boot} ] && echo {_UUIDS[layout.kind]} || echo {_ROOT_UUID} ;;
fs_label) ;;
partmap) echo msdos ;;
abstraction | compatibility_hint | cryptodisk_uuid | hints_string | partuuid) ;;
*) echo "no --target=$target" >&2; exit 1 ;;
esac
"""


def relative(layout: Layout) -> str:
    """Return a stand-in for grub-mkrelpath(1): the path on the partition."""
    strip = "${path#/boot}" if layout.separate else "$path"
    return f"""#!/bin/sh
for path; do :; done
path=$(realpath -m -- "$path")
path={strip}
echo "$path"
"""


@dataclass(frozen=True)
class Installed:
    """A server's tree with kernels of ours, from which disks are made."""

    server: Server
    home: Path
    code: bytes  # of the kernels
    layout: Layout = BIOS

    @property
    def tree(self) -> Path:
        """The root of the tree."""
        return self.server.root.path

    @property
    def disk(self) -> Path:
        """The disk that :meth:`write` makes."""
        return self.home / f"{self.layout.name}.disk"

    def run(self, argv: Sequence[Arg], *, check: bool = True, binds: Sequence[Bind] = ()) -> str:
        """Run a command in the tree, which sees the devices of the layout; return its output."""
        shown = []
        for name, text in {
            "usr/sbin/grub-probe": probe(self.layout),
            "usr/bin/grub-mkrelpath": relative(self.layout),
        }.items():
            path = self.home / Path(name).name
            fs.write_if_changed(path, text, mode=0o755)
            shown.append(Bind(path, f"/{name}"))
        return self.server.run(argv, check=check, binds=[*shown, *binds]).stdout

    def plant(self, *releases: str) -> None:
        """Put kernels into /boot."""
        for one in releases:
            plant(self.tree / "boot", one, self.code)
            # The guard takes a file without this for a copy of a kernel.
            (self.tree / "lib/modules" / one).mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Put the modules of GRUB for the layout into /boot."""
        _images(self)

    def menu(self) -> None:
        """Make the menu, as update-grub does after each change."""
        self.run(["grub-mkconfig", "-o", "/boot/grub/grub.cfg"])

    def write(self) -> Path:
        """Write the tree's /boot to the disk, and return it."""
        grub = _images(self)
        with tempfile.TemporaryDirectory(prefix="cplayground-grub-") as name:
            stage = Path(name)
            boot = stage / ("boot" if self.layout.separate else "root/boot")
            (stage / "root/boot").mkdir(parents=True)
            shutil.copytree(self.tree / "boot", boot, symlinks=True, dirs_exist_ok=True)
            parts = []
            if self.layout.separate:
                parts.append(Partition(stage / "root", _ROOT_UUID, "ext4"))
            kind = self.layout.kind
            files = boot if self.layout.separate else stage / "root"
            if kind == "xfs":
                files = _xfs(self, files)
            if kind == "vfat":
                files = _vfat(self, grub / "esp", boot)
            parts.append(Partition(files, _UUIDS[kind], kind))
            if not self.layout.efi:
                boot_image, core = ((grub / one).read_bytes() for one in ("boot.img", "core.img"))
                return write(self.disk, parts, boot=boot_image, core=core)
            if kind != "vfat":
                parts.append(Partition(grub / "esp", "", "vfat"))
            return write(self.disk, parts)

    def guard(
        self, *arguments: str, booted: Boot | None = None, status: int | None = 0, cut: str = ""
    ) -> str:
        """Run cplayground-guard in the tree, and return what it said.

        It sees the kernel, the command line and the boot of ``booted``.  ``status`` is the exit
        status that is expected; None if any will do.  With ``cut``, all commands that change files
        note the state of /boot below /var/<cut> before they run.
        """
        seen = self.home / "seen"
        seen.mkdir(exist_ok=True)
        (seen / "cmdline").write_text(booted.cmdline if booted else "quiet")
        (seen / "boot_id").write_text(f"{booted.number if booted else 0:08d}\n")
        stand_ins = {"uname": _SAY.format(booted.kernel if booted else "none")}
        stand_ins["systemctl"] = '#!/bin/sh\n[ "$1" != reboot ] || touch /var/lib/rebooted\n'
        if cut:
            stand_ins |= {name: _CUT.format(cut=cut) for name in _CHANGING}
        for name, text in stand_ins.items():
            fs.write_if_changed(self.home / "front" / name, text, mode=0o755)
        for path in (self.home / "front").iterdir():
            if path.name not in stand_ins:
                path.unlink()
        return self.run(
            [
                *(
                    "sh",
                    "-c",
                    'want=$1; shift; "$@"; got=$?; [ -z "$want" ] || exit $((got != want))',
                ),
                *("sh", "" if status is None else str(status)),
                *("env", "GUARD_PATH=/tmp/front", "GUARD_AGAIN_S=0", "cplayground-guard"),
                *arguments,
            ],
            binds=[
                Bind(seen / "cmdline", "/proc/cmdline"),
                Bind(seen / "boot_id", "/proc/sys/kernel/random/boot_id"),
                Bind(self.home / "front", "/tmp/front"),
            ],
        )

    def status(self, booted: Boot | None = None) -> dict[str, str]:
        """Return what "cplayground-guard status" says."""
        said = self.guard("status", booted=booted, status=None)
        return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)

    def start(self) -> Boot:
        """Boot a disk with the tree's /boot, and take over what GRUB wrote."""
        self.write()
        seen = self.boot()
        block = self.read(f"{self.layout.grub}/grubenv")
        (self.tree / "boot/grub/grubenv").write_bytes(block)
        return seen

    def boot(
        self, *, keys: bytes = b"", readonly: bool = False, timeout_s: float = _BOOT_S
    ) -> Boot:
        """Boot the disk, as :func:`boot` does."""
        firmware = None
        if self.layout.efi:
            firmware = self.tree / "usr/share/OVMF/OVMF_CODE_4M.fd"
        return boot(
            self.disk,
            firmware=firmware,
            keys=keys,
            readonly=readonly,
            timeout_s=timeout_s,
            log=self.home / "boots.log",
        )

    def read(self, name: str) -> bytes:
        """Return a file on the partition with /boot, as GRUB's own drivers read it."""
        done = self.home / "read"
        place = f"(loop0,{self.layout.partition}){name}"
        done.write_bytes(b"")
        self.run(
            ["sh", "-c", 'grub-fstest /tmp/disk cat "$1" >/tmp/out', "sh", place],
            binds=[Bind(self.disk, "/tmp/disk"), Bind(done, _OUT, writable=True)],
        )
        return done.read_bytes()

    def environment(self) -> dict[str, str]:
        """Return the variables of GRUB's environment block on the disk."""
        return environment(self.read(f"{self.layout.grub}/grubenv"))


_EXPECTED = 'want=$1; shift; "$@"; got=$?; [ -z "$want" ] || exit $((got != want))'
_SAY = "#!/bin/sh\necho {}\n"
# A command that changes files.  Before it runs, it keeps /boot as a power cut would leave it.
_CHANGING = ("cat", "cp", "grub-editenv", "ln", "mkdir", "mv", "rm", "rmdir", "sync")
_CUT = """#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
place=/var/{cut}
mkdir -p $place
number=$(printf %03d "$(ls $place | wc -l)")
mkdir $place/$number
cp -a /boot /var/lib/cplayground-guard $place/$number
echo "${{0##*/}} $*" >$place/$number/command
exec "${{0##*/}}" "$@"
"""

# In core.img and in the ESP's program: the modules that reach GRUB's directory.
_MODULES = {
    "i386-pc": ("biosdisk", "part_msdos", "ext2", "xfs", "normal"),
    "x86_64-efi": ("part_msdos", "fat", "ext2", "xfs", "normal"),
}
_INSTALL = """
mkdir -p "/boot/grub/$1"
cp -n "/usr/lib/grub/$1/"*.mod "/usr/lib/grub/$1/"*.lst "/boot/grub/$1/"
format=$1 prefix=$2; shift 2
if [ "$format" = i386-pc ]; then
    cp "/usr/lib/grub/$format/boot.img" /tmp/out
    exec grub-mkimage -O "$format" -o /tmp/out/core.img -p "$prefix" "$@"
fi
grub-mkimage -O "$format" -o /tmp/out/grub.efi -p "$prefix" "$@"
truncate -s "${SIZE}M" /tmp/out/esp
mkfs.vfat -i 0c91f0e5 /tmp/out/esp
mmd -i /tmp/out/esp ::/EFI ::/EFI/BOOT
mcopy -i /tmp/out/esp /tmp/out/grub.efi ::/EFI/BOOT/BOOTX64.EFI
"""


def _images(one: Installed) -> Path:
    """Return the directory with GRUB's images for a layout; grub-install needs the device."""
    made = one.home / f"grub-{one.layout.name}"
    if not made.exists():
        made.mkdir()
        kind = "x86_64-efi" if one.layout.efi else "i386-pc"
        prefix = f"(hd0,{one.layout.partition}){one.layout.grub}"
        script = f"set -e; SIZE={_MIBS['vfat']}{_INSTALL}"
        one.run(
            ["sh", "-c", script, "sh", kind, prefix, *_MODULES[kind]],
            binds=[Bind(made, _OUT, writable=True)],
        )
    return made


def _xfs(one: Installed, tree: Path) -> Path:
    """Return a file with an xfs that holds a tree."""
    made, proto = tree.with_suffix(".xfs"), tree.with_suffix(".proto")
    with made.open("wb") as stream:
        stream.truncate(_MIBS["xfs"] * _MIB)
    proto.write_text("\n".join(["/", "0 0", "d--755 0 0", *_listed(tree), "$", ""]))
    one.run(
        ["mkfs.xfs", "-q", "-m", f"uuid={_UUIDS['xfs']}", "-p", "/tmp/proto", "/tmp/disk"],
        binds=[
            Bind(tree, str(tree)),
            Bind(proto, "/tmp/proto"),
            Bind(made, "/tmp/disk", writable=True),
        ],
    )
    return made


def _vfat(one: Installed, esp: Path, boot: Path) -> Path:
    """Return a file with a copy of the ESP that also holds a /boot."""
    made = boot.with_suffix(".esp")
    shutil.copy(esp, made)
    one.run(
        ["sh", "-c", "mcopy -s -i /tmp/disk /tmp/boot/* ::/"],
        binds=[Bind(boot, "/tmp/boot"), Bind(made, "/tmp/disk", writable=True)],
    )
    return made


def _listed(tree: Path) -> Iterator[str]:
    """Yield the lines of a prototype of xfs for the files below a directory (mkfs.xfs(8))."""
    for path in sorted(tree.iterdir()):
        mode = f"{path.lstat().st_mode & 0o777:03o} 0 0"
        if path.is_symlink():
            yield f"{path.name} l--{mode} {path.readlink()}"
        elif path.is_dir():
            yield f"{path.name} d--{mode}"
            yield from _listed(path)
            yield "$"
        else:
            yield f"{path.name} ---{mode} {path}"


@dataclass(frozen=True)
class Partition:
    """A partition to write: a tree of files for ext4, or a file that holds the file system."""

    files: Path
    uuid: str
    kind: str

    @property
    def mib(self) -> int:
        """The size of the partition."""
        return _MIBS[self.kind]


def write(
    disk: Path, partitions: Sequence[Partition], *, boot: bytes = b"", core: bytes = b""
) -> Path:
    """Write a disk with GRUB's two images in front of its partitions."""
    starts = divide(disk, [(_TYPES.get(one.kind, _LINUX), one.mib) for one in partitions])
    assert len(core) <= _MIB - _SECTOR, "core.img does not fit in front of the first partition"
    with disk.open("r+b") as stream:
        stream.write(boot[:_BOOT_CODE])
        stream.seek(_SECTOR)
        stream.write(core)
    for one, start in zip(partitions, starts, strict=True):
        (_ext4 if one.kind == "ext4" else _copy)(disk, one, start)
    return disk


def divide(disk: Path, wanted: Sequence[tuple[int, int]]) -> list[int]:
    """Make a disk with a partition table of the MBR, and return the partitions' first bytes.

    Each one has a type and a size in MiB; the first one begins at 1 MiB and is active.
    """
    entries, starts, at = b"", [], 1
    for kind, mib in wanted:
        sectors = _MIB // _SECTOR
        entries += struct.pack(
            "<B3sB3sII", 0x80 if at == 1 else 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff",
            at * sectors, mib * sectors,
        )  # fmt: skip
        starts.append(at * _MIB)
        at += mib
    disk.unlink(missing_ok=True)
    with disk.open("wb") as stream:
        stream.truncate(at * _MIB)
        stream.seek(_BOOT_CODE)
        stream.write(b"cpg\x02\0\0" + entries.ljust(64, b"\0") + b"\x55\xaa")
    return starts


def _ext4(disk: Path, one: Partition, start: int) -> None:
    run(
        [
            # GRUB of bullseye and bookworm cannot read a file system with such a seed.
            *("mke2fs", "-q", "-F", "-t", "ext4", "-U", one.uuid, "-O", "^metadata_csum_seed"),
            *("-E", f"offset={start},lazy_itable_init=1", "-d", one.files, disk),
            f"{one.mib << 10}k",
        ],
        timeout_s=_TIMEOUT_S,
    )


def _copy(disk: Path, one: Partition, start: int) -> None:
    with one.files.open("rb") as source, disk.open("r+b") as stream:
        stream.seek(start)
        while chunk := source.read(_MIB):
            if chunk.strip(b"\0"):
                stream.write(chunk)
            else:
                stream.seek(len(chunk), os.SEEK_CUR)


def environment(block: bytes) -> dict[str, str]:
    """Return the variables in a grubenv."""
    lines = block.decode().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


# --- boots ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boot:
    """The observations of one boot."""

    kernel: str  # the name of the kernel that GRUB started; "" if it started none
    cmdline: str
    initrd: str
    console: str
    seconds: float
    number: int  # of this boot among all
    resets: int = 0  # by GRUB itself, before it started a kernel

    @property
    def words(self) -> list[str]:
        """The kernel's parameters."""
        return self.cmdline.split()


@contextlib.contextmanager
def _machine(
    disks: Sequence[Path], *more: str | tuple[str, Path], readonly: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a machine with these disks, whose serial line is its standard input and output.

    In a pair in ``more``, the path is the file that the option's "%s" names.
    """
    handed: list[int] = []
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> str:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            handed.append(descriptor)
            return f"/proc/self/fd/{descriptor}"

        argv = [
            qemu.QEMU,
            *("-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-device", _EXIT, "-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"),
        ]
        drive = f"format=raw,cache=unsafe,if=none,readonly={'on' if readonly else 'off'}"
        for number, path in enumerate(disks):
            qemu.lend(path)
            argv += ["-drive", f"file={opened(path)},id=disk{number},{drive}"]
            argv += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        for one in more:
            argv.append(one if isinstance(one, str) else one[0] % opened(one[1]))
        user = ("--reuid", str(qemu.USER), "--regid", str(qemu.USER), "--clear-groups")
        process = programs.start(
            argv,
            pass_fds=handed,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            privileges=(*user, "--inh-caps=-all", "--no-new-privs") if os.geteuid() == 0 else (),
        )
        try:
            yield process
        finally:
            programs.stop(process)


def boot(
    disk: Path,
    *,
    firmware: Path | None = None,
    more: Sequence[Path] = (),
    keys: bytes = b"",
    readonly: bool = False,
    timeout_s: float = _BOOT_S,
    log: Path | None = None,
) -> Boot:
    """Start a machine from a disk, which it may write, and return what its kernel said.

    ``firmware`` is that of UEFI; without it the machine has a BIOS.  ``more`` are further disks.
    ``keys`` are pressed on the serial line.  A machine that GRUB resets starts again.  One that
    starts no kernel of ours is ended after ``timeout_s``.
    """
    began = time.monotonic()
    text, resets = "", -1
    with contextlib.ExitStack() as stack:
        flash: list[str | tuple[str, Path]] = []
        if firmware is not None:
            # Its variables last for one boot, so it starts the ESP's removable program.
            variables = Path(stack.enter_context(tempfile.NamedTemporaryFile()).name)
            shutil.copy(firmware.with_name(firmware.name.replace("_CODE", "_VARS")), variables)
            qemu.lend(variables)
            for unit, (path, how) in enumerate(((firmware, "on"), (variables, "off"))):
                option = f"if=pflash,format=raw,unit={unit},readonly={how},file=%s"
                flash += ["-drive", (option, path)]
        status: int | None = 0
        # A reset ends QEMU with 0.
        while status == 0 and (resets := resets + 1) < _RESETS:
            with _machine([disk, *more], *flash, readonly=readonly) as process:
                try:
                    said = process.communicate(keys, timeout=timeout_s)[0]
                    status = process.returncode
                except subprocess.TimeoutExpired as late:
                    said, status = late.stdout or b"", None
            text += said.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    if log is not None:
        with log.open("a") as stream:
            stream.write(f"=== {disk.name}: status {status}\n{text}\n")
    found = re.search(r"^@kernel (.*)\n+@cmdline (.*)\n+@initrd (.*)\n+@end", text, re.MULTILINE)
    assert (found is not None) == (status == _STARTED), (status, text)
    kernel, cmdline, initrd = found.groups() if found else ("", "", "")
    seconds = time.monotonic() - began
    return Boot(kernel, cmdline, initrd, text, seconds, next(BOOTS), resets)


def guest(
    disks: Sequence[Path],
    kernel: Path,
    initrd: Path,
    words: str,
    *,
    timeout_s: float,
    on_line: Callable[[str], None],
) -> None:
    """Run Linux from the first of these disks until it ends; ``on_line`` receives its output."""
    options = ("-kernel", ("%s", kernel), "-initrd", ("%s", initrd), "-append", words)
    with _machine(disks, *options) as process:
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.decode(errors="replace").rstrip("\r\n"))
        finally:
            late.cancel()
