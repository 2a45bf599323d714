"""The file's content agrees with the kernel's own view, in every way of reading."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from kbuild.core.model import MODULE, PROCFILE, Settings
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import oracle, procfile
from tests import programs as test_programs
from tests.topology.topology import O_CLOEXEC
from tests.vm.guesses import guesses
from tests.vm.module import (
    PEEK,
    compare,
    kernel_log,
    listing,
    load,
    of_container,
    topology,
    unload,
    without_ids,
)

# The files of the scenario "hostile" in kbuild/lab/programs/topology.c, except those in
# directories.
FILES = {
    b"tab\there",
    b"line\nhere\n\n",
    b"back\\slash\\011",
    b"\x01\x02\x1b[31m\x7f",
    b"\xff\xfe\x80 not utf-8",
    b"\xc3\xa9t\xc3\xa9",
    b"\n\n" + b"0" * 64 + b"\t1\t1\t0\t0\tforged\n",
    # U+0085, U+2028 and U+2029.
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xa9",
    b"ends\xc2\x85",
    b"ends\xe2\x80\xa8",
    b"ends\xe2\x80\xa9",
    b"con\xc2\x85tains",
    b"con\xe2\x80\xa8tains",
    b"con\xe2\x80\xa9tains",
    b"\xc2\x85\xe2\x80\xa8\xe2\x80\xa9\xc2\x85",
    # Parts of them, and sequences with the same first bytes.
    b"\xc2",
    b"\x85",
    b"\x85\xc2",
    b"\xc2\xc2\x85\x85",
    b"\xe2\x80",
    b"\xe2\x80\xe2\x80\xa8\xa8",
    b"\x80\xa8",
    b"ends \xc2",
    b"ends \xe2",
    b"ends \xe2\x80",
    b"\xc2\x84\xc2\x86\xe2\x80\xa7\xe2\x80\xaa\xe2\x81\xa8",
    b"\\\xe2\x80\xa8",
    b"\\342\\200\\250",
    b"\xe2\\200\\250",
    bytes(byte for byte in range(1, 256) if byte != ord("/")),
}
FILES_BELOW = {b"dir\nectory/file", b"dir\xe2\x80\xa8ectory\xe2\x80/\xa8"}
COMMANDS = {
    b"",
    b"a\tb\nc\\d\x7f\x01\xff\xc3\xa9",
    b"\xc2\x85\xe2\x80\xa8\xe2\x80\xa9",
    b"whole sequen\xe2\x80\xa9",
    b"cut after two\xe2\x80",
    b"cut after a by\xe2",
    b"cut after one.\xc2",
}

# The content.


def test_shows_what_the_kernel_says(loaded: Guest) -> None:
    with topology(loaded) as inits:
        shown = compare(loaded)
        assert len(inits) >= 13
        assert {process.pid for process in shown} >= set(inits.values())
    assert listing(loaded) == ()


def test_particular_processes(loaded: Guest) -> None:
    """The cases for the comparison are really there.

    Among them are names that would forge a record, long paths, and a leader that has ended.
    """
    with topology(loaded) as inits:
        shown = compare(loaded)
    record = {name: of_container(shown, init) for name, init in inits.items()}

    (_, ended) = record["zombie"]
    assert ended.files == ()
    (joined,) = (p for p in shown if p.ns_pid == 2 and p.ns_ppid == 0 and p.files)
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
    assert {process.command for process in record["hostile"]} == COMMANDS
    assert procfile.PATH_TOO_LONG in {f.path for p in record["long-paths"] for f in p.files}


def test_no_name_ends_a_line(loaded: Guest) -> None:
    """This includes readers that split at U+2028 and the like, as Python and Node's readline do."""
    with topology(loaded, "hostile") as inits:
        shown = compare(loaded)
        text = loaded.read(PROCFILE)
    records = of_container(shown, inits["hostile"])
    assert {process.command for process in records} == COMMANDS
    names = {file.path.partition(b"/hostile/")[2] for file in records[0].files} - {b""}
    assert names == FILES | FILES_BELOW
    lines = text.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    assert [line.encode("utf-8", "surrogateescape") for line in lines] == re.findall(
        rb"[^\n]*\n", text
    )


def test_close_on_exec_is_no_flag_of_a_file(loaded: Guest) -> None:
    """Some system calls leave O_CLOEXEC in the open file, which says nothing about descriptors."""
    with topology(loaded, "cloexec-kept") as inits:
        shown = compare(loaded)
        seen = oracle.parse(loaded.run([f"{PLACE}/observe"], timeout_s=60, check=True).stdout)
    # If the open file has O_CLOEXEC, the kernel's view does not show that of a descriptor.
    kept = {file.fd for process in seen for file in process.files if file.cloexec is None}
    (process,) = of_container(shown, inits["cloexec-kept"])
    assert not any(file.flags & O_CLOEXEC for file in process.files)
    peers = [file for file in process.files if file.path.endswith(b"/pts/0")]
    assert [(file.cloexec, file.flags) for file in peers] == [(True, os.O_RDWR), (False, os.O_RDWR)]
    assert peers[0].fd in kept, "the case for this test is missing"
    others = {
        file.path.rpartition(b"/")[2]: file.cloexec
        for file in process.files
        if file.path == b"/cloexec-kept (deleted)" or file.path.endswith(b"/noticed")
    }
    assert not any(others.values())
    print(f"TIOCGPTPEER and {sorted(others)}; kept by {len(kept)} descriptors")


def test_many_files(loaded: Guest) -> None:
    with topology(loaded, "many-files", "5000"):
        (process,) = compare(loaded)
    assert len(process.files) >= 5000


def test_many_processes(loaded: Guest) -> None:
    """The list has more than 4,096 processes, where the original module's ended."""
    with topology(loaded, "many-processes", "4200"):
        shown = listing(loaded)
    first, *others = sorted(shown, key=lambda process: process.ns_pid)
    assert [process.ns_pid for process in others] == list(range(2, 4202))
    assert {process.namespace for process in others} == {first.namespace}
    assert {process.ns_ppid for process in others} == {1}
    assert {process.files for process in others} == {first.files}


def test_no_process_of_the_host_is_shown(loaded: Guest) -> None:
    """A dying task has no namespace any more, and must not appear in another one."""
    result = loaded.run(
        [f"{PLACE}/observe_reads", PROCFILE, "storm", "5"], timeout_s=30, check=True
    )
    head, _, text = result.stdout.partition(b"\n")
    reads, length, processes = (int(word) for word in head.split())
    assert text == b""
    assert length == 0
    assert reads > 100
    assert processes > 100


def test_the_grammar_in_c_agrees_with_the_conformance_set(settings: Settings, suite: str) -> None:
    """kbuild/guest/include/listing.h, which readers in guests use, is tried here on the host."""
    reader = test_programs.compile_programs(settings, suite, ["reader"])["reader"]

    def accepts(path: Path) -> bool:
        result = subprocess.run(
            [reader, "check", path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
        )
        assert result.returncode in (0, 1)
        return result.returncode == 0

    conformance = Path(__file__).parents[1] / "conformance"
    # This reader knows only the basic columns.
    accepted = set(conformance.glob("*.procfile")) - {conformance / "extended.procfile"}
    refused = set(conformance.glob("refused/*.procfile"))
    assert len(accepted) > 10
    assert len(refused) > 30
    assert {path for path in accepted | refused if accepts(path)} == accepted


# The ways of reading.


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
def test_every_way_of_reading_gives_the_same(loaded: Guest, way: str, size: int) -> None:
    with topology(loaded):
        expected = loaded.read(PROCFILE)
        got = loaded.run(
            [f"{PLACE}/observe_reads", PROCFILE, way, str(size)], timeout_s=60, check=True
        ).stdout
    assert len(expected) > 65536, "it has to be longer than the module's buffer"
    assert got == expected


def test_several_readers_at_once_see_the_same(loaded: Guest) -> None:
    with topology(loaded):
        expected = loaded.read(PROCFILE)
        got = loaded.run(
            [f"{PLACE}/observe_reads", PROCFILE, "together", "6"], timeout_s=60, check=True
        )
    assert got.stdout == expected


def test_an_id_cannot_be_computed_from_the_address(guest: Guest) -> None:
    """Ids have a key, which is new with each load; those of the original module had none."""
    inside = f"""
        exec 7</etc/passwd
        for load in 1 2; do
            modprobe {MODULE} || exit
            insmod {PEEK.format(release=guest.release)} fd=7 2>/dev/null
            id=$(cut -f 1 {PROCFILE} | head -n 1)
            echo "id $id $(grep -m 1 '/etc/passwd$' {PROCFILE} | cut -f 3)"
            rmmod {MODULE} || exit
        done
    """
    result = guest.run(["unshare", "--fork", "--pid", "sh", "-c", inside], timeout_s=30, check=True)
    ids = [line.split()[1:] for line in result.text.splitlines()]
    peeked = re.findall(
        r"peek: file (\w+) inode (\w+) number (\d+) namespace (\w+) start (\d+)",
        kernel_log(guest),
    )
    assert len(ids) == 2
    assert len(peeked) == 2
    assert peeked[0] == peeked[1], "the objects must be the same in both loads"
    file, inode, namespace = (int(peeked[0][column], 16) for column in (0, 1, 3))
    assert min(file, inode, namespace) > 1 << 63, "addresses of the kernel"
    tried = guesses(file, inode, int(peeked[0][2])) | guesses(namespace, int(peeked[0][4]))
    assert len(tried) > 100
    for one in ids:
        assert all(re.fullmatch("[0-9a-f]{64}", word) for word in one)
        assert not tried & set(one)
        for word in one:
            assert not any(f"{address:x}"[4:] in word for address in (file, inode, namespace))
    assert not set(ids[0]) & set(ids[1])


def test_ids_are_new_with_each_load(guest: Guest) -> None:
    with topology(guest):
        load(guest)
        first = guest.read(PROCFILE)
        again = guest.read(PROCFILE)
        unload(guest)
        load(guest)
        second = guest.read(PROCFILE)
        unload(guest)
    ids = re.compile(rb"(?<![^\t\n])[0-9a-f]{64}(?=\t)")
    assert first == again
    assert not set(ids.findall(first)) & set(ids.findall(second))
    assert without_ids(first) == without_ids(second)
