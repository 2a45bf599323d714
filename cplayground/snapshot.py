"""Types for one reading of /proc/cplayground: processes, descriptors, open files.

All types are immutable.  Those with one object for each line are tuples, because a snapshot may
have a million lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cplayground.differences import Change
    from cplayground.facts import Host
    from cplayground.findings import Finding


class Name(bytes):
    """A command or a path: any bytes but NUL, with the module's escapes undone."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The name in the module's reversible form, fit for a terminal.

        Control characters, the backslash, bytes that are not UTF-8, and characters that change
        the direction or the line of a text are backslashes with three octal digits.
        """
        from cplayground.names import shown

        return shown(self)


class OpenFile(NamedTuple):
    """An open file description, which dup(2) and fork(2) share.

    ``number`` counts from 1 in the order of the text.  Position, flags and path are those of the
    first line that shows the file; each descriptor has those of its own line.
    """

    number: int
    id: str  # 64 hexadecimal digits; equal in two readings only while the file stays open
    position: int
    flags: int  # of open(2), without O_CLOEXEC
    path: Name


class Descriptor(NamedTuple):
    """One line: a descriptor, and its open file at the moment of that line."""

    fd: int
    close_on_exec: bool
    file: OpenFile
    position: int
    flags: int
    path: Name


class Process(NamedTuple):
    """One record.  The last three columns are None without ``fields=extended``."""

    namespace: str  # 64 hexadecimal digits
    global_pid: int  # that kill(1) on the host takes
    pid: int
    ppid: int  # 0: the parent lives outside
    pgid: int  # 0: the leader lives outside
    command: Name
    descriptors: tuple[Descriptor, ...]
    state: str | None = None
    blocked: int | None = None
    pending: int | None = None


class Holder(NamedTuple):
    """A descriptor with its process."""

    process: Process
    descriptor: Descriptor


class Shared(NamedTuple):
    """An open file that several descriptors hold, in the order of the text."""

    file: OpenFile
    holders: tuple[Holder, ...]


class Pipe(NamedTuple):
    """A pipe: the descriptors that read it, and those that write to it.

    One that is open for both, as Linux opens a FIFO with O_RDWR, is in both.
    """

    path: Name  # pipe:[12]
    readers: tuple[Holder, ...]
    writers: tuple[Holder, ...]


@dataclass(frozen=True)
class Container:
    """Processes that a runtime keeps together, found by their cgroup.

    Without a cgroup that a runtime made, it is one PID namespace with those nested in it.
    """

    name: str  # what a person calls it; the id's first 12 digits if no runtime's files tell
    id: str  # the runtime's, or the namespace's
    runtime: str  # docker, podman, containerd, cri-o, nspawn, lxc, or "" for a bare namespace
    pod: str  # of Kubernetes: NAMESPACE/NAME, or the uid; "" without
    global_pids: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """Processes by global pid, and open files by number.

    ``containers`` is empty until :func:`cplayground.containers.named` has looked at the host.
    """

    processes: tuple[Process, ...]
    files: tuple[OpenFile, ...]
    extended: bool = False
    containers: tuple[Container, ...] = ()

    # The modules below use the types above, so they are imported when they are needed.

    def pipes(self) -> tuple[Pipe, ...]:
        """Return the pipes in the order of the text; see :func:`cplayground.sharing.pipes`."""
        from cplayground.sharing import pipes

        return pipes(self)

    def shared(self) -> tuple[Shared, ...]:
        """Return the open files that several descriptors hold, by number."""
        from cplayground.sharing import shared

        return shared(self)

    def container(self, name: str) -> Snapshot:
        """Return the part of one container, by its name, its id, or the beginning of its id.

        Raises UsageError if none or several are meant.
        """
        from cplayground.selecting import container

        return container(self, name)

    def check(self, host: Host | None = None) -> tuple[Finding, ...]:
        """Return what is wrong with the pipes; see :func:`cplayground.check`."""
        from cplayground.findings import check

        return check(self, host)

    def svg(self, findings: Sequence[Finding] = ()) -> str:
        """Return a picture as SVG; :func:`cplayground.drawing.svg` has options."""
        from cplayground.drawing import svg

        return svg(self, findings)

    def diff(self, after: Snapshot) -> tuple[Change, ...]:
        """Return what changed until a later snapshot; see :func:`cplayground.diff`."""
        from cplayground.differences import diff

        return diff(self, after)
