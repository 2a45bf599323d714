"""Who may read the file, and through which procfs."""

from __future__ import annotations

from kbuild.vm import procfile
from kbuild.vm.guest import Guest
from tests.vm.module import FILE, load, unload


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
