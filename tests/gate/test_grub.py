"""The guard's choice, by GRUB itself: which kernel starts after each step, and after each mishap.

tests/gate/alone.py boots the disks.  docs/results/guard.md has the times.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.archive.release import Release
from kbuild.core import fs
from kbuild.core.run import run
from kbuild.gate import server
from tests.gate import alone
from tests.gate.alone import Boot, Installed, Layout
from tests.gate.guarded import (
    GOOD,
    NEW,
    PACKAGE,
    STOCK,
    TRIAL,
    install,
    is_good,
    is_trial,
    restore,
)


@pytest.fixture
def plain(guarded: Installed) -> Installed:
    """The server with the guard, on which only the good kernel was ever started."""
    restore(guarded)
    return guarded


@pytest.fixture
def armed(plain: Installed) -> Installed:
    """The server with a new kernel, which the next boot tries."""
    install(plain)
    assert plain.status()["state"] == "armed"
    return plain


# --- the usual way -------------------------------------------------------------------------


def test_a_healthy_kernel_is_tried_once_and_becomes_the_good_one(armed: Installed) -> None:
    first = armed.start()
    assert is_trial(first), first
    # GRUB has cleared it before the kernel started, so nothing can start it again.
    env = armed.environment()
    assert (env.get("next_entry", ""), env["guard_tried"]) == ("", "1")
    assert armed.guard("probation", booted=first)
    assert armed.status(first)["good"] == NEW
    second = armed.start()
    assert is_good(second, NEW), second


def test_a_kernel_that_does_not_come_back_is_bad_and_not_tried_again(armed: Installed) -> None:
    assert is_trial(armed.start())
    second = armed.start()
    assert is_good(second), second
    armed.guard("probation", booted=second)
    assert armed.status(second)["bad"] == NEW
    assert is_good(armed.start())
    # Another run of the hook for the same package changes nothing.
    armed.guard("hook", "installed", NEW, booted=second)
    armed.menu()
    assert is_good(armed.start())


LAYOUTS = (
    Layout("separate", separate=True),
    Layout("xfs", "xfs"),
    Layout("xfs-separate", "xfs", separate=True),
    Layout("efi", efi=True),
    Layout("efi-separate", efi=True, separate=True),
    Layout("boot-on-esp", "vfat", efi=True, separate=True),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.name)
def test_a_trial_works_wherever_grub_keeps_its_environment(
    plain: Installed, layout: Layout
) -> None:
    one = dataclasses.replace(plain, layout=layout)
    one.prepare()
    install(one)
    assert one.status()["state"] == "armed", one.status()
    first, second = one.start(), one.start()
    assert is_trial(first), first
    assert one.environment().get("next_entry", "") == ""
    assert is_good(second), second


# --- traps of GRUB -------------------------------------------------------------------------


def test_an_entry_in_a_submenu_is_not_found_by_its_id(armed: Installed) -> None:
    """So the guard's entries are at the top: this starts entry 0, and says nothing."""
    menu = (armed.tree / "boot/grub/grub.cfg").read_text()
    (entry,) = set(re.findall(rf"'(gnulinux-{NEW}-advanced-[^']*)'", menu))
    armed.run(["grub-reboot", entry])
    assert is_good(armed.start())
    # The whole path is found, so an administrator can start any entry once.
    (submenu,) = set(re.findall(r"'(gnulinux-advanced-[^']*)'", menu))
    armed.run(["grub-reboot", f"{submenu}>{entry}"])
    seen = armed.start()
    assert (seen.kernel, TRIAL in seen.words) == (NEW, False), seen
    assert is_good(armed.start())


def test_a_disk_that_grub_cannot_write_never_starts_the_trial(armed: Installed) -> None:
    """The next entry stays there, so the kernel would be tried at each boot."""
    armed.write()
    assert is_good(armed.boot(readonly=True))
    assert armed.environment()["next_entry"] == "cplayground-trial"
    # The control: an entry without the guard's check is started again and again.
    armed.run(["grub-reboot", "1>2"])
    armed.write()
    stayed = [armed.boot(readonly=True).kernel for _ in range(2)]
    assert stayed[0] == stayed[1] != GOOD, stayed


def _garbage(path: Path) -> None:
    fs.write_atomic(path, os.urandom(50_000))


def _short(path: Path) -> None:
    fs.write_atomic(path, path.read_bytes()[:600])


def _empty(path: Path) -> None:
    fs.write_atomic(path, b"")


@pytest.mark.parametrize("damage", [_garbage, _short, _empty, Path.unlink])
def test_a_trial_that_does_not_load_falls_back_by_itself(
    armed: Installed, damage: Callable[[Path], None]
) -> None:
    """GRUB's fallback waits for ever unless it is a number; this is one boot, without a hand."""
    damage(armed.tree / "boot/cplayground-trial/vmlinuz")
    first = armed.start()
    assert is_good(first), first
    assert armed.environment().get("next_entry", "") == ""
    armed.guard("probation", booted=first)
    status = armed.status(first)
    assert (status["state"], status["bad"]) == ("bad", NEW), status
    assert status["reason"].startswith("unloadable"), status
    assert is_good(armed.start())


@pytest.mark.parametrize("damage", [_empty, Path.unlink])
def test_a_trial_without_its_ramdisk_is_tried_once_at_most(
    armed: Installed, damage: Callable[[Path], None]
) -> None:
    damage(armed.tree / "boot/cplayground-trial/initrd.img")
    seen = [armed.start(), armed.start()]
    assert is_good(seen[1]), seen
    # Such a kernel finds no root file system, and panics.
    if TRIAL in seen[0].words:
        assert not seen[0].initrd, seen
    else:
        assert is_good(seen[0]), seen


def test_a_kernel_whose_ramdisk_was_not_made_is_not_put_on_trial(plain: Installed) -> None:
    plain.plant(NEW)
    (plain.tree / f"boot/initrd.img-{NEW}").unlink()
    said = plain.guard("hook", "installed", NEW)
    assert "update-initramfs may have failed" in said
    plain.menu()
    assert is_good(plain.start())


@pytest.mark.parametrize("damage", [_garbage, Path.unlink])
def test_a_good_kernel_that_does_not_load_leaves_debians_first_entry(
    plain: Installed, damage: Callable[[Path], None]
) -> None:
    damage(plain.tree / "boot/cplayground-good/vmlinuz")
    seen = plain.start()
    assert (seen.kernel, seen.initrd) == (GOOD, f"initrd of {GOOD}"), seen


def test_neither_pair_loads(armed: Installed) -> None:
    _garbage(armed.tree / "boot/cplayground-good/vmlinuz")
    _garbage(armed.tree / "boot/cplayground-trial/vmlinuz")
    seen = armed.start()
    assert seen.kernel in (GOOD, NEW), seen
    assert TRIAL not in seen.words


# --- the good kernel's package -------------------------------------------------------------


def test_a_good_kernel_that_is_replaced_in_place_is_not_lost(plain: Installed) -> None:
    """The package of the good kernel comes in another build, under the same release."""
    alone.plant(plain.tree / "boot", GOOD, plain.code, name="another build")
    plain.menu()
    # The power is cut before the guard's hook runs.
    seen = plain.start()
    assert is_good(seen), seen
    plain.guard("hook", "installed", GOOD, booted=seen)
    plain.menu()
    first, second = plain.start(), plain.start()
    assert is_trial(first, "another build"), first
    # A kernel that was good before, and whose modules are still in /lib/modules.
    assert is_good(second, STOCK), second


def test_a_good_kernel_that_is_gone_is_replaced(plain: Installed) -> None:
    for name in ("vmlinuz", "initrd.img", "config"):
        (plain.tree / f"boot/{name}-{GOOD}").unlink()
    # Until the hook runs, the slot has it.
    plain.menu()
    assert is_good(plain.start())
    plain.guard("hook", "removed", GOOD)
    plain.menu()
    assert is_good(plain.start(), STOCK)


# --- power cuts ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cut:
    """The files of a machine whose power was cut before a command of the guard."""

    command: str
    home: Path


def cuts(one: Installed) -> list[Cut]:
    """Return the different states that commands of the guard have left, the oldest first."""
    found: dict[str, Cut] = {}
    for home in sorted((one.tree / "var/cut").iterdir()):
        cut = Cut((home / "command").read_text().strip(), home)
        (home / "command").unlink()
        # Nothing that the guard reads after a boot.
        for name in ("*.new", "checks", "lock", "last-boot", "record"):
            for path in (home / "cplayground-guard").glob(name):
                fs.remove_tree(path) if path.is_dir() else path.unlink()
        found.setdefault(fs.sha256_tree(home), cut)
    return [*found.values()]


def return_to(one: Installed, cut: Cut) -> None:
    """Bring the machine into the state of a power cut."""
    for place, kept in {"boot": "boot", "var/lib/cplayground-guard": "cplayground-guard"}.items():
        fs.remove_tree(one.tree / place)
        run(["cp", "-a", cut.home / kept, one.tree / place], timeout_s=60)


class Reboots:
    """Boots of one machine; GRUB does the same with the same files, so it is asked once."""

    def __init__(self, one: Installed) -> None:
        self.one = one
        self._known: dict[str, tuple[Boot, bytes]] = {}

    def start(self) -> Boot:
        """Boot the machine's disk as :meth:`Installed.start` does."""
        block = self.one.tree / "boot/grub/grubenv"
        files = fs.sha256_tree(self.one.tree / "boot")
        if files not in self._known:
            seen = self.one.start()
            self._known[files] = seen, block.read_bytes()
        seen, after = self._known[files]
        block.write_bytes(after)
        return dataclasses.replace(seen, number=next(alone.BOOTS))


def _arm(one: Installed) -> None:
    one.plant(NEW)
    one.guard("hook", "installed", NEW, cut="cut")


def _make_good(one: Installed) -> None:
    install(one)
    one.guard("probation", booted=one.start(), cut="cut")


def _go_back(one: Installed) -> None:
    install(one)
    one.start()
    one.guard("probation", booted=one.start(), cut="cut")


def _roll_back(one: Installed) -> None:
    one.guard("rollback", cut="cut")


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "ends"),
    [(_arm, {GOOD}), (_make_good, {GOOD, NEW}), (_go_back, {GOOD}), (_roll_back, {GOOD, STOCK})],
)
def test_a_power_cut_at_any_step_leaves_a_kernel_to_start(
    plain: Installed, step: Callable[[Installed], None], ends: set[str]
) -> None:
    """A kernel starts from each state, and one that fails is tried once at most."""
    fs.remove_tree(plain.tree / "var/cut")
    step(plain)
    reboots, finals = Reboots(plain), set()
    for cut in cuts(plain):
        return_to(plain, cut)
        tried = 0
        for _ in range(2):
            booted = reboots.start()
            assert booted.kernel, (cut, booted.console)
            # A change of the good kernel that the cut interrupted starts the other pair, too.
            if TRIAL in booted.words and step in (_arm, _go_back):
                # It crashes.
                assert is_trial(booted), (cut, booted)
                tried += 1
            else:
                assert booted.kernel in ends | {NEW}, (cut, booted)
                assert booted.initrd == f"initrd of {booted.kernel}", (cut, booted)
                plain.guard("probation", booted=booted)
        assert tried <= 1, cut
        last = reboots.start()
        assert is_good(last, last.kernel), (cut, last)
        assert last.kernel in ends, (cut, last)
        finals.add(last.kernel)
    assert finals == ends
    fs.remove_tree(plain.tree / "var/cut")


# --- GRUB's environment --------------------------------------------------------------------

# The environment, and the state after the boot that finds it.
_BLOCKS = {
    "missing": (None, "armed"),
    "empty": (b"", "armed"),
    "cut": (b"# GRUB Environment Block\nnext_entry=cplayground-tr", "armed"),
    "garbage": (bytes(range(256)) * 4, "armed"),
    "unknown entry": (
        b"# GRUB Environment Block\nnext_entry=nothing\n".ljust(1024, b"#"),
        "armed",
    ),
    # It says that GRUB has tried the kernel.
    "unset words": (
        b"# GRUB Environment Block\nguard_settle=1\nguard_tried=1\n".ljust(1024, b"#"),
        "bad",
    ),
}


@pytest.mark.parametrize(("block", "state"), _BLOCKS.values(), ids=_BLOCKS.keys())
def test_with_a_damaged_environment_the_good_kernel_starts(
    armed: Installed, block: bytes | None, state: str
) -> None:
    place = armed.tree / "boot/grub/grubenv"
    if block is None:
        place.unlink()
        armed.write()
        seen = armed.boot()
    else:
        fs.write_atomic(place, block)
        seen = armed.start()
    assert is_good(seen), seen
    # The next boot of Linux repairs it, and arms the kernel again if GRUB has not tried it.
    armed.guard("probation", booted=seen)
    status = armed.status(seen)
    assert (status["state"], status["good"]) == (state, GOOD), status
    assert place.stat().st_size == 1024
    seen = armed.start()
    assert is_trial(seen) if state == "armed" else is_good(seen), seen


# --- what administrators change ------------------------------------------------------------

# Settings with which the guard works.
_SETTINGS = {
    "saved": "GRUB_DEFAULT=saved",
    "savedefault": "GRUB_DEFAULT=saved\nGRUB_SAVEDEFAULT=true",
    "flat menu": "GRUB_DISABLE_SUBMENU=y",
    "hidden": "GRUB_TIMEOUT=1\nGRUB_TIMEOUT_STYLE=hidden",
    "console": "GRUB_TERMINAL=console",
    "no UUID": "GRUB_DISABLE_LINUX_UUID=true\nGRUB_DISABLE_RECOVERY=true",
    "quotes": 'GRUB_DISTRIBUTOR="It\'s ours"\nGRUB_CMDLINE_LINUX=\'quiet dyndbg="file a.c +p"\'',
    "early microcode": "GRUB_EARLY_INITRD_LINUX_CUSTOM=early.img",
}
# Settings that pin an entry, which the guard must leave alone.
_PINNED = {
    "title": 'GRUB_DEFAULT="Debian GNU/Linux"',
    "number": "GRUB_DEFAULT=1\nGRUB_DISABLE_SUBMENU=y",
    "path": 'GRUB_DEFAULT="1>2"',
}


def _set(one: Installed, defaults: str) -> None:
    path = one.tree / "etc/default/grub"
    path.write_text(f"{path.read_text()}{defaults}\n")


@pytest.mark.parametrize("defaults", _SETTINGS.values(), ids=_SETTINGS.keys())
def test_a_trial_works_with_an_administrators_settings(plain: Installed, defaults: str) -> None:
    _set(plain, defaults)
    (plain.tree / "boot/early.img").write_bytes(b"")
    install(plain)
    first, second = plain.start(), plain.start()
    assert is_trial(first), first
    assert is_good(second), second
    if "saved" in defaults:
        # GRUB has saved an entry of ours, which must not pin the old kernel.
        plain.guard("probation", booted=second)
        plain.guard("retry", NEW, booted=second)
        third = plain.start()
        assert is_trial(third), third
        plain.guard("probation", booted=third)
        assert is_good(plain.start(), NEW)


@pytest.mark.parametrize("defaults", _PINNED.values(), ids=_PINNED.keys())
def test_a_pinned_entry_stays_what_it_is(plain: Installed, defaults: str) -> None:
    _set(plain, defaults)
    plain.run(["dpkg-divert", "--local", "--rename", "/etc/grub.d/09_cplayground_guard"])
    plain.run(["dpkg-divert", "--local", "--rename", "/etc/grub.d/90_cplayground_guard"])
    plain.menu()
    without = plain.start()
    for name in ("09_cplayground_guard", "90_cplayground_guard"):
        plain.run(["dpkg-divert", "--local", "--rename", "--remove", f"/etc/grub.d/{name}"])
    plain.menu()
    assert plain.start().cmdline == without.cmdline
    plain.plant(NEW)
    said = plain.guard("hook", "installed", NEW)
    assert "pin" in said, said
    assert plain.guard("arm", NEW, status=3)
    assert plain.status()["state"] == "unsupported"
    plain.guard("probation", booted=without)
    assert plain.start().cmdline == without.cmdline


def test_a_menu_that_waits_for_a_key_waits(armed: Installed) -> None:
    _set(armed, "GRUB_TIMEOUT=-1")
    armed.menu()
    armed.write()
    waiting = armed.boot(timeout_s=8)
    assert not waiting.kernel
    assert "on trial" in waiting.console
    # The key starts the entry that would have been started.
    armed.write()
    assert is_trial(armed.boot(keys=b"\r" * 3))
    assert is_good(armed.boot(keys=b"\r" * 3))


@pytest.mark.parametrize("script", ["07_first", "40_custom", "custom.cfg"])
def test_entries_of_an_administrator_do_not_disturb(plain: Installed, script: str) -> None:
    entry = f"menuentry 'mine' {{\n\tlinux /boot/vmlinuz-{STOCK} mine\n}}\n"
    if script == "custom.cfg":
        (plain.tree / "boot/grub/custom.cfg").write_text(entry)
    else:
        path = plain.tree / "etc/grub.d" / script
        path.write_text(f"#!/bin/sh\nexec tail -n +3 $0\n{entry}")
        path.chmod(0o755)
    plain.menu()
    before = plain.start()
    said = install(plain)
    first, second = plain.start(), plain.start()
    if script == "07_first":
        # Entry 0 is the administrator's, so there is no way back to ours.
        assert "not put on trial" in said, said
        assert "mine" in before.words
        assert before.cmdline == first.cmdline == second.cmdline
    else:
        assert is_good(before)
        assert is_trial(first), first
        assert is_good(second), second


@pytest.mark.parametrize("command", ["remove", "purge"])
def test_without_the_guard_the_machine_boots_as_before(
    armed: Installed, newer: Release, tmp_path: Path, command: str
) -> None:
    with server.copy(armed.server.root, tmp_path / "tree", log=tmp_path / "log") as made:
        one = dataclasses.replace(armed, server=made, home=tmp_path)
        assert is_trial(one.start())
        # The tests' own files; a purge leaves those of an administrator.
        for path in (one.tree / "etc/cplayground/check.d").iterdir():
            path.unlink()
        one.run(["apt-get", command, PACKAGE])
        without = one.start()
        assert (without.kernel, without.initrd) == (NEW, f"initrd of {NEW}")
        assert TRIAL not in without.words
        assert "guard" not in str(one.environment())
        left = [path.name for path in (one.tree / "boot").glob("cplayground*")]
        assert not left
        menu = (one.tree / "boot/grub/grub.cfg").read_text()
        assert "cplayground-good" not in menu
        if command == "purge":
            assert not list(one.tree.glob("etc/**/*cplayground*"))
            assert not list(one.tree.glob("var/lib/cplayground*"))
        # But for comments, it is the menu of a machine that never had the guard.
        one.run(["find", "/etc/grub.d", "-name", "*cplayground*", "-delete"])
        one.menu()
        again = (one.tree / "boot/grub/grub.cfg").read_text()
        assert _without_comments(again) == _without_comments(menu)


def _without_comments(menu: str) -> list[str]:
    return [line for line in menu.splitlines() if line.strip() and not line.startswith("#")]
