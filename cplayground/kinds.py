"""Tell the kind of an open file from its path, as readlink(2) of /proc/PID/fd/N gives it."""

from __future__ import annotations

import re
from typing import Final

# Names of anonymous inodes (anon_inode_getfd() and the like), where the kind has another name.
_ANONYMOUS: Final = {
    b"eventpoll": "epoll",
    b"bpf-map": "bpf",
    b"bpf-prog": "bpf",
    b"bpf_link": "bpf",
    b"bpf_iter": "bpf",
    b"btf": "bpf",
    b"perf_event": "perf",
}
_PLAIN: Final = (
    "eventfd",
    "fanotify",
    "inotify",
    "io_uring",
    "pidfd",
    "signalfd",
    "timerfd",
    "userfaultfd",
)
_ANONYMOUS.update((name.encode(), name) for name in _PLAIN)

KINDS: Final = (
    *("pipe", "socket", "file", "deleted", "memfd", "terminal", "device", "namespace"),
    *sorted({*_ANONYMOUS.values(), "anonymous"}),
)

_ANON_INODE = re.compile(rb"anon_inode:\[?([^\]]*)\]?")
_OBJECT = re.compile(rb"([a-z_]+):\[[0-9]+\]")
_NAMESPACES = frozenset(b"cgroup ipc mnt net pid pid_for_children time user uts".split())
_TERMINAL = re.compile(rb"/dev/(?:pts/.*|tty.*|console|ptmx|hvc[0-9]+)", re.DOTALL)
# Directories of files that programs make themselves.
_NOT_DEVICES = (b"/dev/shm/", b"/dev/mqueue/", b"/dev/hugepages/")
_DELETED = b" (deleted)"


def kind(path: bytes) -> str:
    """Return the kind of an open file, one of :data:`KINDS`.

    Only the path is looked at.  A FIFO with a name is a file.  A file whose name ends with
    " (deleted)" is taken for a deleted one, because the kernel writes both in the same form.
    """
    if not path.startswith(b"/"):
        return _object(path)
    if path.startswith(b"/memfd:") and path.endswith(_DELETED):
        return "memfd"
    # A terminal of another mount namespace, or one that hung up, can have lost its name.
    if path.startswith(b"/dev/") and not path.startswith(_NOT_DEVICES):
        return "terminal" if _TERMINAL.fullmatch(path) else "device"
    return "deleted" if path.endswith(_DELETED) else "file"


def _object(path: bytes) -> str:
    named = _ANON_INODE.fullmatch(path)
    if named is not None:
        return _ANONYMOUS.get(named[1], "anonymous")
    named = _OBJECT.fullmatch(path)
    if named is None:
        return "file"  # (path too long), (unreachable)/x
    name = named[1]
    if name in (b"pipe", b"socket", b"pidfd"):
        return name.decode()
    return "namespace" if name in _NAMESPACES else "anonymous"
