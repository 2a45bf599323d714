"""Loading and unloading, at any moment, and what the module is told then."""

from __future__ import annotations

import pytest

from kbuild.vm.guest import Guest
from tests.vm.module import FILE, MODULE, kernel_log, load


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


# Parameters.


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
