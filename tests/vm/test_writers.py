"""The writers of numbers and names, tested by KUnit inside the kernel."""

from __future__ import annotations

import re

import pytest

from kbuild.guest.guest import Guest
from tests.vm.module import KUNIT, kernel_log

CASES = ("numbers", "bytes", "separators")


def test_kunit(guest: Guest) -> None:
    """Every case of kbuild/guest/modules/format_test runs and passes."""
    config = guest.read(f"/boot/config-{guest.release}").decode()
    if "CONFIG_KUNIT=y" not in config.splitlines():
        assert not guest.kernel.flavour.startswith("lab"), "fragments/lab.config has it"
        pytest.skip("this kernel has no KUnit; ours of the flavour lab has")
    guest.run(["insmod", KUNIT.format(release=guest.release)], timeout_s=60, check=True)
    guest.run(["rmmod", "format_test"], timeout_s=20, check=True)
    log = kernel_log(guest)
    results = re.findall(r"^\[[^]]*\]\s+(ok|not ok) \d+ (?:- )?(\w+)", log, re.MULTILINE)
    assert results == [("ok", name) for name in (*CASES, "cplayground_format")], log
