"""A server as an administrator has it: a tree that is changed at the host's speed, then booted.

A tree is a Debian of one suite with systemd, GRUB, apt and Debian's own kernel.  Commands run in a
copy of it in the sandbox.  :mod:`kbuild.gate.disk` writes a copy to a disk, which boots.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, results, sandbox, stamp, suites
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Base, Root, Settings
from kbuild.core.run import Arg, Completed, run
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.guest import programs
from kbuild.guest.spec import AGENT

logger = logging.getLogger(__name__)

# The server's file system; each server has a disk of its own, so all may have the same names.
LABEL = "server"
UUID = "0b7e5c1e-24d1-4c0b-9a6e-6370675f6b31"

PACKAGES = (
    "apt",
    # a procfile in a container
    "bubblewrap",
    "ca-certificates",
    "e2fsprogs",
    "grub-pc",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-base",
    "mount",
    "procps",
    "systemd-sysv",
    "udev",
    "zstd",
)
# For a server with UEFI and Secure Boot, in place of the boot loader for a BIOS.
EFI_PACKAGES = ("grub-efi-amd64", "grub-efi-amd64-signed", "shim-signed", "mokutil")
_BIOS_PACKAGES = ("grub-pc",)
# For a server that builds its modules itself, and that has the tool: adduser and python3.
DKMS_PACKAGES = (
    "adduser",
    "dkms",
    "gcc",
    "libc6-dev",
    "libelf1",
    "libssl3",
    "make",
    "python3",
)

_FORMAT = "1"
_AGENT_SOURCE = Path(programs.__file__).with_name("agent.c")
# Stand-ins for programs that look for the device of a tree, or at the sandbox around it.
_STAND_INS = {
    place: Path(__file__).with_name("in_root") / Path(place).name
    for place in (
        "/usr/sbin/grub-probe",
        "/usr/bin/grub-mkrelpath",
        "/usr/bin/systemd-detect-virt",
    )
}
_POLICY = "#!/bin/sh\nexit 101\n"
_COPY_TIMEOUT_S = 600.0
_RUN_TIMEOUT_S = 900.0
# Where the sandbox shows our files; /tmp is fresh there, so the tree keeps nothing.
_MATERIAL = "/tmp/server"
# In it, for the guard only: a uname that prints the kernel in the other file, if there is one.
_FOR_THE_GUARD, _RUNNING = "uname", "running"
_UNAME = Path(__file__).with_name("in_root") / _FOR_THE_GUARD
_ADDRESS, _GATEWAY = "10.0.2.15/24", "10.0.2.2"
# GRUB's modules in core.img: those that reach /boot/grub on the disk.
_CORE_MODULES = ("biosdisk", "part_msdos", "ext2", "normal")
_GRUB = "i386-pc"
_GRUB_HOME = f"boot/grub/{_GRUB}"
# Both lie on the disk before the partition: the first stage, and the rest.
GRUB_IMAGES = (f"{_GRUB_HOME}/boot.img", f"{_GRUB_HOME}/core.img")

# The files of a server that are ours, each with its content.
_FILES = {
    "etc/hostname": "server\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 server\n",
    "etc/fstab": f"LABEL={LABEL} / ext4 errors=remount-ro 0 1\n",
    # systemd makes one in the first boot otherwise, and phased updates go by it.
    "etc/machine-id": "24c0ffee24c0ffee24c0ffee24c0ffee\n",
    "etc/default/grub": (
        "GRUB_DEFAULT=0\n"
        "GRUB_TIMEOUT=0\n"
        "GRUB_DISTRIBUTOR=Debian\n"
        # The console is judged, so the kernel writes its messages there.  An oops or a lockup ends
        # the machine: kbuild/guest/qemu.py has the same words.
        'GRUB_CMDLINE_LINUX="console=ttyS0,115200 quiet loglevel=7 printk.devkmsg=on'
        ' panic=-1 oops=panic softlockup_panic=1"\n'
        "GRUB_CMDLINE_LINUX_DEFAULT=\n"
        'GRUB_TERMINAL="serial"\n'
        'GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\n'
    ),
    # Debian's installer writes this file when it is asked for an initrd of this machine's drivers.
    "etc/initramfs-tools/conf.d/driver-policy": "MODULES=dep\n",
    # Any compression costs minutes under TCG.
    "etc/initramfs-tools/conf.d/compress": "COMPRESSLEVEL=1\n",
    "etc/apt/sources.list": "# A server in the gate reaches nothing but our archive.\n",
    # The kernel recommends apparmor, which Debian's servers have.  Here nothing offers it, and
    # "apt upgrade" keeps a new package back whose recommended one cannot be installed.
    "etc/apt/apt.conf.d/90recommends": 'APT::Install-Recommends "false";\n',
    # A machine may have switched these off, and they are what the archive's dates are for.
    "etc/apt/apt.conf.d/90check": (
        'Acquire::Check-Valid-Until "true";\nAcquire::Check-Date "true";\n'
    ),
    "etc/systemd/network/10-lan.network": (
        "[Match]\nType=ether\n"
        f"[Network]\nAddress={_ADDRESS}\nGateway={_GATEWAY}\nLinkLocalAddressing=no\n"
    ),
    "etc/systemd/system/cplayground-gate.service": (
        "[Unit]\n"
        "Description=Run the gate's commands\n"
        # The server has come up as far as it does without us.
        "After=multi-user.target network-online.target\n"
        "Wants=network-online.target\n"
        "[Service]\n"
        f"ExecStart={AGENT}\n"
        "StandardOutput=null\nStandardError=null\n"
        # Commands are those of an administrator, so no limit of a service is on them.
        "TasksMax=infinity\nOOMPolicy=continue\nLimitNOFILE=1024:524288\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
}
# The firmware's console is on the serial port already, and Debian's signed GRUB has no driver of
# its own for that port.
_EFI_FILES = {
    "etc/default/grub": re.sub(r"(?m)^GRUB_(TERMINAL|SERIAL).*\n", "", _FILES["etc/default/grub"])
    + 'GRUB_TERMINAL="console"\n',
}
_ENABLED = ("systemd-networkd.service", "cplayground-gate.service")
# A login on the console would write to what is judged.
_MASKED = ("serial-getty@ttyS0.service",)

# The sandbox shows these in place of the tree's own files.
_FOR_THE_SANDBOX = {
    # "dep" asks the running system for its root device.
    "driver-policy": ("etc/initramfs-tools/conf.d/driver-policy", "MODULES=list\n"),
    "modules": ("etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\next4\n"),
}
# A tree that a power cut damages is made again, so dpkg need not wait for the disk.
_APT = (
    'APT::Get::Assume-Yes "true";\nAPT::Sandbox::User "root";\nDpkg::Use-Pty "false";\n'
    'DPkg::Options { "--force-unsafe-io"; };\n'
)


@dataclass(frozen=True)
class Server:
    """A tree that can be changed; it lasts as long as the block of :func:`copy`."""

    root: Root
    material: Path
    log: Path

    def run(
        self,
        argv: Sequence[Arg],
        *,
        timeout_s: float = _RUN_TIMEOUT_S,
        binds: Sequence[Bind] = (),
        check: bool = True,
        network: Path | None = None,
    ) -> Completed:
        """Run a command as root in the tree, without services and without a kernel of its own.

        ``network`` is the network namespace that it sees (:mod:`kbuild.gate.wire`), none without.
        Raises BuildError if it fails and ``check`` is set.
        """
        policy = self.root.path / "usr/sbin/policy-rc.d"
        shown = [Bind(self.material, _MATERIAL)]
        shown += [Bind(path, place) for place, path in _STAND_INS.items()]
        shown += [
            Bind(self.material / name, f"/{place}") for name, (place, _) in _FOR_THE_SANDBOX.items()
        ]
        env = {
            "DEBIAN_FRONTEND": "noninteractive",
            "APT_CONFIG": f"{_MATERIAL}/apt.conf",
            "GUARD_PATH": _MATERIAL,
            "SERVER_UUID": UUID,
            "SERVER_LABEL": LABEL,
        }
        # grub-mkconfig names the root by its UUID only if this file is there, as it is when booted.
        by_uuid = "/dev/disk/by-uuid"
        prepare = f'mkdir -p {by_uuid} && : >{by_uuid}/{UUID} && exec "$@"'
        policy.write_text(_POLICY)
        policy.chmod(0o755)
        try:
            return sandbox.enter(
                self.root,
                ["sh", "-c", prepare, "sh", *argv],
                timeout_s=timeout_s,
                binds=[*shown, *binds],
                env=env,
                writable=True,
                network=network or False,
                log=self.log,
                check=check,
            )
        finally:
            policy.unlink(missing_ok=True)

    def run_as_if(self, release: str) -> None:
        """Let the guard take ``release`` for the running kernel, and not the host's."""
        (self.material / _RUNNING).write_text(f"{release}\n")

    def install(self, *debs: Path, network: Path | None = None) -> Completed:
        """Install package files with apt; raises BuildError."""
        places = {f"/tmp/debs/{deb.name}": deb for deb in debs}
        return self.run(
            ["apt-get", "install", "--no-install-recommends", *places],
            binds=[Bind(deb, place) for place, deb in places.items()],
            network=network,
        )


def server_root(settings: Settings, suite: str, *, dkms: bool = False, efi: bool = False) -> Root:
    """Return the root that servers of a suite are copied from; raises what make_root raises."""
    return roots.make_root(
        settings, suite, _name(dkms=dkms, efi=efi), packages(suite, dkms=dkms, efi=efi)
    )


def _name(*, dkms: bool, efi: bool) -> str:
    return "server" + "-dkms" * dkms + "-efi" * efi


def packages(suite: str, *, dkms: bool, efi: bool = False) -> tuple[str, ...]:
    """Return the packages of a server's root, by their names in that suite."""
    row = suites.suite(suite)
    more = (*row.packages(DKMS_PACKAGES), *row.guest) if dkms else ()
    names = [one for one in PACKAGES if not (efi and one in _BIOS_PACKAGES)]
    return (*row.packages((*names, *(EFI_PACKAGES if efi else ()))), *more)


def stock(settings: Settings, base: Base, *, dkms: bool = False, efi: bool = False) -> Root:
    """Return the tree of a server with Debian's kernel ``base`` installed, and keep it.

    With ``dkms`` it has the headers of that kernel, too.  With ``efi`` its boot loaders are those
    for UEFI.
    """
    root = server_root(settings, base.suite, dkms=dkms, efi=efi)
    compile_root = roots.compile_root(settings, base.suite)
    agent = programs.compile_programs(settings, compile_root, [_AGENT_SOURCE])["agent"]
    debs = base.packages if dkms else (base.image, *base.parts)
    name = _name(dkms=dkms, efi=efi)
    files = _FILES | (_EFI_FILES if efi else {})
    home = settings.build / base.suite / f"{name}-{base.flavour}"
    log = settings.build / "logs" / f"{name}-{base.suite}-{base.flavour}.log"
    inputs = {
        "format": _FORMAT,
        "root": root.digest,
        "agent": fs.sha256_file(agent),
        **{place: fs.sha256_file(path) for place, path in _STAND_INS.items()},
        **{f"file {path}": content for path, content in files.items()},
        **{f"deb {deb.path.name}": deb.sha256 for deb in debs},
    }

    def make(scratch: Path) -> list[Path]:
        log.unlink(missing_ok=True)
        with copy(root, scratch / "copy", log=log) as server:
            _set_up(server, agent, files, efi=efi)
            server.install(*(deb.path for deb in debs))
            (scratch / "root").mkdir()
            (scratch / "copy" / "root").rename(scratch / "root")
        return [scratch / "root"]

    made = results.kept(
        home / "stamp.json",
        inputs,
        make,
        lambda: home / "root",
        lock=home.with_name(home.name + ".lock"),
        doing=f"making a server of {base.suite} with {base.release}",
        fresh=True,
    ).ensure()
    return Root(base.suite, made, stamp.digest(inputs), root.versions)


@contextlib.contextmanager
def copy(root: Root, path: Path, *, log: Path) -> Iterator[Server]:
    """Yield a copy of a tree below ``path`` that can be changed, and remove it at the end."""
    path.mkdir(parents=True)
    try:
        run(
            ["cp", "-a", "--reflink=auto", "--", root.path, path / "root"],
            timeout_s=_COPY_TIMEOUT_S,
            error=InfrastructureError,
        )
        material = path / "material"
        material.mkdir()
        shutil.copy(_UNAME, material)
        for name, content in {
            "apt.conf": _APT,
            **{name: content for name, (_, content) in _FOR_THE_SANDBOX.items()},
        }.items():
            (material / name).write_text(content)
        yield Server(Root(root.suite, path / "root", root.digest, root.versions), material, log)
    finally:
        fs.remove_tree(path)


def _set_up(server: Server, agent: Path, files: Mapping[str, str], *, efi: bool) -> None:
    """Make a server out of a root without a kernel."""
    tree = server.root.path
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    place = tree / AGENT.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(agent, place)
    server.run(["systemctl", "enable", *_ENABLED])
    server.run(["systemctl", "mask", *_MASKED])
    if efi:
        # Debian's signed GRUB lies on the disk's other partition: kbuild/gate/efi.py.
        (tree / "boot/grub").mkdir(exist_ok=True)
    else:
        # As grub-install does, which needs the device itself.
        server.run(
            [
                *("sh", "-c", 'mkdir -p "$2" && cp "$1"/* "$2" && shift 2 && "$@"', "sh"),
                *(f"/usr/lib/grub/{_GRUB}", f"/boot/grub/{_GRUB}"),
                *("grub-mkimage", "-O", _GRUB, "-o", f"/boot/grub/{_GRUB}/core.img"),
                *("-p", "(hd0,msdos1)/boot/grub", *_CORE_MODULES),
            ]
        )
    server.run(["grub-editenv", "/boot/grub/grubenv", "create"])
    # The kernel's hook updates the menu only if there is one.
    server.run(["grub-mkconfig", "-o", "/boot/grub/grub.cfg"])
