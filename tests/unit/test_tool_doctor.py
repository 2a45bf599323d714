"""The reasons why there is nothing to see, on hosts made of files."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cplayground.doctor import diagnose
from cplayground.findings import Finding

PROJECT = Path(__file__).resolve().parents[2]
RELEASE = "6.1.0-56-cloud-amd64"
MODULE = f"lib/modules/{RELEASE}/updates/dkms/cplayground.ko"
SIGNED = b"ELF~Module signature appended~\n"
RECORD = f"{'0' * 64}\t5\t1\t0\t0\tsh\n\n"


class Host:
    """A host of files; without any, it has no module."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/pid").symlink_to("pid:[4026531836]")

    def write(self, path: str, content: str | bytes = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def install(self, content: bytes = SIGNED, suffix: str = "", release: str = RELEASE) -> None:
        """Install the module for a kernel."""
        path = MODULE.replace(RELEASE, release) + suffix
        self.write(path, content)
        self.write(
            f"lib/modules/{release}/modules.dep",
            f"kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko\nupdates/dkms/cplayground.ko{suffix}:\n",
        )

    def diagnose(self) -> tuple[Finding, ...]:
        procfile = self.root / "proc/cplayground"
        return diagnose(
            str(procfile), proc=str(self.root / "proc"), root=str(self.root), release=RELEASE
        )

    def only(self) -> tuple[str, str]:
        """Return the sentence and the command of the one reason."""
        (one,) = self.diagnose()
        assert one.level == "error"
        return one.sentence, one.evidence[-1]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_all_is_well(host: Host) -> None:
    host.write("proc/cplayground", RECORD)
    (one,) = host.diagnose()
    assert (one.level, one.evidence) == ("note", ())
    assert one.sentence.endswith("shows 1 process.")


def test_no_container(host: Host) -> None:
    host.write("proc/cplayground")
    (one,) = host.diagnose()
    assert one.level == "note"
    assert one.sentence == "The module works, but no container is running."


def test_another_format(host: Host) -> None:
    host.write("proc/cplayground", "0123\t5\n")
    host.write("sys/module/cplayground/version", "0.1\n")
    (one,) = host.diagnose()
    assert "line 1" in one.sentence
    assert "the loaded module has version 0.1" in one.evidence
    assert one.evidence[-1] == "run: modprobe -r cplayground && modprobe cplayground"


def test_nothing_is_installed(host: Host) -> None:
    assert host.only() == ("The module is not installed.", "run: apt install cplayground-dkms")


NOT_BUILT = f"The module is not built for the running kernel, {RELEASE}."


def test_it_is_not_built_for_this_kernel(host: Host) -> None:
    host.install(release="6.1.0-55-amd64")
    assert host.only() == (NOT_BUILT, "run: apt install cplayground-dkms")
    host.write("usr/src/cplayground-0.2.0/dkms.conf")
    assert host.only() == (NOT_BUILT, f"run: apt install linux-headers-{RELEASE}")
    (host.root / f"lib/modules/{RELEASE}/build").mkdir(parents=True)
    host.write("var/lib/dkms/cplayground/0.2.0/build/make.log", "CC x.o\nx.c:1: error: oh\n")
    assert host.only() == (NOT_BUILT, f"run: dkms autoinstall --kernelver {RELEASE}")
    evidence = host.diagnose()[0].evidence
    assert "kernel 6.1.0-55-amd64 has the module" in evidence
    assert any(line.endswith("x.c:1: error: oh") for line in evidence)


def test_it_is_not_loaded(host: Host) -> None:
    host.install()
    host.write("dev/kmsg", "6,1,2,-;systemd: hello\n4,9,9,-;cplayground: file_mode must be less\n")
    assert host.only() == ("The module is installed, but not loaded.", "run: modprobe cplayground")
    log = "the kernel's log: cplayground: file_mode must be less"
    assert log in host.diagnose()[0].evidence


@pytest.mark.parametrize(
    ("path", "text", "sentence", "command"),
    [
        (
            "proc/sys/kernel/modules_disabled",
            "1\n",
            "This system loads no more modules until it is restarted.",
            "reboot",
        ),
        (
            "proc/cmdline",
            "quiet module_blacklist=a,cplayground\n",
            "The kernel's command line forbids the module.",
            "editor /etc/default/grub && update-grub && reboot",
        ),
        (
            "etc/modprobe.d/no.conf",
            "# no\ninstall cplayground /bin/false\n",
            "A file of modprobe(8) forbids the module: {root}/etc/modprobe.d/no.conf.",
            "modprobe --ignore-install cplayground",
        ),
    ],
)
def test_it_is_forbidden(host: Host, path: str, text: str, sentence: str, command: str) -> None:
    host.install()
    host.write("etc/modprobe.d/cplayground.conf", "options cplayground fields=extended\n")
    host.write(path, text)
    assert host.only() == (sentence.format(root=host.root), f"run: {command}")


UNTRUSTED = "The kernel loads no module without a signature that it trusts."


@pytest.mark.parametrize(("suffix", "content"), [(".zst", b"\x28\xb5\x2f\xfd"), (".xz", b"cut")])
def test_a_signature_that_cannot_be_read_is_not_judged(
    host: Host, suffix: str, content: bytes
) -> None:
    host.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    host.install(content, suffix)
    (one,) = host.diagnose()
    assert one.sentence == "The module is installed, but not loaded."
    assert f"not checked: the signature that the kernel demands, in {suffix}" in one.evidence


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_secure_boot_refuses_an_unsigned_module(host: Host, suffix: str) -> None:
    host.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    host.write("var/lib/dkms/mok.pub")
    host.install(b"ELF" if not suffix else lzma.compress(b"ELF"), suffix)
    assert host.only() == (UNTRUSTED, "run: mokutil --import /var/lib/dkms/mok.pub && reboot")
    # A signed one may be trusted; the kernel's log tells if it was not.
    host.install(SIGNED if not suffix else lzma.compress(SIGNED), suffix)
    assert host.only()[1] == "run: modprobe cplayground"
    host.write("dev/kmsg", "Loading of module with unavailable key is rejected\n")
    assert host.only()[0] == UNTRUSTED


def test_without_secure_boot_no_signature_is_needed(host: Host) -> None:
    host.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    host.write("sys/module/module/parameters/sig_enforce", "N\n")
    host.install(b"ELF")
    assert host.only()[1] == "run: modprobe cplayground"
    host.write("sys/module/module/parameters/sig_enforce", "Y\n")
    assert host.only()[0] == UNTRUSTED


def test_a_procfs_with_only_processes(host: Host) -> None:
    host.write("sys/module/cplayground/refcnt", "0\n")
    sentence, command = host.only()
    assert sentence.startswith("The module is loaded, but ")
    assert command == "run: unshare --mount-proc cplayground ls"


def test_a_container_sees_nothing(host: Host) -> None:
    host.install()
    link = host.root / "proc/self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[4026532201]")
    assert host.only()[0] == "This is a container: the module's file can be read on the host only."


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    ("mode", "members", "sentence", "command"),
    [
        (0o400, "", "Only root may read {file}.", "sudo cplayground ls"),
        (
            0o440,
            "other",
            "Only root and members of the group readers may read {file}.",
            "sudo adduser someone readers",
        ),
        (
            0o440,
            "other,someone",
            "You joined the group readers after you logged in.",
            "newgrp readers",
        ),
    ],
)
def test_a_user_without_the_right(mode: int, members: str, sentence: str, command: str) -> None:
    import tempfile

    # Not below tmp_path, which other users may not enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        host = Host(Path(place))
        file = host.write("proc/cplayground", RECORD)
        os.chown(file, 0, 4321)
        file.chmod(mode)
        host.write("etc/group", f"root:x:0:\nreaders:x:4321:{members}\n")
        host.write("etc/passwd", "someone:x:54321:54321::/:/bin/sh\n")
        program = (
            "import os, sys; from cplayground.doctor import diagnose\n"
            "os.setgroups([]), os.setgid(54321), os.setuid(54321)\n"
            "file, proc, root = sys.argv[1:]\n"
            "(one,) = diagnose(file, proc=proc, root=root)\n"
            "print(one.level, one.sentence, one.evidence[-1], sep='\\n')\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, file, f"{place}/proc", place],
            check=True,
            capture_output=True,
            text=True,
            cwd=PROJECT,
        ).stdout
    assert told.splitlines() == ["error", sentence.format(file=file), f"run: {command}"]


def test_this_machine_gets_an_answer() -> None:
    found = diagnose()
    assert found
    assert all(one.sentence.endswith(".") for one in found)
