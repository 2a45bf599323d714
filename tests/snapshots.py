"""Compare snapshots of the tool: from the module, from the walk, and as the test library has them.

A snapshot of the module and one of the walk have other ids.  Both number open files in the order
of the text, so ``comparable(read()) == comparable(walk())`` holds for processes at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cplayground.snapshot import Process, Snapshot
from kbuild.lab import procfile


def comparable(
    snapshot: Snapshot, chosen: Callable[[Process], bool] = lambda process: True
) -> tuple[object, ...]:
    """Return what two snapshots of the same processes have in common, for ``==`` and for a diff.

    Namespaces and open files are numbers, in the order of the chosen processes.  State and
    signals are left out: the module has them only with ``fields=extended``.
    """
    namespaces: dict[str, int] = {}
    files: dict[str, int] = {}
    return tuple(
        (
            namespaces.setdefault(process.namespace, len(namespaces)),
            (process.global_pid, process.pid, process.ppid, process.pgid, process.command),
            tuple(
                (
                    files.setdefault(one.file.id, len(files)),
                    *(one.fd, one.close_on_exec, one.position, one.flags, one.path),
                )
                for one in process.descriptors
            ),
        )
        for process in snapshot.processes
        if chosen(process)
    )


def records(processes: Iterable[Process]) -> tuple[procfile.Process, ...]:
    """Return processes as the test library's parser would."""
    return tuple(
        procfile.Process(
            *(process.namespace, process.global_pid, process.pid, process.ppid, process.pgid),
            command=bytes(process.command),
            files=tuple(
                procfile.OpenFile(
                    one.fd, one.close_on_exec, one.file.id, one.position, one.flags, bytes(one.path)
                )
                for one in process.descriptors
            ),
            extended=None
            if process.state is None
            else procfile.Signals(process.state, process.blocked or 0, process.pending or 0),
        )
        for process in processes
    )
