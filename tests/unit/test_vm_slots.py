"""Slots for the guests of tests, with a fake QEMU: when a guest is new, and what is reported."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kbuild.guest.guest import Guest
from tests.unit.test_vm_guest import spec_at
from tests.vm.slots import Slot


@pytest.fixture
def slot(behave: Path, tmp_path: Path) -> Slot:
    """A slot for guests of the fake QEMU."""
    spec = spec_at(tmp_path, slowness=20.0)
    return Slot(lambda workdir: Guest.boot(spec, workdir=workdir), tmp_path / "w")


def write_state(behave: Path, *lines: str) -> None:
    behave.with_name("state").write_text("".join(f"{line}\n" for line in lines))


def test_tests_that_change_nothing_share_a_guest(slot: Slot) -> None:
    first = slot.get("one")
    assert slot.changes() == ""
    assert slot.get("two") is first
    slot.close()
    assert slot.failures == []


def test_what_a_test_leaves_behind_is_named(behave: Path, slot: Slot) -> None:
    write_state(behave, "mounts: /dev/root / ext4", "sys/kernel/tainted: 0")
    slot.get("one")
    # The taint of our modules is no change.
    write_state(behave, "mounts: /dev/root / ext4", "sys/kernel/tainted: 12288")
    assert slot.changes() == ""
    write_state(behave, "mounts: /dev/root / ext4", "module: peek", "sys/kernel/tainted: 512")
    changed = slot.changes().splitlines()
    assert {line for line in changed if line[1:2].isalpha()} == {
        "+module: peek",
        "-taint: ",
        "+taint: W",
    }
    slot.close()


def test_a_closed_or_dead_guest_is_replaced(slot: Slot) -> None:
    first = slot.get("one")
    slot.close()
    second = slot.get("two")
    assert second is not first
    os.kill(second.machine.pid, signal.SIGKILL)
    second.machine.wait(10)
    assert slot.get("three").alive
    slot.close()
    # The report of the killed guest names its test, and no test of another guest.
    (failure,) = slot.failures
    assert failure.startswith("killed")
    assert failure.endswith("tests: two")


def test_a_guest_that_does_not_pass_is_reported_with_its_tests(behave: Path, slot: Slot) -> None:
    behave.write_text("tainted")
    slot.get("one")
    slot.get("two")
    slot.close()
    (failure,) = slot.failures
    assert failure.startswith("tainted")
    assert failure.endswith("tests: one two")
