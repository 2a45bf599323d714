"""Access to the file, by user and by procfs: docs/reference/procfile.md."""

from __future__ import annotations

from collections.abc import Sequence

from kbuild.core.model import PROCFILE
from kbuild.guest.guest import Guest
from kbuild.guest.programs import PLACE
from kbuild.lab import procfile
from kbuild.lab.procfile import Process
from tests.vm.module import load, loaded_with, topology, unload

MOUNTED = f"{PLACE}/mounted"
OTHER_USER = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]


def read_as(guest: Guest, *argv: str) -> tuple[Process, ...]:
    """Return the listing that a command prints."""
    return procfile.parse(guest.run(argv, timeout_s=20, check=True).stdout)


def refused(guest: Guest, reason: str, argv: Sequence[str]) -> bool:
    """Return whether a command prints nothing and fails for this reason."""
    result = guest.run(argv, timeout_s=20)
    assert reason in result.stderr.decode(), result
    return result.status != 0 and result.stdout == b""


def test_only_root_may_read_by_default(loaded: Guest) -> None:
    status = loaded.run(["stat", "-c", "%a %u %g", PROCFILE], timeout_s=10, check=True)
    assert status.text == "400 0 0\n"
    other = loaded.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cat", PROCFILE], timeout_s=10
    )
    assert other.status != 0
    assert b"Permission denied" in other.stderr


def test_the_owner_is_a_parameter(guest: Guest) -> None:
    load(guest, "file_uid=1000", "file_gid=1001", "file_mode=0440")
    try:
        status = guest.run(["stat", "-c", "%a %u %g", PROCFILE], timeout_s=10, check=True)
        assert status.text == "440 1000 1001\n"
        for user, group, allowed in ((1000, 5, True), (5, 1001, True), (5, 5, False)):
            reader = guest.run(
                [
                    "setpriv",
                    f"--reuid={user}",
                    f"--regid={group}",
                    "--clear-groups",
                    "cat",
                    PROCFILE,
                ],
                timeout_s=10,
            )
            assert (reader.status == 0) == allowed, reader
    finally:
        unload(guest)


def test_a_container_cannot_read_it_through_its_own_procfs(loaded: Guest) -> None:
    """The original module could be read there."""
    inside = ["unshare", "--fork", "--pid"]
    own = loaded.run([*inside, "--mount-proc", "cat", PROCFILE], timeout_s=20)
    assert own.status != 0
    assert own.stdout == b""
    assert b"Permission denied" in own.stderr
    # Through the host's procfs, which an administrator may give to a container, it can.
    hosts = loaded.run([*inside, "cat", PROCFILE], timeout_s=20, check=True)
    assert [process.command for process in procfile.parse(hosts.stdout)] == [b"cat"]


def test_the_hosts_procfs_given_to_a_container(loaded: Guest) -> None:
    """The host's procfs in a container shows the host's view; the mode applies as on the host."""
    mount = [MOUNTED, "bind", "/tmp/hosts-proc", "/proc", "unshare", "--fork", "--pid"]
    through = "/tmp/hosts-proc/cplayground"
    with topology(loaded, "tree"):
        shown = read_as(loaded, *mount, "--mount-proc", "cat", through)
        assert {process.ns_pid for process in shown} > {1, 2, 3}
        assert [process.command for process in shown].count(b"cat") == 1
    own_and_hosts = [*mount, "--mount-proc", "cat", PROCFILE]
    assert refused(loaded, "Permission denied", own_and_hosts)
    assert refused(loaded, "Permission denied", [*mount, *OTHER_USER, "cat", through])


def test_root_of_a_user_namespace(loaded: Guest) -> None:
    """Root of a user namespace may read neither through the host's procfs nor through its own."""
    inside = [*OTHER_USER, "unshare", "--user", "--map-root-user", "--pid", "--fork"]
    result = loaded.run([*inside, "id", "-u"], timeout_s=20, check=True)
    assert result.text == "0\n"
    assert refused(loaded, "Permission denied", [*inside, "cat", PROCFILE])
    assert refused(loaded, "Permission denied", [*inside, "--mount-proc", "cat", PROCFILE])
    # The host's own root is the file's owner in every user namespace.
    owner = ["unshare", "--user", "--map-root-user", "cat", PROCFILE]
    assert read_as(loaded, *owner) == ()


def test_a_container_may_not_read_its_own_even_with_mode_0444(guest: Guest) -> None:
    load(guest, "file_mode=0444")
    try:
        assert read_as(guest, *OTHER_USER, "cat", PROCFILE) == ()
        for user in ([], OTHER_USER):
            inside = ["unshare", "--fork", "--pid", "--mount-proc", *user, "cat", PROCFILE]
            assert refused(guest, "Permission denied", inside)
    finally:
        unload(guest)


def test_mount_options_of_procfs(guest: Guest) -> None:
    """hidepid hides directories of processes, but not this file; subset=pid hides the file."""
    where = "/tmp/other-proc"
    with topology(guest, "tree") as inits, loaded_with(guest, "file_mode=0444"):
        expected = guest.read(PROCFILE)
        hidden = [MOUNTED, "proc", where, "hidepid=2"]
        (init,) = inits.values()
        directory = guest.run([*hidden, *OTHER_USER, "ls", f"{where}/{init}"], timeout_s=20)
        assert directory.status != 0
        for user in ([], OTHER_USER):
            got = guest.run([*hidden, *user, "cat", f"{where}/cplayground"], timeout_s=20)
            assert got.stdout == expected
        subset = [MOUNTED, "proc", where, "subset=pid", "cat", f"{where}/cplayground"]
        assert refused(guest, "No such file or directory", subset)


def test_a_reader_in_a_chroot(loaded: Guest) -> None:
    """Paths are those of readlink(2): relative to the reader's root if they are below it."""
    # The files are opened in the mount namespace of the reader's root.
    script = f"""
        exec 7<jail/inside 8</etc/passwd
        exec unshare --fork --pid chroot jail /bin/observe_reads {PROCFILE} size 65536
    """
    loaded.run(
        [
            "sh",
            "-c",
            f"mkdir -p jail/bin jail/proc; cp {PLACE}/observe_reads jail/bin; >jail/inside",
        ],
        timeout_s=10,
        cwd="/tmp",
        check=True,
    )
    shown = read_as(
        loaded, MOUNTED, "bind", "/tmp/jail/proc", "/proc", "sh", "-c", f"cd /tmp;{script}"
    )
    (process,) = shown
    paths = {file.fd: file.path for file in process.files}
    assert paths[7] == b"/inside"
    assert paths[8] == b"/etc/passwd"


def test_an_open_file_stays_readable(loaded: Guest) -> None:
    """Rights are checked at the open, so an open file can be passed to another user."""
    handed_on = f"exec 7<{PROCFILE}; exec {' '.join(OTHER_USER)} cat <&7"
    result = loaded.run(["sh", "-c", handed_on], timeout_s=10)
    assert (result.status, result.stdout) == (0, b"")
