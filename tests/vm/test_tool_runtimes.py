"""Containers of real runtimes, as Debian ships them: the tool shows them by their names."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest

from kbuild.guest.guest import Guest
from tests.vm.test_tool import CONTAINER, sh, snapshot, tool

# The guest's own tree, which has all programs that a container needs.
TREE = "/srv/tree"
# Each container has a second namespace in it.
SCRIPT = "unshare --pid --fork sleep 1000 & exec sleep 1000"
RUN = ("sh", "-c", SCRIPT)
PROCESSES = 3
PODMAN = ("podman", "--cgroup-manager=cgroupfs", "--events-backend=none")
DETACHED = ("run", "--detach", "--privileged", "--network=none")


class Seen(NamedTuple):
    """A container as the tool shows it."""

    name: str
    runtime: str
    id: str
    pids: tuple[int, ...]
    namespaces: tuple[str, ...]


def seen(guest: Guest, *chosen: str) -> tuple[Seen, ...]:
    document = snapshot(guest, *chosen)
    return tuple(
        Seen(
            one["name"],
            one["runtime"],
            one["id"],
            tuple(process["global_pid"] for process in members),
            tuple(dict.fromkeys(process["namespace_id"] for process in members)),
        )
        for one in document["containers"]
        if (members := _members(document, one))
    )


def _members(document: dict[str, Any], container: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in document["processes"] if one["container"] == container["container"]]


def when(
    guest: Guest, enough: Callable[[tuple[Seen, ...]], bool], limit_s: float = 20
) -> tuple[Seen, ...]:
    """Return the containers that are there when all that was started runs, in time."""
    deadline = time.monotonic() + limit_s * guest.spec.scale
    while not enough(found := seen(guest)):
        assert time.monotonic() < deadline, found
    return found


def cgroups(guest: Guest, container: Seen) -> set[str]:
    """Return the cgroups of a container's processes."""
    files = " ".join(f"/proc/{pid}/cgroup" for pid in container.pids)
    return {line.partition("::")[2] for line in sh(guest, f"cat {files}").splitlines()}


def require_selected(guest: Guest, container: Seen, *names: str) -> None:
    """Require that a container with the namespace inside of it is shown for each name."""
    assert len(container.pids) >= PROCESSES
    assert len(container.namespaces) == 2
    for name in names:
        assert seen(guest, "-c", name) == (container,)


def require_titles(guest: Guest, containers: Iterable[Seen]) -> None:
    """Require that the tables show each container's name with its runtime."""
    for command in ("ps", "ls"):
        lines = tool(guest, command, check=True).text.splitlines()
        for one in containers:
            title = f"{one.name} ({one.runtime or 'namespace'}"
            assert any(line.startswith(title) for line in lines), (title, lines)


@pytest.fixture
def tree(loaded: Guest) -> Guest:
    """A guest with the module, and with a tree for containers."""
    sh(loaded, f"mkdir {TREE}; mount --bind / {TREE}; mount --make-private {TREE}")
    return loaded


def crun_bundle(guest: Guest, place: str) -> None:
    """Write a bundle whose program may make namespaces."""
    sh(guest, f"mkdir {place}; cd {place}; crun spec")
    config = json.loads(guest.read(f"{place}/config.json"))
    config["root"] = {"path": TREE, "readonly": True}
    config["process"] |= {"args": RUN, "terminal": False}
    # A kernel of the lab has no BPF, by which crun would limit the devices.
    config["linux"].pop("resources", None)
    for kind in config["process"]["capabilities"].values():
        kind.append("CAP_SYS_ADMIN")
    guest.put(json.dumps(config).encode(), f"{place}/config.json", mode=0o644)


@pytest.mark.own_guest
def test_podman_crun_and_bubblewrap(tree: Guest) -> None:
    guest = tree
    podman = {}
    # The second one has no cgroup of its own, so its name is found by crun's file.
    for name, further in {"web": (), "shop": ("--cgroups=disabled",)}.items():
        argv = (*PODMAN, *DETACHED, f"--name={name}", *further, "--rootfs", TREE, *RUN)
        podman[name] = guest.run(argv, timeout_s=60, check=True).text.strip()
    crun_bundle(guest, "/srv/job")
    # It leaves the container its own standard output, so it must not be ours.
    sh(guest, "crun run --detach --bundle=/srv/job job7 </dev/null >/srv/crun.log 2>&1")
    bubblewrap = guest.start(
        ["bwrap", "--unshare-pid", "--cap-add", "CAP_SYS_ADMIN", "--dev-bind", "/", "/", *RUN]
    )
    # bwrap itself is the first process of its namespace.
    found = when(guest, lambda all_: [len(one.pids) for one in all_] == [3, 3, 3, 4])
    by_name = {one.name: one for one in found}
    bare = found[-1]
    assert [(one.runtime, one.id) for one in found] == [
        ("podman", podman["web"]),
        ("podman", podman["shop"]),
        ("crun", "job7"),
        ("", bare.namespaces[0]),
    ]
    assert list(by_name) == ["web", "shop", "job7", bare.id[:12]]
    (cgroup,) = cgroups(guest, by_name["web"])
    assert re.search(rf"/libpod-{podman['web']}(/|$)", cgroup)
    assert cgroups(guest, by_name["shop"]) == cgroups(guest, bare) == {"/"}
    require_titles(guest, found)
    for one in found:
        require_selected(guest, one, one.name, one.id)
    # The cgroup still has podman's id.  The rest are known by their namespaces only.
    sh(guest, "mv /var/lib/containers /run/crun /srv")
    gone = seen(guest)
    assert [one.pids for one in gone] == [one.pids for one in found]
    assert [(one.name, one.runtime) for one in gone] == [
        (podman["web"][:12], "podman"),
        *((one.namespaces[0][:12], "") for one in found[1:]),
    ]
    for one in gone[:2]:
        require_selected(guest, one, one.name)
    bubblewrap.kill()
    bubblewrap.wait(10)


@contextlib.contextmanager
def systemd(guest: Guest) -> Iterator[list[str]]:
    """Run systemd as the first process of a namespace, and yield the command that enters it.

    It owns the guest's tree of cgroups, /run and the system's bus, as it does on a server.
    """
    sh(guest, "systemd-machine-id-setup; systemctl mask systemd-udevd systemd-udev-trigger")
    environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=test"]
    options = ["--unit=basic.target", "--log-target=null", "--show-status=0"]
    running = guest.start([*CONTAINER, *environment, "/lib/systemd/systemd", *options])
    deadline = time.monotonic() + 20 * guest.spec.scale
    while not (pid := guest.run(["pgrep", "-xo", "systemd"], timeout_s=5).text.strip()):
        assert time.monotonic() < deadline
    inside = ["nsenter", "--target", pid, "--mount", "--pid"]
    while (
        said := guest.run([*inside, "systemctl", "is-system-running"], timeout_s=20).text
    ) not in ("running\n", "degraded\n"):
        assert time.monotonic() < deadline, said
    yield inside
    running.kill()
    running.wait(10)


@pytest.mark.own_guest
def test_nspawn_and_podman_by_systemd(tree: Guest) -> None:
    guest = tree
    with systemd(guest) as inside:
        nspawn = [*inside, "systemd-nspawn", "--quiet", "--machine=mail-1", "--link-journal=no"]
        machine = guest.start([*nspawn, "--as-pid2", f"--directory={TREE}", *RUN])
        argv = ["podman", *DETACHED, "--name=till", "--rootfs", TREE, *RUN]
        identity = guest.run([*inside, *argv], timeout_s=60, check=True).text.strip()
        names = {"mail-1", "till"}
        # nspawn's own first process comes besides.
        sizes = {PROCESSES, PROCESSES + 1}
        found = {
            one.name: one
            for one in when(
                guest,
                lambda all_: {len(one.pids) for one in all_ if one.name in names} == sizes,
            )
        }
        mail, till = found["mail-1"], found["till"]
        assert (mail.runtime, mail.id) == ("nspawn", "mail-1")
        assert cgroups(guest, mail) == {r"/machine.slice/machine-mail\x2d1.scope/payload"}
        assert (till.runtime, till.id) == ("podman", identity)
        (cgroup,) = cgroups(guest, till)
        assert re.fullmatch(rf"/machine\.slice/libpod-{identity}\.scope(/container)?", cgroup)
        require_titles(guest, found.values())
        require_selected(guest, till, "till", identity)
        require_selected(guest, mail, "mail-1")
        # All of systemd's own processes are in the namespace around, which has no name.
        (around,) = (one for one in found.values() if one.name not in names)
        assert (around.name, around.runtime) == (around.namespaces[0][:12], "")
        sh(guest, "mv /var/lib/containers /run/crun /run/systemd/machines /srv")
        assert {(one.name, one.pids) for one in seen(guest) if one.runtime} == {
            ("mail-1", mail.pids),
            (identity[:12], till.pids),
        }
        machine.kill()
        machine.wait(10)
