"""The tool on an administrator's machine: its package, its words about real containers."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Background, Guest, GuestResult
from kbuild.lab import procfile
from kbuild.ship import shared
from kbuild.ship.tool_package import PACKAGE
from tests.topologies import TOPOLOGIES
from tests.topology.building import Builder
from tests.topology.topology import Topology
from tests.vm.module import loaded_with

SOURCE = f"/usr/share/doc/{PACKAGE}/examples/words.c"
GROUP = "/etc/modprobe.d/cplayground-group.conf"
FOUND, NO_MODULE, NOT_PERMITTED = 1, 3, 4
# The number of topologies that are walked through: /proc is slow, and Python's start too.
WALKS = 12
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def tool(guest: Guest, *argv: str, check: bool = False) -> GuestResult:
    return guest.run([PACKAGE, *argv], timeout_s=30, check=check)


def sh(guest: Guest, script: str) -> str:
    return guest.run(["sh", "-ec", script], timeout_s=60, check=True).text


def snapshot(guest: Guest, *argv: str) -> dict[str, Any]:
    return dict(json.loads(tool(guest, *argv, "json", check=True).text))


# --- the package --------------------------------------------------------------------------------


def test_it_is_installed(guest: Guest, request: pytest.FixtureRequest, suite: str) -> None:
    version, _ = shared.dated_version(request.config.rootpath, shared.TOOL)
    installed = sh(guest, f"dpkg-query -W -f '${{Version}}' {PACKAGE}")
    assert installed.startswith(f"{version}+")
    assert tool(guest, "--version", check=True).text.split()[-1] == version
    # Nobody is in the group, and the module's file is root's, until an administrator says so.
    assert sh(guest, "getent group cplayground").rstrip().endswith(":")
    assert guest.run(["test", "-e", GROUP], timeout_s=5).status == 1


def test_without_the_module_it_names_the_command_that_mends_it(guest: Guest) -> None:
    said = tool(guest, "ls")
    assert said.status == NO_MODULE
    assert b"modprobe" in said.stderr + tool(guest, "doctor").stdout


def answered(guest: Guest, answer: str) -> None:
    """Answer the package's question, as a frontend would."""
    sh(
        guest,
        f"echo cplayground cplayground/group-reads boolean {answer} | debconf-set-selections\n"
        "DEBIAN_FRONTEND=noninteractive dpkg-reconfigure cplayground",
    )


@pytest.mark.own_guest
def test_members_of_the_group_read_when_an_administrator_agrees(guest: Guest) -> None:
    gid = int(sh(guest, "getent group cplayground").split(":")[2])
    member = ["setpriv", "--reuid=65534", f"--regid={gid}", "--clear-groups", PACKAGE, "ls"]
    stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PACKAGE, "ls"]
    with loaded_with(guest):
        assert guest.run(member, timeout_s=30).status == NOT_PERMITTED
    answered(guest, "true")
    with loaded_with(guest):
        assert sh(guest, f"stat -c '%a %u %g' {PROCFILE}") == f"440 0 {gid}\n"
        assert guest.run(member, timeout_s=30).status == 0
        assert guest.run(stranger, timeout_s=30).status == NOT_PERMITTED
    # An administrator's own change stays, and so does a deletion.
    sh(guest, f"echo '# mine' >>{GROUP}")
    answered(guest, "false")
    assert sh(guest, f"tail -n1 {GROUP}") == "# mine\n"
    sh(guest, f"sed -i '$d' {GROUP}")
    answered(guest, "false")
    assert guest.run(["test", "-e", GROUP], timeout_s=5).status == 1
    answered(guest, "true")
    sh(guest, "dpkg --purge cplayground")
    assert guest.run(["test", "-e", GROUP], timeout_s=5).status == 1
    left = sh(guest, "find / -xdev -name '*cplayground*' -path '*python3*' 2>/dev/null || true")
    assert left == ""


# --- the story ----------------------------------------------------------------------------------


@contextlib.contextmanager
def container(guest: Guest, script: str) -> Iterator[Background]:
    """Run a script as the first process of a PID namespace, which ends after the block."""
    running = guest.start([*CONTAINER, "sh", "-c", f"echo ready; {script}"], cwd="/tmp")
    try:
        assert running.read_line(20) == b"ready\n"
        yield running
    finally:
        if running.running:
            running.kill()
            running.wait(20)


def until(guest: Guest, status: int, *argv: str) -> GuestResult:
    """Repeat a command of the tool until it ends with a status, which it has to do in time."""
    deadline = time.monotonic() + 20 * guest.spec.scale
    while (said := tool(guest, *argv)).status != status:
        assert time.monotonic() < deadline, f"{said.status}: {said.text} {said.stderr!r}"
    return said


@pytest.fixture
def words(guest: Guest) -> Iterator[str]:
    """The directory with the student's program, and with a line that gives it words."""
    place = "/tmp/story"
    sh(
        guest,
        f"mkdir {place}; cd {place}; mkfifo line\n"
        f"gcc -o words {SOURCE}; gcc -DCLOSED -o words-closed {SOURCE}",
    )
    yield place
    sh(guest, f"rm -r {place}")


def test_the_missing_close_is_found(loaded: Guest, words: str) -> None:
    with container(loaded, f"exec {words}/words <{words}/line >{words}/sorted 2>&1"):
        sh(loaded, f"printf 'pear\\napple\\n' >{words}/line")
        said = until(loaded, FOUND, "check").text
        shown = procfile.parse(loaded.read(PROCFILE))
    (sort,) = (one for one in shown if one.command == b"sort")
    (written,) = (one for one in sort.files if one.flags & 3 == 1 and one.fd > 2)
    assert "error: " in said
    assert "sort" in said and f"{written.fd}" in said
    assert written.path.decode() in said


def test_the_corrected_program_makes_no_alarm(loaded: Guest, words: str) -> None:
    with container(loaded, f"exec {words}/words-closed <{words}/line >{words}/sorted 2>&1"):
        # The line stays open, so the program waits for more, and sort(1) waits for it.
        line = loaded.start(["sh", "-c", f"exec 8>{words}/line; echo pear >&8; echo ok; cat"])
        assert line.read_line(20) == b"ok\n"
        while not any(one.command == b"sort" for one in procfile.parse(loaded.read(PROCFILE))):
            time.sleep(0.2)
        for strict in ((), ("--strict",)):
            said = tool(loaded, "check", *strict)
            assert said.status == 0, said.text
        assert "error" not in said.text and "warning" not in said.text
        line.close_stdin()
        line.wait(20, check=True)
        deadline = time.monotonic() + 20 * loaded.spec.scale
        while (found := sh(loaded, f"cat {words}/sorted")) != "pear\n":
            assert time.monotonic() < deadline, found


# --- the walk -----------------------------------------------------------------------------------

# Each time that the builder reads the FIFO, its topology is held still.  Both views are taken.
VIEWS = f"""
cd $1; mkfifo file; n=0; echo ready
while exec 8>file; do
    n=$((n + 1))
    {PACKAGE} json >module.$n; {PACKAGE} --walk json >walked.$n 2>walked.err || cat walked.err >&2
    cat {PROCFILE} >&8; exec 8>&-
done
"""


def without_ids(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without ids, which the module and the walk make in their own ways."""
    document["source"] = ""
    known: dict[str, int] = {}
    for one in document["containers"]:
        one["name"] = one["id"] = ""
    for one in document["processes"]:
        one["namespace_id"] = known.setdefault(one["namespace_id"], len(known))
    return document


def test_the_walk_sees_what_the_module_sees(guest: Guest) -> None:
    place = f"/tmp/views.{secrets.token_hex(4)}"
    sh(guest, f"mkdir {place}")
    seen = 0
    with loaded_with(guest, "fields=extended"):
        views = guest.start(["sh", "-c", VIEWS, "views", place])
        assert views.read_line(20) == b"ready\n"
        program = guest.start(["/tmp/programs/build_topology", f"{place}/t", f"{place}/file"])
        builder = Builder(program, f"{place}/t".encode(), timeout_s=60)

        @seed(secrets.randbits(32))
        @settings(
            max_examples=WALKS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        @given(TOPOLOGIES)
        def each(topology: Topology) -> None:
            nonlocal seen
            builder.build(builder.plan(topology))
            seen += 1
            module, walked = (
                without_ids(json.loads(guest.read(f"{place}/{name}.{seen}")))
                for name in ("module", "walked")
            )
            assert module["processes"]
            assert walked == module

        try:
            each()
        finally:
            program.close_stdin()
            program.wait(60)
            views.kill()
            views.wait(10)
    assert seen >= WALKS
    sh(guest, f"rm -r {place}")
