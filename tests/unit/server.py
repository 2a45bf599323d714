"""A server as a tree of files: the guard runs on it with other programs in front, and GRUB is here.

The power can be cut before any step that changes files.  What GRUB then starts is computed from the
files that it would read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ROOT = PROJECT / "guard/root"
PROGRAM = ROOT / "usr/sbin/cplayground-guard"
LIBRARY = ROOT / "usr/lib/cplayground/guard"
FAKES = Path(__file__).with_name("fake_server")
_TRIAL, _GOOD = "cplayground-trial", "cplayground-good"


@dataclass
class Started:
    """What GRUB starts: a kernel with its initrd, from a slot of the guard or from /boot."""

    slot: str  # good, trial, or "" for Debian's own entry
    release: str
    version: str


def _files(top: Path) -> tuple[object, ...]:
    """Return what is in a tree: each file's text, and which of them are one file."""
    names: dict[int, str] = {}
    found = []
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        text = path.read_bytes() if path.is_file() else None
        found.append((name, text, names.setdefault(path.lstat().st_ino, name)))
    return tuple(found)


@dataclass
class Server:
    """One server; ``env`` are more variables for the programs, such as FAKE_FS."""

    top: Path
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, top: Path, *kernels: str, running: str = "") -> Server:
        """Make a server with kernels in /boot, the first of which runs."""
        server = cls(top)
        for name in (
            "boot/grub",
            "etc/grub.d",
            "etc/default",
            "etc/cplayground/check.d",
            "etc/apt/apt.conf.d",
            "usr/lib/cplayground/guard/check.d",
            "usr/share/cplayground",
            "var/lib/dpkg",
            "run/systemd/system",
            "proc/sys/kernel/random",
            "proc/net",
            "packages",
        ):
            (top / name).mkdir(parents=True)
        server.write("lib/systemd/systemd", "")
        (top / "sbin").mkdir()
        (top / "sbin/init").symlink_to("../lib/systemd/systemd")
        server.write("etc/grub.d/10_linux", "#!/bin/sh\n", mode=0o755)
        server.write("etc/default/grub", "GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\n")
        server.write("proc/locks", "")
        server.write("etc/machine-id", f"{uuid.uuid4().hex}\n")
        server.write("proc/net/route", "Iface\tDestination\n")
        server.configure(PROBATION="0")
        for release in kernels:
            server.put(release)
        server.run(["grub-editenv", top / "boot/grub/grubenv", "create"])
        (top / "boot/grub/grub.cfg").touch()
        server.run(["grub-mkconfig", "-o", top / "boot/grub/grub.cfg"])
        server.come_up(running or kernels[0], trial=False)
        return server

    # --- what an administrator and dpkg do ------------------------------------------------------

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # As dpkg and update-initramfs do: another file, by rename.
        new = path.with_name(path.name + ".dpkg-new")
        new.write_text(text)
        new.chmod(mode)
        new.replace(path)

    def configure(self, **values: str) -> None:
        said = {"PATIENCE": "0"} | values
        self.write("etc/cplayground/guard.conf", "".join(f"{k}={v}\n" for k, v in said.items()))

    def put(self, release: str, version: str = "1", initrd: str = "") -> None:
        """Unpack a kernel's package, and make its initrd."""
        self.write(f"packages/linux-image-{release}", version)
        (self.top / f"lib/modules/{release}").mkdir(parents=True, exist_ok=True)
        self.write(f"boot/vmlinuz-{release}", json.dumps(["kernel", release, version]))
        said = ["initrd", release, version, initrd]
        self.write(f"boot/initrd.img-{release}", json.dumps(said))

    def install(self, release: str, version: str = "1") -> subprocess.CompletedProcess[str]:
        """Install a kernel's package, with the hooks of its postinst."""
        self.put(release, version)
        self.guard("hook", "initrd", release)
        done = self.guard("hook", "installed", release)
        self.run(["grub-mkconfig", "-o", self.top / "boot/grub/grub.cfg"])
        return done

    def remove(self, release: str) -> subprocess.CompletedProcess[str]:
        for name in (f"boot/vmlinuz-{release}", f"boot/initrd.img-{release}"):
            (self.top / name).unlink()
        (self.top / f"packages/linux-image-{release}").unlink()
        return self.guard("hook", "removed", release)

    def withdraw(self, release: str) -> subprocess.CompletedProcess[str]:
        """Do what the metapackage of a rollback does."""
        self.write("usr/share/cplayground/withdrawn-lab", f"{release}\n")
        image = self.top / f"boot/vmlinuz-{release}"
        image.rename(image.with_name(f"withdrawn-{image.name}"))
        return self.guard("hook", "removed", release)

    def check(self, name: str, script: str) -> None:
        self.write(f"etc/cplayground/check.d/{name}", f"#!/bin/sh\n{script}\n", mode=0o755)

    # --- programs -------------------------------------------------------------------------------

    def run(
        self, argv: list[str | Path], *, cut: int = 0, text: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program; with ``cut``, the power is cut before that step."""
        steps = self.top / "steps"
        steps.unlink(missing_ok=True)
        more = {"FAKE_STEPS": str(steps)} | ({"FAKE_CUT": str(cut)} if cut else {})
        fakes = f"{FAKES}:{PROGRAM.parent}"
        # Programs in front of those that change files cost time, and most runs do not need them.
        if {"FAKE_CUT", "FAKE_CUTS", "FAKE_BOOT"} & (self.env | more | env).keys():
            fakes = f"{FAKES}/steps:{fakes}"
        return subprocess.run(
            argv,
            env={
                "PATH": f"{fakes}:{os.environ['PATH']}",
                "GUARD_PATH": fakes,
                "GUARD_ROOT": str(self.top),
                "GUARD_AGAIN_S": "0",
                **self.env,
                **more,
                **env,
            },
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            check=False,
        )

    def guard(self, *argv: str, cut: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run([PROGRAM, *argv], cut=cut, **env)

    def each_cut(self, *argv: str) -> list[tuple[int, Server]]:
        """Run the guard, and return the server as a power cut before each step would leave it.

        Steps before which the files are the same have one server, with the first step's number.
        """
        home = self.top.with_name("cuts")
        home.mkdir()
        self.guard(*argv, FAKE_CUTS=str(home))
        seen: set[tuple[object, ...]] = set()
        found = []
        for top in sorted(home.iterdir(), key=lambda path: int(path.name)):
            (top / "steps").unlink()
            files = _files(top)
            if files not in seen:
                seen.add(files)
                found.append((int(top.name), Server(top, dict(self.env))))
        return found

    def cuts(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Return whether the power was cut in a program that has ended."""
        return done.returncode == -signal.SIGKILL

    def status(self) -> dict[str, str]:
        lines = self.guard("status").stdout.splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    @property
    def state(self) -> tuple[str, str, str]:
        found = self.status()
        return found["state"], found["good"], found["trial"]

    @property
    def stored(self) -> tuple[str, str, str]:
        """The same as :attr:`state`, from the file itself."""
        lines = (self.top / "var/lib/cplayground-guard/state").read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return found["state"], found["good"], found["trial"]

    def copy(self, top: Path) -> Server:
        """Return another server with the same files."""
        subprocess.run(["cp", "-a", self.top, top], check=True)
        return Server(top, dict(self.env))

    # --- GRUB -----------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """GRUB's environment block; empty if GRUB cannot read it."""
        path = self.top / "boot/grub/grubenv"
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines or lines[0] != "# GRUB Environment Block":
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")

    def save(self, found: Mapping[str, str]) -> None:
        text = "# GRUB Environment Block\n" + "".join(f"{k}={v}\n" for k, v in found.items())
        assert len(text) <= 1024, "GRUB's environment is full"
        (self.top / "boot/grub/grubenv").write_text(text.ljust(1024, "#"))

    def load(self, *, writes: bool = True, choice: str = "") -> Started:
        """Do what GRUB does with the menu: start an entry once, fall back, or start entry 0.

        ``writes`` False is a file system on which GRUB cannot write; ``choice`` is an entry that
        somebody picks in the menu.
        """
        found = self.environment
        menu = (self.top / "boot/grub/grub.cfg").read_text()
        assert menu, "GRUB has no menu, and waits for ever"
        default = found.get("next_entry", "")
        if default and writes:
            self.save(found | {"next_entry": ""})
        if default and not writes:
            default = _GOOD
        if not default and found.get("guard_settle") == "1" and found.get("guard_trial"):
            default = _TRIAL
        default = choice or default
        if default == _TRIAL and _TRIAL in menu and found.get("guard_trial"):
            if (self.top / "boot/cplayground-trial/vmlinuz").exists():
                started = self._slot("trial")
                self.save(self.environment | {"guard_tried": "1"})
                if started.release != "garbage":
                    return started
            self.save(self.environment | {"guard_tried": "unloadable"})
        if _GOOD in menu and default in ("", "0", _GOOD, _TRIAL):
            return self._slot("good")
        kernels = sorted(path.name[8:] for path in (self.top / "boot").glob("vmlinuz-*"))
        name = default or kernels[-1]
        kind, release, version = json.loads((self.top / f"boot/vmlinuz-{name}").read_text())
        assert kind == "kernel"
        return Started("", release, version)

    def _slot(self, name: str) -> Started:
        slot = self.top / f"boot/cplayground-{name}"
        kernel = json.loads((slot / "vmlinuz").read_text())
        if kernel == "garbage":
            return Started(name, "garbage", "")
        initrd = json.loads((slot / "initrd.img").read_text())
        assert kernel[0] == "kernel" and initrd[0] == "initrd"
        assert kernel[1:] == initrd[1:3], f"a kernel would start with another one's initrd: {name}"
        return Started(name, kernel[1], kernel[2])

    def come_up(self, release: str, *, trial: bool, version: str = "1") -> None:
        """Let a kernel run."""
        self.write("uname", release)
        self.write("build", json.dumps([release, version])[1:])
        self.write("proc/cmdline", "root=/dev/vda1" + " cplayground_guard=trial" * trial)
        self.write("proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
        self.write("proc/uptime", "10.0 20.0\n")
        started = self.top / "run/cplayground-guard/began"
        started.unlink(missing_ok=True)

    def boot(self, *, writes: bool = True, choice: str = "", judge: bool = True) -> Started:
        """Start the machine, and let the guard's service do its work."""
        started = self.load(writes=writes, choice=choice)
        self.come_up(started.release, trial=started.slot == "trial", version=started.version)
        if judge:
            self.guard("probation")
        return started
