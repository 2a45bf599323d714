"""Debian's Icecream: a scheduler and two workers, of which one dies while it compiles."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.core import run, sandbox, suites
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.kernel import ccache, helpers

SOURCES = 12
STARTED_S, AT_WORK_S, MADE_S = 30.0, 60.0, 300.0
USER = "icecc"  # the daemons' user, from Debian's package
# The daemons' messages with -vvv.
CONNECTED = "Connected to scheduler"
COMPLETED = "Remote compilation completed with exit code 0"
# Without this, its client takes a worker with the same address for this machine itself.
REMOTE = {"ICECC_TEST_REMOTEBUILD": "1"}

MAKEFILE = """\
all: $(patsubst /mnt/source/%.c,%.o,$(wildcard /mnt/source/*.c))
%.o: /mnt/source/%.c
\tccache $(COMPILER) -O2 -c -o $@ $<
"""
# Many functions keep a compiler busy long enough for the test to find it at work.
FUNCTION = """\
int f{0}(int *x, int n)
{{
\tint i, j, sum = {0};

\tfor (i = 0; i < n; i++)
\t\tfor (j = i; j < n; j += {0} + 1)
\t\t\tsum += x[i] * x[j] - (x[i] ^ sum) % ({0} + {1});
\treturn sum;
}}
"""
FUNCTIONS = 150


@pytest.fixture
def root(settings: Settings, suite: str) -> Root:
    """The suite's compile root, in which the workers run, too."""
    return roots.compile_root(settings, suite)


@dataclasses.dataclass(frozen=True)
class Daemon:
    """A process of Icecream in a root, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self, what: str) -> int:
        """Return how many lines of the log contain a text."""
        return sum(what in line for line in self.log.read_text(errors="replace").splitlines())

    def compiling(self) -> bool:
        """Return whether one of its compilers runs now."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The name is in brackets, and the session is the fourth word after it.
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                if name == "cc1" and int(rest.split()[3]) == self.process.pid:
                    return True
        return False


@dataclasses.dataclass(frozen=True)
class Farm:
    """A scheduler with its workers."""

    address: str
    workers: tuple[Daemon, ...]


def wait(what: str, seconds: float, seen: Callable[[], bool]) -> None:
    """Wait until ``seen`` returns true, and fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"not seen in {seconds:.0f} s: {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def daemon(root: Root, home: Path, *argv: str) -> Iterator[Daemon]:
    """Run a program of Icecream in a root, with ``home`` for its files."""
    home.mkdir()
    # A busy machine gets no work, and all workers are on this machine.  So they see processors
    # whose counters do not change, which count as idle.
    idle = home / "stat"
    idle.write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    place = Bind(home, "/mnt/icecream", writable=True)
    sandbox.enter(root, ["chown", USER, "/mnt/icecream"], timeout_s=60, binds=[place])
    command = sandbox.command(
        root,
        argv,
        binds=[place, Bind(idle, "/proc/stat")],
        # These allow several of them on one machine, as in Icecream's own tests.
        env={"ICECC_TESTS": "1", "ICECC_TEST_SOCKET": "/mnt/icecream/socket"},
        network=True,
    )
    with (home / "log").open("wb") as stream:
        process = run.start(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield Daemon(process, home / "log")
        finally:
            run.stop(process)


@pytest.fixture
def farm(root: Root, tmp_path: Path) -> Iterator[Farm]:
    """A scheduler and two connected workers on the loopback interface."""
    port, *of_workers = free_ports(3)
    with contextlib.ExitStack() as stack:
        scheduler = ["icecc-scheduler", "-p", str(port), "-n", f"test-{port}", "-u", USER, "-vvv"]
        stack.enter_context(daemon(root, tmp_path / "scheduler", *scheduler))
        workers = [
            stack.enter_context(
                daemon(
                    root,
                    tmp_path / f"worker-{one}",
                    *("iceccd", "-s", f"127.0.0.1:{port}", "-n", f"test-{port}"),
                    *("-p", str(one), "-N", f"worker-{one}", "-m", "2", "-u", USER, "-vvv"),
                    *("-b", "/mnt/icecream/environments"),
                )
            )
            for one in of_workers
        ]
        wait(
            "workers that are connected",
            STARTED_S,
            lambda: all(worker.said(CONNECTED) for worker in workers),
        )
        yield Farm(f"127.0.0.1:{port}", tuple(workers))


def lay_out(tree: Path) -> None:
    """Write files that take a while to compile, and the places that a root shows of a tree."""
    for name in ("source", "out", "ccache"):
        (tree / name).mkdir(parents=True)
    (tree / "out/Makefile").write_text(MAKEFILE)
    for file in range(SOURCES):
        text = "".join(FUNCTION.format(number, file + 3) for number in range(FUNCTIONS))
        (tree / f"source/{file}.c").write_text(text)


def compile_in(settings: Settings, root: Root, tree: Path) -> dict[str, bytes]:
    """Lay out a tree, compile its files, and return the objects."""
    lay_out(tree)
    compiler = suites.suite(root.suite).compiler
    with helpers.ready(settings, root, tree / "home") as help:
        sandbox.enter(
            root,
            ["make", "-j6", f"COMPILER={compiler}", "all"],
            timeout_s=MADE_S,
            binds=[
                Bind(tree / "source", "/mnt/source"),
                Bind(tree / "out", "/mnt/out", writable=True),
                Bind(tree / "ccache", "/mnt/ccache", writable=True),
                *help.binds,
            ],
            cwd="/mnt/out",
            env={**ccache.environment(distro_options=False), **help.env, **REMOTE},
            network=help.network,
        )
    return {path.name: path.read_bytes() for path in (tree / "out").glob("*.o")}


def test_a_worker_that_dies_costs_time_and_not_the_build(
    settings: Settings, root: Root, farm: Farm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = dataclasses.replace(settings, build=tmp_path / "build")
    alone = compile_in(settings, root, tmp_path / "alone")
    killed: list[Daemon] = []

    def kill_one_at_work() -> bool:
        worker = next((worker for worker in farm.workers if worker.compiling()), None)
        if worker is not None:
            # The worker is the first process of its PID namespace, so all its processes end.
            worker.process.kill()
            killed.append(worker)
        return worker is not None

    def kill() -> None:
        wait("a worker at its work", AT_WORK_S, kill_one_at_work)

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING):
        helped = compile_in(
            dataclasses.replace(settings, scheduler=farm.address), root, tmp_path / "helped"
        )
    killer.join()
    assert len(killed) == 1
    assert len(alone) == SOURCES
    assert helped == alone
    assert not caplog.records
    # The other worker and the scheduler went on.
    living = [worker for worker in farm.workers if worker not in killed]
    assert [worker.said(COMPLETED) > 0 for worker in living] == [True]
    assert "scheduler dead" not in (settings.build / "logs/icecream.log").read_text()
