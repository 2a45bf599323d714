"""Containers by cgroup, and their names in files as runtimes write them."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplayground.containers import named
from cplayground.snapshot import Container, Name, Process, Snapshot
from tests.unit.namespaces import inside

A, B, C = "a1" * 32, "b2" * 32, "c3" * 32
UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
SLICE = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice".format(
    UID.replace("-", "_")
)
TASKS = "run/containerd/io.containerd.runtime.v2.task"
STORE = "var/lib/containers/storage"


class Host:
    """A host's files and processes: each process has a pid, and lives in a namespace."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self.proc = place / "proc"
        self.processes: list[Process] = []
        self.root.mkdir(parents=True)

    def write(self, path: str, content: object) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def run(self, cgroup: str, namespace: str = "1", pid: int = 1) -> int:
        """Add a process with the text of its /proc/PID/cgroup, or only the path of version 2."""
        number = 100 + len(self.processes)
        place = self.proc / str(number)
        (place / "ns").mkdir(parents=True)
        (place / "status").write_text(f"Name:\tx\nNSpid:\t{number}\t{pid}\n")
        (place / "stat").write_text(f"{number} (x) S 1" + " 0" * 17 + " 777 0\n")
        text = cgroup if ":/" in cgroup else f"0::{cgroup}"
        (place / "cgroup").write_bytes(os.fsencode(text) + b"\n")
        (place / "ns/pid").touch()
        self.processes.append(Process(namespace * 64, number, pid, 0, 0, Name(b"x"), ()))
        return number

    def containers(self) -> tuple[Container, ...]:
        snapshot = Snapshot(tuple(self.processes), ())
        return named(snapshot, str(self.proc), str(self.root)).containers

    def only(self) -> tuple[str, str, str]:
        """Return the runtime, the name and the pod of the one container."""
        (one,) = self.containers()
        assert one.global_pids == tuple(process.global_pid for process in self.processes)
        return one.runtime, one.name, one.pod


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("cgroup", "runtime", "identity"),
    [
        (f"/system.slice/docker-{A}.scope", "docker", A),
        (f"/docker/{A}", "docker", A),
        (f"9:name=systemd:/docker/{A}\n8:pids:/docker/{A}\n0::/", "docker", A),
        (f"4:memory:/docker/{A}\n1:name=systemd:/docker/{A}/init.scope", "docker", A),
        (f"/machine.slice/libpod-{A}.scope/container", "podman", A),
        (f"/system.slice/web.service/libpod-payload-{A}", "podman", A),
        (f"/libpod_parent/{B}/libpod-{A}", "podman", A),
        (f"/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope", "podman", A),
        (f"{SLICE}/cri-containerd-{A}.scope", "containerd", A),
        (f"{SLICE}/crio-{A}.scope", "cri-o", A),
        (f"/kubepods/burstable/pod{UID}/{A}", "containerd", A),
        (f"/kubepods/pod{UID}/crio-{A}", "cri-o", A),
        (f"/system.slice/kubepods-pod{UID}.slice:cri-containerd:{A}", "containerd", A),
        (f"/system.slice/nerdctl-{A}.scope", "containerd", A),
        (f"/default/{A}", "containerd", A),
        ("/machine.slice/machine-web\\x2d1.scope/payload", "nspawn", "web-1"),
        ("/machine.slice/systemd-nspawn@web\\x2d1.service/payload", "nspawn", "web-1"),
        ("/lxc.payload.web", "lxc", "web"),
        ("/lxc/101/ns/system.slice", "lxc", "101"),
        # The outermost one: nested containers belong to it.
        (f"/docker/{A}/kubelet/kubepods/pod{UID}/cri-containerd-{B}.scope", "docker", A),
        (f"/lxc.payload.web/docker/{B}", "lxc", "web"),
    ],
)
def test_a_cgroup_names_the_container(host: Host, cgroup: str, runtime: str, identity: str) -> None:
    host.run(cgroup)
    host.run(cgroup, namespace="2")
    (one,) = host.containers()
    assert (one.runtime, one.id, one.global_pids) == (runtime, identity, (100, 101))
    assert one.name == (identity[:12] if identity == A else identity)
    in_pod = "pod0f" in cgroup and runtime != "docker"
    assert one.pod == (UID if in_pod else "")


@pytest.mark.parametrize(
    "cgroup",
    [
        "/",
        "/user.slice/user-0.slice/session-1.scope",
        f"/machine.slice/libpod-conmon-{A}.scope",
        "/system.slice/docker-short.scope",
        "/../../x",
    ],
)
def test_without_a_runtimes_cgroup_the_namespace_is_the_container(host: Host, cgroup: str) -> None:
    host.run(cgroup, namespace="1")
    host.run(cgroup, namespace="2")
    host.run(cgroup, namespace="1", pid=2)
    assert host.containers() == (
        Container("1" * 12, "1" * 64, "", "", (100, 102)),
        Container("2" * 12, "2" * 64, "", "", (101,)),
    )


def test_a_process_that_was_moved_belongs_to_its_namespace(host: Host) -> None:
    host.run(f"/docker/{A}")
    host.run("/user.slice", pid=7)
    host.run("/", pid=9)
    assert host.only() == ("docker", A[:12], "")


def test_containers_of_a_pod_may_share_a_namespace(host: Host) -> None:
    host.run(f"{SLICE}/cri-containerd-{A}.scope")
    host.run(f"{SLICE}/cri-containerd-{B}.scope", pid=7)
    assert [one.id for one in host.containers()] == [A, B]


def test_docker(host: Host) -> None:
    path = f"containers/{A}/config.v2.json"
    host.write(f"var/lib/docker/{path}", {"ID": A, "Name": "/web", "Config": {"Labels": None}})
    host.run(f"/docker/{A}")
    assert host.only() == ("docker", "web", "")
    host.write("etc/docker/daemon.json", {"data-root": "/data/docker"})
    host.write(f"data/docker/{path}", {"ID": A, "Name": "/other"})
    assert host.only() == ("docker", "other", "")


def test_podman(host: Host) -> None:
    host.run(f"/machine.slice/libpod-{A}.scope")
    database = host.write(f"{STORE}/db.sql", b"")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE ContainerConfig("
            "ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT)"
        )
        connection.execute("INSERT INTO ContainerConfig VALUES (?, 'db', NULL, '{}')", (A,))
    connection.close()
    before = {path.name: path.stat().st_mtime_ns for path in database.parent.iterdir()}
    assert host.only() == ("podman", "db", "")
    assert before == {path.name: path.stat().st_mtime_ns for path in database.parent.iterdir()}
    host.write(
        f"{STORE}/overlay-containers/containers.json",
        [{"id": B, "names": ["x"]}, {"id": A, "names": ["web"], "metadata": "{}"}],
    )
    assert host.only() == ("podman", "web", "")


def test_containerd(host: Host) -> None:
    annotations = {
        "io.kubernetes.cri.container-name": "nginx",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-name": "web-0",
        "io.kubernetes.cri.sandbox-namespace": "prod",
    }
    host.write(f"{TASKS}/k8s.io/{A}/config.json", {"annotations": annotations})
    del annotations["io.kubernetes.cri.container-name"]
    annotations["io.kubernetes.cri.container-type"] = "sandbox"
    host.write(f"{TASKS}/k8s.io/{B}/config.json", {"annotations": annotations})
    host.write(f"{TASKS}/default/{C}/config.json", {"annotations": {"nerdctl/name": "mine"}})
    host.write(f"{TASKS}/default/box/config.json", {})
    host.run(f"{SLICE}/cri-containerd-{A}.scope")
    host.run(f"{SLICE}/cri-containerd-{B}.scope", "2")
    host.run(f"/system.slice/nerdctl-{C}.scope", "3")
    host.run("/default/box", "4")
    assert [(one.runtime, one.name, one.pod) for one in host.containers()] == [
        ("containerd", "nginx", "prod/web-0"),
        ("containerd", "pause", "prod/web-0"),
        ("containerd", "mine", ""),
        ("containerd", "box", ""),
    ]


def test_cri_o(host: Host) -> None:
    labels = {
        "io.kubernetes.container.name": "nginx",
        "io.kubernetes.pod.name": "web-0",
        "io.kubernetes.pod.namespace": "prod",
    }
    host.run(f"{SLICE}/crio-{A}.scope")
    host.write(
        f"{STORE}/overlay-containers/containers.json",
        [{"id": A, "names": [f"k8s_early_web-0_prod_{UID}_0"]}],
    )
    (host.root / f"var/log/pods/prod_web-0_{UID}").mkdir(parents=True)
    assert host.only() == ("cri-o", "early", "prod/web-0")
    host.write(
        f"{STORE}/overlay-containers/{A}/userdata/config.json",
        {"annotations": {"io.kubernetes.cri-o.Labels": json.dumps(labels)}},
    )
    assert host.only() == ("cri-o", "nginx", "prod/web-0")


def test_machines_and_lxc(host: Host) -> None:
    host.write("run/systemd/machines/web-1", "NAME=web-1\nSERVICE=systemd-nspawn\n")
    host.write("run/systemd/machines/lxc-9-old", "NAME=lxc-9-old\nSERVICE=libvirt-lxc\n")
    host.write("var/lib/lxc/db/config", "")
    host.run("/machine.slice/machine-web\\x2d1.scope/payload", "1")
    host.run("/machine.slice/machine-lxc\\x2d9\\x2dold.scope", "2")
    host.run("/lxc.payload.db-1/system.slice", "3")
    assert [(one.runtime, one.name) for one in host.containers()] == [
        ("nspawn", "web-1"),
        ("libvirt-lxc", "lxc-9-old"),
        ("lxc", "db"),
    ]


@pytest.mark.parametrize(
    ("path", "state", "expected"),
    [
        ("runc/box/state.json", {"init_process_pid": 100, "init_process_start": 777}, "box"),
        ("crun/box/status", {"pid": 100, "process-start-time": 777}, "box"),
        ("crun/box/status", {"pid": 100}, "box"),
        # The pid is another process's by now.
        ("crun/box/status", {"pid": 100, "process-start-time": 12}, "111111111111"),
        ("crun/box/status", {"pid": "100"}, "111111111111"),
    ],
)
def test_runc_and_crun(host: Host, path: str, state: object, expected: str) -> None:
    host.write(f"run/{path}", state)
    host.run("/box")
    host.run("/box", pid=2)
    assert host.only() == (path.split("/")[0] if expected == "box" else "", expected, "")


def test_podman_without_a_cgroup_is_found_by_crun(host: Host) -> None:
    host.write(f"run/crun/{A}/status", {"pid": 100, "process-start-time": 777})
    host.write(f"{STORE}/vfs-containers/containers.json", [{"id": A, "names": ["web"]}])
    host.run("/system.slice/some.service")
    assert host.only() == ("podman", "web", "")


SESSION = f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"
HOME_STORE = "home/u/.local/share/containers/storage/overlay-containers"


def test_a_rootless_container_is_looked_up_in_its_users_home(host: Host) -> None:
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nu:x:1000:1000:,,,:/home/u:/bin/sh\n")
    host.write(f"{STORE}/overlay-containers/containers.json", [{"id": A, "names": ["system"]}])
    host.run(SESSION)
    # A cgroup in a user's slice is the user's, so the system's name is not for it.
    assert host.only() == ("podman", A[:12], "")
    host.write(f"{HOME_STORE}/containers.json", [{"id": A, "names": ["mine"]}])
    assert host.only() == ("podman", "mine", "")
    # The same id in another cgroup is another container.
    host.run(f"/machine.slice/libpod-{A}.scope", "2")
    assert [one.name for one in host.containers()] == ["mine", "system"]


def test_no_link_and_no_fifo_in_a_home_is_opened(host: Host) -> None:
    host.write("etc/passwd", "u:x:1000:1000::/home/u:/bin/sh\n")
    names = host.write("elsewhere/containers.json", [{"id": A, "names": ["stolen"]}])
    host.run(SESSION)
    file = host.root / HOME_STORE / "containers.json"
    file.parent.mkdir(parents=True)
    file.symlink_to(names)
    assert host.only()[1] == A[:12]
    file.unlink()
    os.mkfifo(file)
    assert host.only()[1] == A[:12]
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to(names.parent)
    assert host.only()[1] == A[:12]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"[" * 200_000,
        b'{"Name": ' + b"9" * 3_000_000 + b"}",
        b'{"Name": ["/web"], "Config": 5}',
        b'{"Name": "/web"}' + b" " * (5 << 20),
        b"\xff\xfe\x00",
    ],
    ids=range(9),
)
def test_a_bad_file_is_as_good_as_none(host: Host, content: bytes) -> None:
    host.run(f"/docker/{A}")
    host.write(f"var/lib/docker/containers/{A}/config.v2.json", content)
    assert host.only() == ("docker", A[:12], "")


def test_a_bad_database_is_as_good_as_none(host: Host) -> None:
    host.run(f"/machine.slice/libpod-{A}.scope")
    database = host.write(f"{STORE}/db.sql", b"SQLite format 3\0" + b"\xff" * 5000)
    assert host.only()[1] == A[:12]
    database.unlink()
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE VIEW ContainerConfig AS WITH RECURSIVE n(i) AS"
            " (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS ID, i AS Name FROM n"
        )
    connection.close()
    assert host.only()[1] == A[:12]


@given(name=st.text(min_size=1))
def test_any_name_is_fit_for_a_terminal(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    host.write(f"var/lib/docker/containers/{A}/config.v2.json", {"Name": f"x{name}\x1b[3m\ud800"})
    host.run(f"/docker/{A}")
    (one,) = host.containers()
    assert one.name.startswith("x")
    assert one.name.encode()  # no surrogate is left
    assert all(category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in one.name)


def test_a_process_that_has_ended_belongs_to_its_namespace(host: Host) -> None:
    host.run(f"/docker/{A}")
    number = host.run(f"/docker/{B}", pid=5)
    (host.proc / f"{number}/status").write_text("NSpid:\t101\t99\n")  # its pid is another's
    assert host.only() == ("docker", A[:12], "")


def test_namespaces_in_a_bare_namespace_belong_to_it(tmp_path: Path) -> None:
    with inside(
        tmp_path,
        """
        def nested():
            libc.unshare(CLONE_NEWPID)
            def first():
                libc.unshare(CLONE_NEWPID)
                child(lambda: None)
            child(first)
        child(nested)
        rest()
        """,
    ) as programs:
        snapshot = programs.walk()
        found = named(snapshot, root=str(tmp_path))
    assert len({process.namespace for process in snapshot.processes}) == 3
    (one,) = found.containers
    # This machine may itself run in a cgroup of a runtime.
    if not one.runtime:
        assert one.id == snapshot.processes[0].namespace
        assert one.name == one.id[:12]
    assert one.global_pids == tuple(process.global_pid for process in snapshot.processes)
