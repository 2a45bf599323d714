"""The verdict, which each missing piece of evidence changes; the console and its marks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kbuild.guest import detectors
from kbuild.guest.console import LIMIT, Console, banner, mark_line, oom_kill
from kbuild.guest.outcome import Outcome, taint_letters
from kbuild.guest.triage import Report
from kbuild.guest.verdict import Evidence, judge
from tests.guests import between_marks

GOOD = Evidence(
    hello=True,
    banner=True,
    answered=True,
    farewell=0,
    power_off_event=True,
    qemu_status=0,
    taint=0,
    status=0,
)


def report(outcome: Outcome) -> Report:
    return Report(outcome, "name", "title", 1, "excerpt", True)


def test_all_evidence_together_passes() -> None:
    verdict = judge(GOOD)
    assert verdict.passed
    assert verdict.reasons == ()
    assert judge(dataclasses.replace(GOOD, taint=3 << 12, allowed_taint=3 << 12)).passed
    assert judge(
        dataclasses.replace(
            GOOD,
            alive={"lockdep": True, "kmemleak": True},
            checkers=frozenset({"lockdep", "kmemleak"}),
        )
    ).passed


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"hello": False}, Outcome.NO_OUTPUT),
        ({"banner": False}, Outcome.NO_OUTPUT),
        ({"answered": False}, Outcome.NO_POWER_OFF),
        ({"farewell": None}, Outcome.NO_POWER_OFF),
        ({"farewell": 16}, Outcome.NO_POWER_OFF),
        ({"power_off_event": False}, Outcome.NO_POWER_OFF),
        ({"qemu_status": None}, Outcome.NO_POWER_OFF),
        ({"qemu_status": 1}, Outcome.NO_POWER_OFF),
        ({"qemu_status": -9}, Outcome.KILLED),
        ({"qemu_status": -9, "ended_by_us": True}, Outcome.HUNG),
        ({"ended_by_us": True}, Outcome.HUNG),
        ({"taint": None}, Outcome.TAINTED),
        ({"taint": 1 << 9}, Outcome.TAINTED),
        ({"taint": 1 << 9 | 1 << 12, "allowed_taint": 1 << 12}, Outcome.TAINTED),
        ({"taint": 1 << 40}, Outcome.TAINTED),
        ({"status": 7}, Outcome.FAILED),
        ({"status": -11}, Outcome.FAILED),
        ({"status": None}, Outcome.FAILED),
        ({"alive": {"lockdep": False}}, Outcome.BLIND),
        ({"alive": {"kmemleak": False}}, Outcome.BLIND),
        ({"alive": {"lockdep": True, "kcsan": False}}, Outcome.BLIND),
        ({"checkers": frozenset({"lockdep"})}, Outcome.BLIND),
        (
            {"checkers": frozenset({"lockdep", "kmemleak"}), "alive": {"lockdep": True}},
            Outcome.BLIND,
        ),
        ({"leaks": (report(Outcome.LEAKED),)}, Outcome.LEAKED),
        ({"reports": (report(Outcome.WARNED),)}, Outcome.WARNED),
        ({"reports": (report(Outcome.LEAKED),)}, Outcome.LEAKED),
    ],
)
def test_each_missing_piece_flips_the_verdict(change: dict[str, object], outcome: Outcome) -> None:
    verdict = judge(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert verdict.outcome is outcome
    assert verdict.reasons


def test_lockdep_is_alive_only_if_it_says_so() -> None:
    stats = " in-process chains:   1 [max: 2]\n debug_locks:               1\n\n zap: 0\n"
    assert detectors.alive("lockdep", stats)
    assert not detectors.alive("lockdep", stats.replace(" 1\n\n", " 0\n\n"))
    assert not detectors.alive("lockdep", "debug_locks:\n1\n")
    assert not detectors.alive("lockdep", "")


def test_kcsan_is_alive_only_if_it_is_on_and_has_watched() -> None:
    stats = "enabled: 1\nused_watchpoints: 0\nsetup_watchpoints: 61494\ndata_races: 0\n"
    assert detectors.alive("kcsan", stats)
    assert not detectors.alive("kcsan", stats.replace("enabled: 1", "enabled: 0"))
    assert not detectors.alive("kcsan", stats.replace("61494", "0"))
    assert not detectors.alive("kcsan", "enabled: 1\n")


def test_nothing_seen_at_all_is_no_output() -> None:
    assert judge(Evidence()).outcome is Outcome.NO_OUTPUT


def test_the_kernels_first_report_decides_over_its_consequences() -> None:
    seen = Evidence(
        hello=True,
        banner=True,
        reports=(report(Outcome.REPORTED), report(Outcome.CRASHED)),
        qemu_status=-9,
    )
    verdict = judge(seen)
    assert verdict.outcome is Outcome.REPORTED
    assert len(verdict.reasons) > 2


def test_every_outcome_has_an_exit_status_of_its_own() -> None:
    statuses = [outcome.exit_status for outcome in Outcome]
    assert len(set(statuses)) == len(statuses)
    assert [o for o in Outcome if o.exit_status == 0] == [Outcome.PASSED]


def test_taint_is_named_as_the_kernel_names_it() -> None:
    assert taint_letters(0) == ""
    assert taint_letters(1 << 0 | 1 << 9 | 1 << 12 | 1 << 13) == "PWOE"
    assert taint_letters(1 << 30) == "+0x40000000"


def test_the_console_is_cut_at_the_marks(tmp_path: Path) -> None:
    lines = [
        "[0.0] Linux version 6.1.0-1-x (gcc) #1",
        f"[1.0] {mark_line('begin', 'a')}",
        "[1.1] in a",
        f"[1.2] {mark_line('end', 'a')}",
        "[1.3] between",
        f"[2.0] {mark_line('begin', 'b')}",
        "[2.1] in b, which dies",
    ]
    path = tmp_path / "console.log"
    path.write_bytes("\r\n".join(lines).encode() + b"\xff")
    console = Console(path)
    text = console.text()
    assert banner(text) == "6.1.0-1-x"
    assert between_marks(text, "a") == "[1.1] in a"
    assert between_marks(text, "b") == "[2.1] in b, which dies�"
    assert between_marks(text, "c") == ""
    offset = console.size()
    with path.open("ab") as stream:
        stream.write(b"\r\nmore\r\n")
    assert console.text(offset) == "\nmore\n"
    assert console.tail(1) == "more"


def test_only_a_part_of_a_large_console_is_read(tmp_path: Path) -> None:
    console = Console(tmp_path / "console.log")
    with console.path.open("wb") as stream:
        stream.truncate(LIMIT)
        assert not console.over_limit
        stream.truncate(LIMIT * 4)
    assert console.over_limit
    assert len(console.text()) == len(console.text(LIMIT)) == LIMIT
    with console.path.open("ab") as stream:
        stream.write(b"\none\ntwo\n")
    assert console.tail(2) == "one\ntwo"


def test_the_last_process_that_was_killed_for_its_memory_is_named() -> None:
    text = (
        "[1.0] Out of memory: Killed process 5 (first) total-vm:1kB\n"
        "[2.0] Memory cgroup out of memory: Killed process 6 (a (b) total-vm:2kB, anon-rss:1kB\n"
    )
    assert oom_kill(text) == "Memory cgroup out of memory: Killed process 6 (a (b)"
    assert oom_kill("[1.0] nothing of the kind\n") == ""


def test_a_console_that_is_not_there_is_empty(tmp_path: Path) -> None:
    console = Console(tmp_path / "none")
    assert (console.size(), console.text(), console.tail()) == (0, "", "")
    assert banner("") is None


LEAK = """\
unreferenced object 0xff11000000170780 (size 8):
  comm "{comm}", pid {pid}, jiffies 4294892367
  hex dump (first 8 bytes):
    ed 01 00 00 00 00 00 00                          ........
  backtrace (crc bea23b04):
    kmemleak_alloc+0x24/0x30
    {function}+0x41/0x100
"""


def test_only_what_is_lost_before_there_is_a_program_is_the_kernels_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = LEAK.format(comm="swapper/0", pid=0, function="ramfs_init_fs_context")
    own += LEAK.format(comm="swapper/0", pid=1, function="do_one_initcall")
    assert detectors.leaks(own) == ()
    assert "ramfs_init_fs_context" in caplog.text
    assert "do_one_initcall" in caplog.text
    for comm, pid in (("sh", 1), ("insmod", 70), ("softirq", 0), ("swapper/0", 12)):
        ours = LEAK.format(comm=comm, pid=pid, function="cplayground_open")
        found = detectors.leaks(own + ours + own)
        assert [report.excerpt.strip() for report in found] == [ours.strip()]


def test_a_list_of_leaks_that_is_not_understood_is_a_leak() -> None:
    assert detectors.leaks("") == detectors.leaks("\n") == ()
    (found,) = detectors.leaks("lost: 8 bytes\n")
    assert (found.outcome, found.title) == (Outcome.LEAKED, "lost: 8 bytes")
