"""The module in a guest: what it shows is what the kernel itself says, and nobody is harmed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild import programs
from kbuild.model import Settings
from kbuild.programs import PLACE
from kbuild.vm import image, oracle, procfile
from kbuild.vm.guest import Guest
from kbuild.vm.procfile import Process

FILE = "/proc/cplayground"
MODULE = "cplayground"
PROGRAMS = ("topology", "observe", "observe_reads")


@pytest.fixture(scope="session")
def compiled(settings: Settings) -> dict[str, Path]:
    """The guest's programs, compiled here once."""
    return programs.compile_programs(settings, "bookworm", PROGRAMS)


@pytest.fixture
def armed(guest: Guest, compiled: dict[str, Path]) -> Guest:
    """The guest with our programs in it."""
    if guest.run(["test", "-e", PLACE], timeout_s=5).status:
        programs.install(guest, compiled)
    return guest


@contextlib.contextmanager
def topology(guest: Guest, *scenarios: str) -> Iterator[dict[str, int]]:
    """Hold a topology still; gives the pid of each scenario's first process."""
    program = guest.start([f"{PLACE}/topology", *scenarios], cwd="/tmp")
    inits: dict[str, int] = {}
    try:
        while (line := program.read_line(60)) != b"ready\n":
            words = line.decode().split()
            if words[:1] != ["container"]:
                result = program.wait(10)
                pytest.fail(f"topology: {line!r} {result.stdout!r} {result.stderr!r}")
            inits[words[1]] = int(words[2])
        yield inits
    finally:
        program.close_stdin()
        program.wait(60)


def listing(guest: Guest) -> tuple[Process, ...]:
    return procfile.parse(guest.read(FILE))


def compare(guest: Guest) -> tuple[Process, ...]:
    """Compare the file with what /proc and kcmp(2) say; gives what was shown."""
    shown = listing(guest)
    seen = guest.run([f"{PLACE}/observe"], timeout_s=60, check=True).stdout
    found = oracle.differences(shown, oracle.parse(seen))
    assert not found, "\n".join(found[:40])
    return shown


def of_container(shown: tuple[Process, ...], init: int) -> list[Process]:
    """The processes of the namespace that ``init`` is the first process of."""
    (namespace,) = {process.namespace for process in shown if process.pid == init}
    return [process for process in shown if process.namespace == namespace]


def load(guest: Guest, *parameters: str) -> None:
    guest.run(["modprobe", MODULE, *parameters], timeout_s=20, check=True)


def unload(guest: Guest) -> None:
    guest.run(["rmmod", MODULE], timeout_s=20, check=True)


def kernel_log(guest: Guest) -> str:
    return guest.run(["dmesg"], timeout_s=10, check=True).text


def without_ids(text: bytes) -> bytes:
    """Number the ids in the order in which they appear: they differ from load to load."""
    known: dict[bytes, bytes] = {}
    return re.sub(
        rb"(?<![^\t\n])[0-9a-f]{64}(?![^\t\n])",
        lambda match: known.setdefault(match[0], b"id%d" % len(known)),
        text,
    )


# What is shown.


def test_shows_what_the_kernel_says(loaded: Guest, armed: Guest) -> None:
    with topology(armed) as inits:
        shown = compare(loaded)
        assert len(inits) >= 13
        assert {process.pid for process in shown} >= set(inits.values())
    assert listing(loaded) == ()


def test_particular_processes(loaded: Guest, armed: Guest) -> None:
    """What the comparison cannot say: that the cases it is for were there."""
    with topology(armed) as inits:
        shown = compare(loaded)
    record = {name: of_container(shown, init) for name, init in inits.items()}

    (_, ended) = record["zombie"]
    assert ended.files == ()
    (joined,) = (p for p in shown if p.ns_pid == 2 and p.ns_ppid == 0)
    assert joined.ns_pgid == 0
    (_, orphan) = record["orphan"]
    assert (orphan.ns_pid, orphan.ns_ppid, orphan.ns_pgid) == (3, 1, 2)
    (_, leaderless) = record["dead-leader"]
    assert any(f.path.endswith(b"/held by a thread") for f in leaderless.files)
    (_, threaded) = record["thread"]
    names = {f.path.rpartition(b"/")[2] for f in threaded.files}
    assert b"of the process" in names
    assert b"of the thread alone" not in names
    sharers = record["shared-table"]
    assert sharers[0].files == sharers[1].files
    assert any(f.path.endswith(b"/from the sharer") for f in sharers[0].files)
    assert not any(b"forged" in process.command for process in shown)
    assert {process.command for process in record["hostile"]} == {
        b"",
        b"a\tb\nc\\d\x7f\x01\xff\xc3\xa9",
    }
    assert procfile.PATH_TOO_LONG in {f.path for p in record["long-paths"] for f in p.files}


def test_many_files(loaded: Guest, armed: Guest) -> None:
    with topology(armed, "many-files", "5000"):
        (process,) = compare(loaded)
    assert len(process.files) >= 5000


def test_many_processes(loaded: Guest, armed: Guest) -> None:
    """More than 4,096: where the original cut its list off."""
    with topology(armed, "many-processes", "4200"):
        shown = listing(loaded)
    first, *others = sorted(shown, key=lambda process: process.ns_pid)
    assert [process.ns_pid for process in others] == list(range(2, 4202))
    assert {process.namespace for process in others} == {first.namespace}
    assert {process.ns_ppid for process in others} == {1}
    assert {process.files for process in others} == {first.files}


def test_no_process_of_the_host_is_shown(loaded: Guest, armed: Guest) -> None:
    """A dying task has no namespace any more, which is not to be taken for another one."""
    result = armed.run([f"{PLACE}/observe_reads", FILE, "storm", "5"], timeout_s=30, check=True)
    head, _, text = result.stdout.partition(b"\n")
    reads, length, processes = (int(word) for word in head.split())
    assert text == b""
    assert length == 0
    assert reads > 100
    assert processes > 100


# However it is read.


@pytest.mark.parametrize(
    ("way", "size"),
    [
        ("size", 1),
        ("size", 7),
        ("size", 65536),
        ("size", 1 << 20),
        ("pread", 4096),
        ("lseek", 4096),
    ],
)
def test_every_way_of_reading_gives_the_same(
    loaded: Guest, armed: Guest, way: str, size: int
) -> None:
    with topology(armed):
        expected = loaded.read(FILE)
        got = armed.run(
            [f"{PLACE}/observe_reads", FILE, way, str(size)], timeout_s=60, check=True
        ).stdout
    assert len(expected) > 65536, "it has to be longer than the module's buffer"
    assert got == expected


def test_ids_are_new_with_each_load(armed: Guest) -> None:
    with topology(armed):
        load(armed)
        first = armed.read(FILE)
        again = armed.read(FILE)
        unload(armed)
        load(armed)
        second = armed.read(FILE)
        unload(armed)
    ids = re.compile(rb"(?<![^\t\n])[0-9a-f]{64}(?=\t)")
    assert first == again
    assert not set(ids.findall(first)) & set(ids.findall(second))
    assert without_ids(first) == without_ids(second)


# Who may read.


def test_only_root_may_read_by_default(loaded: Guest) -> None:
    status = loaded.run(["stat", "-c", "%a %u %g", FILE], timeout_s=10, check=True)
    assert status.text == "400 0 0\n"
    other = loaded.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cat", FILE], timeout_s=10
    )
    assert other.status != 0
    assert b"Permission denied" in other.stderr


def test_the_owner_is_a_parameter(guest: Guest) -> None:
    load(guest, "file_uid=1000", "file_gid=1001", "file_mode=0440")
    try:
        status = guest.run(["stat", "-c", "%a %u %g", FILE], timeout_s=10, check=True)
        assert status.text == "440 1000 1001\n"
        for user, group, allowed in ((1000, 5, True), (5, 1001, True), (5, 5, False)):
            reader = guest.run(
                ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "cat", FILE],
                timeout_s=10,
            )
            assert (reader.status == 0) == allowed, reader
    finally:
        unload(guest)


def test_a_container_cannot_read_it_through_its_own_procfs(loaded: Guest) -> None:
    inside = ["unshare", "--fork", "--pid"]
    own = loaded.run([*inside, "--mount-proc", "cat", FILE], timeout_s=20)
    assert own.status != 0
    assert own.stdout == b""
    assert b"Permission denied" in own.stderr
    # The host's procfs, which one may give to a container on purpose, is another matter.
    hosts = loaded.run([*inside, "cat", FILE], timeout_s=20, check=True)
    assert [process.command for process in procfile.parse(hosts.stdout)] == [b"cat"]


# Coming and going.


def test_unloaded_while_open(guest: Guest) -> None:
    load(guest)
    script = f"""
        exec 7<{FILE} 8<{FILE}
        head -c 1 <&7 >/dev/null
        rmmod {MODULE} || exit 9
        cat <&7; echo "begun $?"
        cat <&8; echo "fresh $?"
        cat {FILE}; echo "closed $?"
    """
    result = guest.run(["sh", "-c", script], timeout_s=20)
    assert result.text == "begun 1\nfresh 1\nclosed 1\n"
    errors = result.stderr.decode()
    assert errors.count("Input/output error") == 2, errors
    assert errors.count("No such file or directory") == 1, errors


def test_loaded_and_unloaded_again_and_again(guest: Guest) -> None:
    script = (
        f"for i in $(seq 20); do modprobe {MODULE} && cat {FILE} && rmmod {MODULE} || exit; done"
    )
    result = guest.run(["sh", "-c", script], timeout_s=60)
    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")


# Parameters and backends.


def backends(guest: Guest) -> list[str]:
    return guest.run(["modinfo", "-F", "backends", MODULE], timeout_s=10, check=True).text.split()


def test_says_what_it_is(loaded: Guest, request: pytest.FixtureRequest) -> None:
    expected = ["export", "stock"] if image.is_ours(loaded.spec.kernel) else ["stock"]
    assert backends(loaded) == expected
    parameter = loaded.read(f"/sys/module/{MODULE}/parameters/backend")
    assert parameter.decode().strip() == expected[0]
    version = (request.config.rootpath / "kmod" / "VERSION").read_text().strip()
    assert f"{MODULE}: version {version}, {FILE}, backend {expected[0]}" in kernel_log(loaded)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("backend=nonsense", "backend=nonsense is unknown"),
        ("file_mode=0644", "file_mode=0644: must be read bits only"),
        ("file_mode=0", "file_mode=00: must be read bits only"),
        ("file_uid=4294967295", "file_uid=4294967295 file_gid=0: not a user and a group"),
        ("file_gid=4294967295", "file_uid=0 file_gid=4294967295: not a user and a group"),
    ],
)
def test_nonsense_is_refused(guest: Guest, parameter: str, message: str) -> None:
    before = len(kernel_log(guest))
    result = guest.run(["modprobe", MODULE, parameter], timeout_s=20)
    assert result.status != 0
    assert message in kernel_log(guest)[before:]
    assert guest.run(["test", "-e", FILE], timeout_s=5).status != 0


def test_each_backend_or_a_clear_refusal(armed: Guest) -> None:
    """All that are built in give the same bytes; one that is not says so."""
    texts = {}
    with topology(armed):
        for backend in backends(armed):
            load(armed, f"backend={backend}")
            texts[backend] = without_ids(armed.read(FILE))
            compare(armed)
            unload(armed)
        if "export" not in texts:
            before = len(kernel_log(armed))
            refused = armed.run(["modprobe", MODULE, "backend=export"], timeout_s=20)
            assert refused.status != 0
            assert "backend=export is not built in" in kernel_log(armed)[before:]
    assert len(set(texts.values())) == 1
    assert len(texts) == (2 if image.is_ours(armed.spec.kernel) else 1)
