"""Tell why there is nothing to see, and the command that mends it.

Nothing is changed: no module is loaded, and no program is run.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cplayground.errors import RefusedTextError
from cplayground.findings import Finding
from cplayground.parsing import parse
from cplayground.reading import PROCFILE

_MODULE: Final = "cplayground"
# PROC_PID_INIT_INO in include/linux/proc_ns.h of Linux.
_INITIAL: Final = "pid:[4026531836]"
# MODULE_SIG_STRING in include/linux/module_signature.h of Linux.
_SIGNED: Final = b"~Module signature appended~\n"
_MODPROBE_D: Final = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
# mokutil(1) takes them: the first is of our packages, the second of DKMS.
_KEYS: Final = ("usr/share/cplayground/mok.der", "var/lib/dkms/mok.pub")
_LOG_RECORDS: Final = 100_000
_LOG_LINES: Final = 3


def diagnose(
    procfile: str = PROCFILE, *, proc: str = "/proc", root: str = "/", release: str = ""
) -> tuple[Finding, ...]:
    """Return the reasons why ``procfile`` shows nothing, the one to mend first in front.

    An error keeps everything from being seen.  A note tells that all is well, or that there is
    no container.  The last line of evidence is the command for it: ``run: COMMAND``.  ``release``
    is that of the running kernel, and the system's files are below ``root``.
    """
    host = _Host(Path(root), Path(proc), release or os.uname().release)
    try:
        text = Path(procfile).read_bytes()
    except FileNotFoundError:
        return host.in_container() or host.not_loaded()
    except PermissionError:
        return host.in_container() or host.not_permitted(Path(procfile))
    except OSError as error:
        return (_finding("error", f"{procfile} cannot be read: {error.strerror}."),)
    try:
        processes = parse(text, origin=procfile).processes
    except RefusedTextError as error:
        return (host.refused(error),)
    if processes:
        count = "1 process" if len(processes) == 1 else f"{len(processes)} processes"
        return (_finding("note", f"All is well: {procfile} shows {count}."),)
    return (
        _finding(
            "note",
            "The module works, but no container is running.",
            f"{procfile} is empty: every process lives in the initial PID namespace",
            "a container that shares the host's PID namespace is not shown",
            command="unshare --fork --pid --mount-proc sleep 60",
        ),
    )


def _finding(level: str, sentence: str, *evidence: str, command: str = "") -> Finding:
    run = (f"run: {command}",) if command else ()
    return Finding(level, sentence, None, (), (), (*evidence, *run))


class _Host:
    """The system's files, from which a reason is told."""

    def __init__(self, root: Path, proc: Path, release: str) -> None:
        self._root = root
        self._proc = proc
        self._release = release
        self._modules = root / "lib/modules"

    def in_container(self) -> tuple[Finding, ...]:
        """Return that this is not the host, if it is not."""
        try:
            namespace = str((self._proc / "self/ns/pid").readlink())
        except OSError:
            return ()
        if namespace == _INITIAL:
            return ()
        return (
            _finding(
                "error",
                "This is a container: the module's file can be read on the host only.",
                f"{self._proc}/self/ns/pid is {namespace}; the host's is {_INITIAL}",
                command="cplayground ls  (on the host)",
            ),
        )

    def refused(self, error: RefusedTextError) -> Finding:
        """Return that the text has a form that this version does not know."""
        version = _text(self._root / f"sys/module/{_MODULE}/version").strip()
        return _finding(
            "error",
            f"The loaded module writes another format: {error}.",
            *([f"the loaded module has version {version}"] if version else []),
            "after an upgrade the old module stays loaded until it is reloaded",
            command=f"modprobe -r {_MODULE} && modprobe {_MODULE}",
        )

    def not_permitted(self, procfile: Path) -> tuple[Finding, ...]:
        """Return which right is missing."""
        if os.geteuid() == 0:
            return (
                _finding(
                    "error",
                    f"{procfile} belongs to the procfs of a container.",
                    "root is refused only there",
                    command="unshare --mount-proc cplayground ls",
                ),
            )
        state = procfile.stat()
        facts = f"{procfile} has owner {state.st_uid}, group {state.st_gid}, mode "
        facts += f"{state.st_mode & 0o777:04o}; you are user {os.geteuid()}"
        if state.st_mode & 0o040 and state.st_gid not in {os.getegid(), *os.getgroups()}:
            group, members = self._group(state.st_gid)
            user = self._user(os.geteuid())
            if user in members:
                return (
                    _finding(
                        "error",
                        f"You joined the group {group} after you logged in.",
                        facts,
                        command=f"newgrp {group}",
                    ),
                )
            return (
                _finding(
                    "error",
                    f"Only root and members of the group {group} may read {procfile}.",
                    facts,
                    "the membership begins with the next login",
                    command=f"sudo adduser {user} {group}",
                ),
            )
        return (
            _finding(
                "error",
                f"Only root may read {procfile}.",
                facts,
                "sudo dpkg-reconfigure cplayground can let a group read it",
                command="sudo cplayground ls",
            ),
        )

    def not_loaded(self) -> tuple[Finding, ...]:
        """Return why there is no file."""
        if (self._root / f"sys/module/{_MODULE}").is_dir():
            return (
                _finding(
                    "error",
                    f"The module is loaded, but {self._proc} does not show its file.",
                    "a procfs that is mounted with subset=pid shows processes only",
                    command="unshare --mount-proc cplayground ls",
                ),
            )
        module = self._built(self._release)
        return self._not_built() if module is None else tuple(self._why_not_loaded(module))

    def _not_built(self) -> tuple[Finding, ...]:
        others = [name for name in _entries(self._modules) if self._built(name) is not None]
        facts = [f"kernel {name} has the module" for name in others if name != self._release]
        sources = [n for n in _entries(self._root / "usr/src") if n.startswith(f"{_MODULE}-")]
        sources = [name for name in sources if (self._root / f"usr/src/{name}/dkms.conf").exists()]
        if not sources and not others:
            return (
                _finding(
                    "error",
                    "The module is not installed.",
                    f"{self._modules} and {self._root / 'usr/src'} have no {_MODULE}",
                    command="apt install cplayground-dkms",
                ),
            )
        sentence = f"The module is not built for the running kernel, {self._release}."
        if not sources:
            return (_finding("error", sentence, *facts, command="apt install cplayground-dkms"),)
        if not (self._modules / self._release / "build").exists():
            facts.append(f"DKMS needs the headers of {self._release}, which are not installed")
            command = f"apt install linux-headers-{self._release}"
        else:
            logs = self._root / f"var/lib/dkms/{_MODULE}"
            for log in sorted(logs.glob("*/build/make.log")):
                lines = [line for line in _text(log).splitlines() if "error" in line.lower()]
                facts += [f"{log}: {line.strip()}" for line in lines[:_LOG_LINES]]
            command = f"dkms autoinstall --kernelver {self._release}"
        return (_finding("error", sentence, *facts, command=command),)

    def _built(self, release: str) -> Path | None:
        """Return the module's file for a kernel, by what depmod(8) wrote, or None."""
        place = self._modules / release
        found = re.search(
            rf"^(\S*/{_MODULE}\.ko(?:\.\w+)?):", _text(place / "modules.dep"), re.MULTILINE
        )
        return place / found[1] if found else None

    def _why_not_loaded(self, module: Path) -> Iterator[Finding]:
        log = [f"the kernel's log: {line}" for line in self._log()]
        demands = self._demands()
        signed = _is_signed(module) if demands else True
        reasons = [*self._forbidden(), *self._not_trusted(module, signed, demands, log)]
        yield from reasons
        if not reasons:
            unknown = f"not checked: the signature that the kernel demands, in {module.suffix}"
            yield _finding(
                "error",
                "The module is installed, but not loaded.",
                f"the running kernel has {module}",
                *([unknown] if signed is None else []),
                *log,
                command=f"modprobe {_MODULE}",
            )

    def _forbidden(self) -> Iterator[Finding]:
        if _text(self._proc / "sys/kernel/modules_disabled").strip() == "1":
            yield _finding(
                "error",
                "This system loads no more modules until it is restarted.",
                f"{self._proc}/sys/kernel/modules_disabled is 1",
                command="reboot",
            )
        for word in _text(self._proc / "cmdline").split():
            name, _, value = word.partition("=")
            if name in ("module_blacklist", "modprobe.blacklist") and _MODULE in value.split(","):
                yield _finding(
                    "error",
                    "The kernel's command line forbids the module.",
                    f"{self._proc}/cmdline has {word}",
                    "take the word out, and restart",
                    command="editor /etc/default/grub && update-grub && reboot",
                )
        for path in (self._root / place for place in _MODPROBE_D):
            for name in _entries(path):
                for number, line in enumerate(_text(path / name).splitlines(), 1):
                    if name.endswith(".conf") and line.split()[:2] in (
                        ["install", _MODULE],
                        ["blacklist", _MODULE],
                    ):
                        yield _finding(
                            "error",
                            f"A file of modprobe(8) forbids the module: {path / name}.",
                            f"line {number}: {line.strip()}",
                            command=f"modprobe --ignore-install {_MODULE}",
                        )

    def _demands(self) -> list[str]:
        """Return why the kernel demands signatures of modules; nothing if it does not."""
        lockdown = re.search(r"\[(\w+)\]", _text(self._root / "sys/kernel/security/lockdown"))
        locked = lockdown is not None and lockdown[1] != "none"
        enforced = _text(self._root / "sys/module/module/parameters/sig_enforce").strip() == "Y"
        facts = ["the kernel is locked down, as with Secure Boot"] if locked else []
        return facts + (["the kernel demands signatures: sig_enforce is Y"] if enforced else [])

    def _not_trusted(
        self, module: Path, signed: bool | None, demands: list[str], log: list[str]
    ) -> Iterator[Finding]:
        refused = any(re.search("Key was rejected|not available|unavailable", line) for line in log)
        if not demands or (signed is not False and not refused):
            return
        key = next((k for k in _KEYS if (self._root / k).exists()), "")
        yield _finding(
            "error",
            "The kernel loads no module without a signature that it trusts.",
            *demands,
            *([f"{module} is not signed"] if signed is False else []),
            *log,
            "after the import, the machine asks at its next start for the password",
            command=f"mokutil --import /{key} && reboot"
            if key
            else f"dkms build --force {_MODULE} && mokutil --import /{_KEYS[1]} && reboot",
        )

    def _log(self) -> list[str]:
        """Return the last lines of the kernel's log that are about the module."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            opened = os.open(self._root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                for _ in range(_LOG_RECORDS):
                    with contextlib.suppress(BrokenPipeError):  # a record was overwritten
                        record = os.read(opened, 8192)
                        if not record:
                            break
                        lines += record.decode("utf-8", "replace").splitlines()
            except BlockingIOError:
                pass
            finally:
                os.close(opened)
        ours = re.compile(rf"\b{_MODULE}: |Lockdown: modprobe|Loading of .*module")
        return [line.partition(";")[2] or line for line in lines if ours.search(line)][-_LOG_LINES:]

    def _group(self, gid: int) -> tuple[str, list[str]]:
        for line in _text(self._root / "etc/group").splitlines():
            fields = line.split(":")
            if len(fields) == 4 and fields[2] == str(gid):
                return fields[0], fields[3].split(",")
        return str(gid), []

    def _user(self, uid: int) -> str:
        for line in _text(self._root / "etc/passwd").splitlines():
            fields = line.split(":")
            if len(fields) == 7 and fields[2] == str(uid):
                return fields[0]
        return str(uid)


def _is_signed(module: Path) -> bool | None:
    """Tell whether a module has a signature, None if it cannot be read.

    Python 3.9 decompresses no zstd, and a compressed signature is not found without that.
    """
    try:
        text = module.read_bytes()
        if module.suffix == ".xz":
            text = lzma.decompress(text)
    except (OSError, lzma.LZMAError):
        return None
    return None if module.suffix not in (".ko", ".xz") else text.endswith(_SIGNED)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _entries(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError:
        return []
