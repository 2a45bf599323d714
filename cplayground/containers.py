"""Find the containers of a snapshot's processes, by their cgroups, and look up their names.

A runtime puts each container into a cgroup whose name has the container's id.  The outermost such
cgroup of a process is its container.  Otherwise the PID namespace decides.

Names come from files that runtimes leave on disk, and never from a daemon's socket:

- docker: ``Name`` in ``containers/ID/config.v2.json`` (moby, container/container.go).
- podman and cri-o: ``names`` in ``overlay-containers/containers.json`` (containers/storage,
  containers.go), and podman's table ``ContainerConfig`` in ``db.sql`` (containers/podman,
  libpod/sqlite_state_internal.go).
- containerd: annotations in the bundle's ``config.json`` (containerd, pkg/cri/annotations;
  nerdctl, pkg/labels/labels.go: labels are annotations too).
- cri-o: annotations in ``userdata/config.json`` (cri-o, pkg/annotations).
- systemd-nspawn: ``/run/systemd/machines/NAME`` (systemd, src/machine/machine.c).
- runc and crun: ``init_process_pid`` in ``state.json`` (opencontainers/runc, libcontainer),
  ``pid`` in ``status`` (containers/crun, src/libcrun/status.c).

A user, or a program in a container, may have written a name, a cgroup of this form, or a whole
file.  So a rootless container's name is looked up in its user's home only, and no file there is
opened through a symbolic link or on a file system that could let the reader wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from cplayground.names import shown
from cplayground.snapshot import Container, Process, Snapshot

_ID = "([0-9a-f]{64})"
_UNITS = tuple(
    (runtime, re.compile(pattern))
    for runtime, pattern in (
        ("docker", rf"docker-{_ID}\.scope"),
        # conmon, which is outside of the container, has libpod-conmon-ID.scope.
        ("podman", rf"libpod-(?:payload-)?{_ID}(?:\.scope)?"),
        # The forms with a colon come from a driver that did not expect a path of systemd's.
        ("containerd", rf"(?:cri-containerd|nerdctl)-{_ID}\.scope|.+:cri-containerd:{_ID}"),
        ("cri-o", rf"crio-{_ID}(?:\.scope)?|.+:crio:{_ID}"),
        ("nspawn", r"machine-(.+)\.scope|systemd-nspawn@(.+)\.service"),
        ("lxc", r"lxc\.payload\.(.+)"),
    )
)
_POD = re.compile(r"(?:kubepods\S*-)?pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})\b")
_WHOLE_ID = re.compile(_ID)
_USER = re.compile(r"/user\.slice/user-([0-9]+)\.slice/")

# A state file has some kilobytes.
_MOST_BYTES = 4 << 20
_MOST_DIGITS = 20
_MOST_LETTERS = 200
# SQLite counts its own steps; one look-up by a key takes some dozen.
_SQLITE_STEPS = 100_000
# A server of another kind of file system could let a reader wait for ever.
_LOCAL = frozenset(
    b"ext2 ext3 ext4 xfs btrfs bcachefs f2fs zfs jfs tmpfs ramfs overlay".split(b" ")
)
_NS_GET_PARENT = 0x2000B702 if os.uname().machine.startswith(("ppc", "mips")) else 0xB702

_Key = tuple[str, str, str]  # the runtime, the container's id, and the cgroup


def named(snapshot: Snapshot, proc: str = "/proc", root: str = "/") -> Snapshot:
    """Return the snapshot with its containers, ordered by their first process.

    ``proc`` is the host's procfs, and runtimes' files are below ``root``.  A file that is missing,
    unreadable, huge or damaged is as good as none: the name is then the beginning of the id.
    """
    disk = _Disk(root)
    there = {p.global_pid: status for p in snapshot.processes if (status := _status(proc, p))}
    keys: dict[int, _Key] = {}
    pods: dict[_Key, str] = {}
    for process in snapshot.processes:
        if process.global_pid in there:
            found = _by_cgroup(_read(f"{proc}/{process.global_pid}/cgroup"), disk)
            if found is not None:
                key, pod = found
                keys[process.global_pid] = key
                pods[key] = pod
    _by_namespace(snapshot.processes, keys, proc, there, disk)
    members: dict[_Key, list[int]] = {}
    for process in snapshot.processes:
        members.setdefault(keys[process.global_pid], []).append(process.global_pid)
    return replace(
        snapshot,
        containers=tuple(
            _container(key, pods.get(key, ""), pids, disk) for key, pids in members.items()
        ),
    )


def _container(key: _Key, pod_uid: str, pids: Iterable[int], disk: _Disk) -> Container:
    runtime, identity, cgroup = key
    name, pod = "", ""
    if runtime:
        runtime, name, pod = disk.look_up(runtime, identity, _home(disk, cgroup))
    short = identity[:12] if re.fullmatch("[0-9a-f]{64}", identity) else identity
    return Container(
        name=_label(name) or _label(short),
        id=_label(identity),
        runtime=runtime,
        pod=_label(pod or (disk.pod(pod_uid) if pod_uid else "")),
        global_pids=tuple(pids),
    )


def _label(name: str) -> str:
    """Return an untrusted name in a form that is fit for any output."""
    return shown(name[:_MOST_LETTERS].encode("utf-8", "surrogatepass"))


# cgroups


def _by_cgroup(text: bytes, disk: _Disk) -> tuple[_Key, str] | None:
    """Return the container that ``/proc/PID/cgroup`` names, and the uid of its pod or ""."""
    lines = [line.split(":", 2) for line in os.fsdecode(text).split("\n") if line.count(":") > 1]
    # The unified hierarchy first, then systemd's: some runtimes use no other controller.
    lines.sort(key=lambda line: (line[0] != "0", line[1] != "name=systemd"))
    for _number, _controllers, path in lines:
        found = _by_path(path, disk)
        if found is not None:
            return found
    return None


def _by_path(path: str, disk: _Disk) -> tuple[_Key, str] | None:
    if path.endswith(" (deleted)"):
        path = path[: -len(" (deleted)")]
    parts = path.split("/")
    pod = ""
    for at, part in enumerate(parts[1:], 1):
        if in_pod := _POD.match(part):
            pod = in_pod[1].replace("_", "-")
        beside = parts[at - 1], parts[at + 1] if at + 1 < len(parts) else ""
        unit = _unit(part, *beside, pod=pod, disk=disk)
        if unit is not None:
            runtime, identity = unit
            return (runtime, identity, "/".join(parts[: at + 1])), pod
    return None


def _unit(part: str, above: str, below: str, *, pod: str, disk: _Disk) -> tuple[str, str] | None:
    """Return the runtime and the container's id, if this part of a path is a container's."""
    for runtime, pattern in _UNITS:
        if match := pattern.fullmatch(part):
            identity = next(group for group in match.groups() if group)
            return runtime, _unescaped(identity) if runtime == "nspawn" else identity
    if above in ("lxc", "lxc.payload") and part:
        return "lxc", part
    if _WHOLE_ID.fullmatch(part):
        if above == "docker":
            return "docker", part
        # A pod of podman has an id too, and the container's own one comes below it.
        return None if below.startswith("libpod-") else ("containerd", part)
    # "ctr run" takes any id: /default/web
    return ("containerd", part) if above and part and disk.has_task(above, part) else None


def _unescaped(name: str) -> str:
    """Undo unit_name_escape() of systemd, src/basic/unit-name.c."""
    plain = os.fsencode(name.replace("-", "/"))
    return os.fsdecode(
        re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes((int(match[1], 16),)), plain)
    )


def _home(disk: _Disk, cgroup: str) -> str | None:
    """Return the home of the user that a cgroup belongs to, None if it is the system's."""
    user = _USER.match(cgroup)
    if user is None or user[1] == "0":
        return None
    return disk.homes().get(user[1], "")


# Namespaces


def _status(proc: str, process: Process) -> dict[bytes, bytes]:
    """Return the status of a process, nothing if its pid is another one's by now."""
    text = _read(f"{proc}/{process.global_pid}/status")
    fields = dict(line.split(b":", 1) for line in text.split(b"\n") if b":" in line)
    pids = fields.get(b"NSpid", b"").split()
    return fields if pids[-1:] == [b"%d" % process.pid] and len(pids) > 1 else {}


def _by_namespace(
    processes: Iterable[Process],
    keys: dict[int, _Key],
    proc: str,
    there: Mapping[int, object],
    disk: _Disk,
) -> None:
    """Add the containers of processes that have no cgroup of a runtime."""
    processes = sorted(processes, key=lambda process: (process.namespace, process.pid))
    homes: dict[str, _Key] = {}  # of each namespace
    firsts: dict[str, Process] = {}
    for process in processes:
        if process.global_pid in keys:
            homes.setdefault(process.namespace, keys[process.global_pid])
        if process.namespace not in firsts or firsts[process.namespace].global_pid not in there:
            firsts[process.namespace] = process
    if all(process.global_pid in keys for process in processes):
        return
    around = _around(proc, {n: p for n, p in firsts.items() if p.global_pid in there})
    states = disk.states()
    for process in processes:
        if process.global_pid in keys:
            continue
        line = [process.namespace, *around.get(process.namespace, ())]
        for namespace in line:
            key = homes.get(namespace)
            first = firsts[namespace]
            if key is None and first.pid == 1 and first.global_pid in states:
                runtime, identity, started = states[first.global_pid]
                if started in ("", _started(proc, first.global_pid)):
                    key = runtime, identity, ""
            if key is not None:
                break
        else:
            key = "", line[-1], ""
        homes[process.namespace] = keys[process.global_pid] = key


def _around(proc: str, firsts: Mapping[str, Process]) -> dict[str, list[str]]:
    """Return the namespaces around each one, from the inside, as far as they are in ``firsts``."""
    lines: dict[str, list[tuple[int, int]]] = {}
    for namespace, process in firsts.items():
        with contextlib.suppress(OSError):
            lines[namespace] = list(_line_of(f"{proc}/{process.global_pid}/ns/pid"))
    known = {line[0]: namespace for namespace, line in lines.items() if line}
    return {
        namespace: [known[one] for one in line[1:] if one in known]
        for namespace, line in lines.items()
    }


def _line_of(path: str) -> Iterator[tuple[int, int]]:
    """Yield device and inode of a namespace and of those around it: ioctl_nsfs(2)."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            state = os.fstat(opened)
            yield state.st_dev, state.st_ino
            try:
                outer = fcntl.ioctl(opened, _NS_GET_PARENT)
            except OSError as error:
                # The reader's own one is the last that it may see.
                if error.errno in (errno.EPERM, errno.ENOTTY):
                    return
                raise
            os.close(opened)
            opened = outer
    finally:
        os.close(opened)


def _started(proc: str, pid: int) -> str:
    columns = _read(f"{proc}/{pid}/stat").rpartition(b")")[2].split()
    return os.fsdecode(columns[19]) if len(columns) > 19 else "gone"


def _read(path: str) -> bytes:
    """Return a file of procfs, b"" if the process is gone or hidden."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123
        return file.read()
    return b""


# Files of runtimes


class _Named(NamedTuple):
    runtime: str
    name: str
    pod: str


class _Disk:
    """Files that runtimes have left below ``root``; each is read once at most."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._homes: dict[str, str] | None = None
        self._places: dict[str, tuple[str, ...]] = {}
        self._stores: dict[str, dict[str, str]] = {}

    def look_up(self, runtime: str, identity: str, home: str | None) -> _Named:
        """Return the name of a container, "" if no file tells it.

        ``home`` is that of the user who runs it, None for the system's containers, and "" for a
        user without one.
        """
        if runtime == "nspawn":
            return self._machine(identity)
        if runtime == "lxc":
            return _Named(runtime, self._lxc(identity), "")
        if not _WHOLE_ID.fullmatch(identity) and runtime in ("docker", "podman", "cri-o"):
            return _Named(runtime, "", "")
        if home == "":
            return _Named(runtime, "", "")
        if runtime == "docker":
            return _Named(runtime, *self._docker(identity, home))
        if runtime in ("podman", "cri-o"):
            name, pod = self._annotated_crio(identity) if home is None else ("", "")
            return _Named(runtime, name or self._stored(identity, home), pod)
        if runtime == "containerd":
            name, pod = self._containerd(identity) if home is None else ("", "")
            # A cgroup with only an id does not tell its runtime.
            for other in () if name else ("docker", "podman"):
                found = (
                    self._docker(identity, home)[0]
                    if other == "docker"
                    else (self._stored(identity, home))
                )
                if found:
                    return _Named(other, found, "")
            return _Named(runtime, name, pod)
        found = self._stored(identity, home) if _WHOLE_ID.fullmatch(identity) else ""
        return _Named("podman" if found else runtime, found or identity, "")

    def homes(self) -> dict[str, str]:
        """Return the homes by uid.  Users of other databases have none: those ask a daemon."""
        if self._homes is None:
            lines = (os.fsdecode(line).split(":") for line in self._own("etc/passwd").split(b"\n"))
            self._homes = {line[2]: line[5].strip("/") for line in lines if len(line) == 7}
        return self._homes

    def pod(self, uid: str) -> str:
        """Return NAMESPACE/NAME of a pod, by the directory of its logs, else its uid."""
        for name in self._entries("var/log/pods"):
            namespace, _, rest = name.partition("_")
            pod, _, its_uid = rest.rpartition("_")
            if its_uid == uid and pod:
                return f"{namespace}/{pod}"
        return uid

    def has_task(self, namespace: str, identity: str) -> bool:
        """Tell whether containerd runs this container."""
        return namespace != ".." and identity in self._entries(
            f"run/containerd/io.containerd.runtime.v2.task/{namespace}"
        )

    def states(self) -> dict[int, tuple[str, str, str]]:
        """Return runtime, id and start time of containers, by the pid of their first process."""
        found = {}
        for runtime, file, pid, start in (
            ("runc", "state.json", "init_process_pid", "init_process_start"),
            ("crun", "status", "pid", "process-start-time"),
        ):
            for identity in self._entries(f"run/{runtime}"):
                state = _json(self._own(f"run/{runtime}/{identity}/{file}"))
                if isinstance(_part(state, pid), int):
                    started = _part(state, start)
                    found[state[pid]] = runtime, identity, "" if started is None else str(started)
        return found

    def _docker(self, identity: str, home: str | None) -> tuple[str, str]:
        if home is None:
            root = _text(_json(self._own("etc/docker/daemon.json")), "data-root").strip("/")
            places = [root] if root else []
            places += ["var/lib/docker", "var/snap/docker/common/var-lib-docker"]
        else:
            places = [f"{home}/.local/share/docker"]
        for place in places:
            config = _json(self._file(f"{place}/containers/{identity}/config.v2.json", home))
            if config is not None:
                labels = _part(config, "Config", "Labels")
                name, pod = _kubernetes(labels, "io.kubernetes.container.name", _KUBELET)
                # The engine has a slash before each name, from the time of links.
                return name or _text(config, "Name").lstrip("/"), pod
        return "", ""

    def _stored(self, identity: str, home: str | None) -> str:
        """Return the name in the store of podman and cri-o."""
        place = f"{home}/.local/share/containers/storage" if home else "var/lib/containers/storage"
        if place not in self._stores:
            names: dict[str, str] = {}
            for driver in ("overlay", "vfs", "btrfs", "zfs"):
                for file in ("containers.json", "volatile-containers.json"):
                    entries = _json(self._file(f"{place}/{driver}-containers/{file}", home))
                    for one in entries if isinstance(entries, list) else ():
                        given = _part(one, "names")
                        if isinstance(given, list) and given and isinstance(given[0], str):
                            names.setdefault(_text(one, "id"), given[0])
            self._stores[place] = names
        found = self._stores[place].get(identity, "")
        if not found and home is None:
            found = self._in_database(f"{place}/db.sql", identity)
        if found.startswith("k8s_"):  # of cri-o: k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT
            found = found.split("_")[1]
        return found

    def _in_database(self, place: str, identity: str) -> str:
        """Return the name in podman's database; a user's own one is not opened."""
        path = os.path.join(self._root, place)
        try:
            state = os.lstat(path)
            if not stat.S_ISREG(state.st_mode) or state.st_uid not in (0, os.geteuid()):
                return ""
            # Immutable: no lock, no journal, and nothing is written.
            address = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"  # noqa: PTH100
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                database.set_progress_handler(lambda: 1, _SQLITE_STEPS)
                database.execute("PRAGMA trusted_schema = OFF")
                query = "SELECT Name FROM ContainerConfig WHERE ID = ?"
                row = database.execute(query, (identity,)).fetchone()
        except (OSError, sqlite3.Error):
            return ""
        return row[0] if row and isinstance(row[0], str) else ""

    def _containerd(self, identity: str) -> tuple[str, str]:
        tasks = "run/containerd/io.containerd.runtime.v2.task"
        for namespace in self._entries(tasks):
            config = _json(self._own(f"{tasks}/{namespace}/{identity}/config.json"))
            if config is not None:
                given = _part(config, "annotations")
                name, pod = _kubernetes(given, "io.kubernetes.cri.container-name", _CRI)
                if not name and _text(given, "io.kubernetes.cri.container-type") == "sandbox":
                    name = "pause"
                return name or _text(given, "nerdctl/name"), pod
        return "", ""

    def _annotated_crio(self, identity: str) -> tuple[str, str]:
        for place in ("run", "var/lib"):
            path = f"{place}/containers/storage/overlay-containers/{identity}/userdata/config.json"
            given = _part(_json(self._own(path)), "annotations")
            labels = _json(_text(given, "io.kubernetes.cri-o.Labels").encode("utf-8", "replace"))
            for one in (given, labels):
                name, pod = _kubernetes(one, "io.kubernetes.container.name", _KUBELET)
                if name or pod:
                    return name, pod
        return "", ""

    def _machine(self, name: str) -> _Named:
        runtime = "nspawn"
        if "/" not in name:
            for line in self._own(f"run/systemd/machines/{name}").split(b"\n"):
                field, _, value = line.partition(b"=")
                if field == b"SERVICE" and value == b"libvirt-lxc":
                    runtime = "libvirt-lxc"
        return _Named(runtime, name, "")

    def _lxc(self, name: str) -> str:
        # A number is added if the cgroup of an earlier container of this name is still there.
        plain = re.sub(r"-[0-9]+\Z", "", name)
        known = self._entries("var/lib/lxc")
        return plain if plain in known and name not in known else name

    def _entries(self, place: str) -> tuple[str, ...]:
        if place not in self._places:
            names: list[str] = []
            with contextlib.suppress(OSError, ValueError):
                names = [entry.name for entry in os.scandir(os.path.join(self._root, place))]
            self._places[place] = tuple(sorted(names))
        return self._places[place]

    def _own(self, place: str) -> bytes:
        return self._file(place, None)

    def _file(self, place: str, home: str | None) -> bytes:
        """Return a small regular file, b"" for anything else."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if home is None:
                opened = os.open(os.path.join(self._root, place), flags)
            else:
                with _untrusted(self._root, str(Path(place).parent)) as directory:
                    opened = os.open(Path(place).name, flags, dir_fd=directory)
            with open(opened, "rb") as file:  # noqa: PTH123
                state = os.fstat(opened)
                if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES:
                    return b""
                return file.read(_MOST_BYTES)
        except (OSError, ValueError):
            return b""


@contextlib.contextmanager
def _untrusted(root: str, place: str) -> Iterator[int]:
    """Yield a directory that a user may have made; raises OSError if a part is not harmless.

    O_PATH asks no server and mounts nothing, and neither does the mount's number in fdinfo.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    kinds = _mounts()
    opened = os.open(root, os.O_PATH | os.O_CLOEXEC)
    try:
        for part in place.split("/"):
            if part in ("", ".", ".."):
                raise OSError(errno.EINVAL, "not a path in a home", place)
            inner = os.open(part, flags, dir_fd=opened)
            os.close(opened)
            opened = inner
            info = _read(f"/proc/self/fdinfo/{opened}")
            mount = re.search(rb"^mnt_id:\t(\d+)$", info, re.MULTILINE)
            if mount is None or kinds.get(mount[1]) not in _LOCAL:
                raise OSError(errno.EXDEV, "not a local file system", place)
        yield opened
    finally:
        os.close(opened)


def _mounts() -> dict[bytes, bytes]:
    """Return the file system's type of each mount, by its number: proc_pid_mountinfo(5)."""
    found = {}
    for line in _read("/proc/self/mountinfo").split(b"\n"):
        before, _, after = line.partition(b" - ")
        if after:
            found[before.split(b" ", 1)[0]] = after.split(b" ", 1)[0]
    return found


_KUBELET = ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name")
_CRI = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name")


def _kubernetes(labels: object, name: str, pod: tuple[str, str]) -> tuple[str, str]:
    """Return the names of a container and of its pod."""
    namespace, its_name = _text(labels, pod[0]), _text(labels, pod[1])
    return _text(labels, name), f"{namespace}/{its_name}" if namespace and its_name else ""


def _json(text: bytes) -> Any:  # noqa: ANN401 - a file may hold anything
    """Return what a text says, None if it is damaged or made to do harm."""
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> int:
    # Python takes minutes for a number of a million digits.
    return int(digits) if len(digits) <= _MOST_DIGITS else 0


def _part(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: object, *names: str) -> str:
    found = _part(value, *names)
    return found if isinstance(found, str) else ""
