"""Start bwrap(1) without rights on the host: mapped ids, few capabilities, filtered system calls.

``confine.py [--writable-root] -- bwrap OPTIONS --clearenv OPTIONS -- COMMAND``, where all binds
come before ``--clearenv``.  :func:`kbuild.core.sandbox.command` starts it by unshare(1) in a
mount namespace of its own, with Debian's own Python, which has libseccomp's bindings.

The command is root of a user namespace whose ids are unused on the host.  Idmapped mounts
(mount_setattr(2)) show it the owners that the files have on disk, and files that it makes get
these owners too.  If the kernel or a file system has no such mounts, the command keeps the
host's root.  If its root is read-only, it then has no capabilities.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from pathlib import Path

import seccomp

# The upper half of all ids.  No host's users lie there, and each id of the lower half has one.
FIRST_ID, IDS = 1 << 31, (1 << 31) - 1

# Capabilities over the mapped files and the command's own processes.
_FILES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT")
# Only for a writable copy of a root: files of the packages that are installed may be set-user-ID.
_PACKAGES = ("FSETID", "SETFCAP")

# Calls that reach past namespaces and read-only mounts, or that widen the attack surface.
_DENIED = (
    *("mount", "umount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "open_by_handle_at"),
    *("unshare", "setns", "add_key", "request_key", "keyctl"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
    *("acct", "quotactl", "swapon", "swapoff", "reboot", "syslog", "vhangup"),
    *("settimeofday", "clock_settime", "iopl", "ioperm"),
)
# The filter cannot look into the structures that these take; libraries fall back to older calls.
_ABSENT = ("clone3", "openat2")
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX: input for the terminal's other programs
_FCHMODAT2 = 452  # libseccomp in Debian 12 does not know its name
# The calls that set a mode, and the index of that argument.
_CHMOD = {
    "chmod": 1,
    "fchmod": 1,
    "fchmodat": 2,
    _FCHMODAT2: 2,
    "creat": 1,
    "mknod": 1,
    "mknodat": 2,
}
_OPEN = {"open": 1, "openat": 2}  # the index of the flags; the mode follows
_O_TMPFILE = 0o20000000
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x20000

# mount_setattr(2) and open_tree(2); these numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_RDONLY, _NOSUID, _NODEV, _IDMAP = 0x1, 0x2, 0x4, 0x100000
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2

_STAGE = "/mnt"

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def call_filter(*, set_user_id: bool) -> int:
    """Compile the filter of system calls; return a descriptor for ``bwrap --seccomp``."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)
    refuse, masked = seccomp.ERRNO(errno.EPERM), seccomp.MASKED_EQ
    for denied in _DENIED:
        rules.add_rule(refuse, denied)
    for absent in _ABSENT:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), absent)
    rules.add_rule(refuse, "clone", seccomp.Arg(0, masked, _CLONE_NEWUSER, _CLONE_NEWUSER))
    for request in _TERMINAL:
        rules.add_rule(refuse, "ioctl", seccomp.Arg(1, masked, 0xFFFFFFFF, request))
    if not set_user_id:
        for name, at in _CHMOD.items():
            rules.add_rule(refuse, name, seccomp.Arg(at, masked, stat.S_ISUID, stat.S_ISUID))
        for opening, at in _OPEN.items():
            for flag in (os.O_CREAT, _O_TMPFILE):
                rules.add_rule(
                    refuse,
                    opening,
                    seccomp.Arg(at, masked, flag, flag),
                    seccomp.Arg(at + 1, masked, stat.S_ISUID, stat.S_ISUID),
                )
    descriptor = os.memfd_create("filter", 0)
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        rules.export_bpf(stream)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _user_namespace() -> int:
    """Make a user namespace with its own ids; return its descriptor."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"+" if _libc.unshare(_CLONE_NEWUSER) == 0 else b"-")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
    try:
        if os.read(ready[0], 1) != b"+":
            raise OSError(errno.EPERM, "no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {FIRST_ID} {IDS}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done[1])
        os.waitpid(child, 0)


def _mapped(source: str, namespace: int, *, writable: bool) -> int:
    """Copy a mount and map its ids to a user namespace; return a descriptor of the copy."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    _checked(tree, source)
    wanted = _NOSUID | _NODEV | (0 if writable else _RDONLY)

    def change(attributes: int) -> int:
        raw = struct.pack("=QQQQ", attributes, 0, 0, namespace)
        how = _AT_EMPTY_PATH | _AT_RECURSIVE
        return int(_libc.syscall(_MOUNT_SETATTR, tree, b"", how, raw, len(raw)))

    if change(wanted | _IDMAP) < 0:
        # A socket, or /etc/resolv.conf on another file system, works without its owner.
        if Path(source).is_dir():
            _checked(-1, source)
        _checked(change(wanted), source)
    return int(tree)


def _mapped_binds(arguments: list[str], namespace: int) -> dict[int, int]:
    """Return a mapped mount for each bind in the options; the key is its source's index."""
    return {
        at + 1: _mapped(arguments[at + 1], namespace, writable=word == "--bind")
        for at, word in enumerate(arguments[: arguments.index("--clearenv")])
        if word in ("--bind", "--ro-bind")
    }


def _stage(arguments: list[str], trees: dict[int, int]) -> list[str]:
    """Attach the mounts below one directory, and return the options with the new paths."""
    staged = list(arguments)
    # From here on, sources below this directory are hidden.
    _checked(_libc.mount(b"tmpfs", _STAGE.encode(), b"tmpfs", 0, b"mode=755"), _STAGE)
    for at, tree in trees.items():
        point = Path(_STAGE, str(at))
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            point.mkdir()
        else:
            point.touch()
        moved = _libc.syscall(
            *(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(point), _MOVE_MOUNT_F_EMPTY_PATH)
        )
        _checked(moved, str(point))
        staged[at] = str(point)
    return staged


def _become_root_of(namespace: int) -> None:
    parent, deathsig = os.getppid(), ctypes.c_int()
    _libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(deathsig))
    _checked(_libc.setns(namespace, _CLONE_NEWUSER), "setns")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # The kernel clears it when the ids change (prctl(2)).
    _libc.prctl(_PR_SET_PDEATHSIG, deathsig.value)
    if os.getppid() != parent:
        sys.exit(1)


def main(options: list[str], command: list[str]) -> None:
    """Replace this process with bwrap."""
    program, *arguments = command
    writable = "--writable-root" in options
    capabilities = [*_FILES, *_PACKAGES] if writable else []
    try:
        namespace = _user_namespace()
        trees = _mapped_binds(arguments, namespace)
    except OSError as error:
        # For the log only: bwrap itself reports a missing source.
        rights = "few" if writable else "no"
        print(
            f"sandbox: no ids of its own ({error}): host's root, {rights} capabilities",
            file=sys.stderr,
        )
    else:
        arguments = _stage(arguments, trees)
        _become_root_of(namespace)
        capabilities = capabilities or [*_FILES]
    calls = call_filter(set_user_id=writable)
    kept = [word for name in capabilities for word in ("--cap-add", f"CAP_{name}")]
    own = ["--cap-drop", "ALL", *kept, "--seccomp", str(calls)]
    os.execvp(program, [program, *own, *arguments])


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(sys.argv[1:split], sys.argv[split + 1 :])
