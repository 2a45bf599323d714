"""A server's network: our files and nothing else."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core import run
from kbuild.core.errors import InfrastructureError
from kbuild.gate import wire
from kbuild.gate.wire import Wire

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network namespace")

# Print each answer to a request, over one connection.
_CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
for request in sys.argv[2:]:
    method, path = request.split()
    connection.request(method, path)
    answer = connection.getresponse()
    print(answer.status, answer.read().decode(errors="replace").partition("\\n")[0])
"""
# Print the addresses that a connection can be made to.
_PROBE = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print(place)
    except OSError:
        pass
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Wire]:
    (tmp_path / "site" / "dists").mkdir(parents=True)
    (tmp_path / "site" / "dists" / "Release").write_text("Suite: bookworm\n")
    (tmp_path / "secret").write_text("secret\n")
    with wire.serve(tmp_path / "site", tmp_path / "requests.log") as made:
        yield made


def inside(made: Wire, script: str, *words: str) -> list[str]:
    argv = [*run.in_network(made.namespace), sys.executable, "-I", "-c", script, *words]
    return run.run(argv, timeout_s=60).stdout.splitlines()


@as_root
def test_files_are_read_and_nothing_else(served: Wire) -> None:
    asked = (
        "GET /dists/Release",
        "HEAD /dists/Release",
        "GET /dists/Packages",
        "GET /../secret",
        "GET /%2e%2e/secret",
    )
    said = inside(served, _CLIENT, wire.ADDRESS, *asked, "PUT /dists/Release")
    assert [line.split(" ")[0] for line in said] == ["200", "200", "404", "404", "404", "501"]
    assert said[0] == "200 Suite: bookworm"
    log = served.requests.read_text()
    assert '"GET /dists/Release HTTP/1.1" 200' in log
    assert '"GET /dists/Packages HTTP/1.1" 404' in log


@as_root
def test_nothing_else_can_be_reached(served: Wire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        places = (f"127.0.0.1:{port}", f"{wire.ADDRESS}:{port}", "192.0.2.1:80", "127.0.0.1:80")
        assert inside(served, _PROBE, *places, f"{wire.ADDRESS}:80") == [
            "127.0.0.1:80",
            f"{wire.ADDRESS}:80",
        ]


@as_root
def test_a_namespace_ends_with_its_block(tmp_path: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        with wire.serve(tmp_path, tmp_path / "log") as made:
            assert made.namespace.exists()
    assert not made.namespace.exists()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_without_the_right_to_it_there_is_a_hint(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from kbuild.gate import wire\n"
        f"with wire.serve(Path({str(tmp_path)!r}), Path({str(tmp_path / 'log')!r})): pass"
    )
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    with pytest.raises(InfrastructureError) as caught:
        run.run(
            [*powerless, sys.executable, "-c", script],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout_s=60,
            error=InfrastructureError,
        )
    assert "run the same command with sudo" in str(caught.value)
