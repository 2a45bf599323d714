"""The verdict: each missing piece of evidence flips it; triage on recorded consoles."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kbuild.vm import triage
from kbuild.vm.console import Console, banner, between_marks, mark_line
from kbuild.vm.outcome import Evidence, Outcome, judge, taint_letters
from kbuild.vm.triage import Report

CORPUS = sorted((Path(__file__).parent / "data" / "console").glob("*.log"))

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
    return Report(outcome, "name", "title", 1, "excerpt")


def test_all_evidence_together_passes() -> None:
    verdict = judge(GOOD)
    assert verdict.passed
    assert verdict.reasons == ()
    assert judge(dataclasses.replace(GOOD, taint=3 << 12, allowed_taint=3 << 12)).passed


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
        ({"reports": (report(Outcome.WARNED),)}, Outcome.WARNED),
        ({"reports": (report(Outcome.LEAKED),)}, Outcome.LEAKED),
    ],
)
def test_each_missing_piece_flips_the_verdict(change: dict[str, object], outcome: Outcome) -> None:
    verdict = judge(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert verdict.outcome is outcome
    assert verdict.reasons


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


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_recorded_consoles(path: Path) -> None:
    """The first line of each log says what triage has to find in the rest, in order."""
    header, _, text = path.read_text().partition("\n")
    expected = header.removeprefix("# expected: ")
    found = " | ".join(f"{r.outcome.label} {r.name}" for r in triage.scan(text))
    assert (found or "none") == expected


def test_the_corpus_is_there() -> None:
    assert {"clean", "sysrq-c", "warn", "oops", "lockup", "truncated"} <= {p.stem for p in CORPUS}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("BUG: KASAN: use-after-free in seq_read_iter+0x1/0x2", "KASAN"),
        ("BUG: sleeping function called from invalid context at mm/slab.h:1", "sleeping in atomic"),
        (
            "Voluntary context switch within RCU read-side critical section!",
            "context switch under RCU",
        ),
        ("WARNING: possible circular locking dependency detected", "lockdep"),
        ("WARNING: inconsistent lock state", "lockdep"),
        ("WARNING: suspicious RCU usage", "RCU usage"),
        ("refcount_t: underflow; use-after-free.", "refcount"),
        ("INFO: task cat:12 blocked for more than 120 seconds.", "hung task"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "RCU stall"),
        ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [cat:99]", "soft lockup"),
        ("kmemleak: 3 new suspected memory leaks (see ...)", "kmemleak"),
        ("BUG: something that nobody has seen yet", "unknown BUG"),
        ("WARNING: nor this", "unknown warning"),
    ],
)
def test_lines_are_named(line: str, name: str) -> None:
    found = triage.classify(line)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "line",
    [
        "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible!",
        "[Firmware Bug]: TSC_DEADLINE disabled due to Errata",
        f"{mark_line('begin', 'test_x[WARNING: BUG: KASAN: ]')}",
        "audit: type=2000 audit(1.2:1): state=initialized",
    ],
)
def test_what_only_looks_like_a_report_is_ignored(line: str) -> None:
    assert triage.classify(line) is None


def test_one_report_is_not_counted_twice_but_two_are() -> None:
    one = "BUG: KASAN: x\n" + "frame\n" * 5 + "BUG: KASAN: x\n---[ end trace 1 ]---\n"
    assert len(triage.scan(one)) == 1
    assert len(triage.scan(one + "quiet\n" * 3 + one)) == 2


def test_the_timestamp_does_not_hide_a_report() -> None:
    found = triage.scan("[   12.345678][  T123] Oops: 0002 [#1] SMP\n<4>[  1.0] Oops: 0 [#2]\n")
    assert [r.title for r in found][:1] == ["Oops: 0002 [#1] SMP"]


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


def test_a_console_that_is_not_there_is_empty(tmp_path: Path) -> None:
    console = Console(tmp_path / "none")
    assert (console.size(), console.text(), console.tail()) == (0, "", "")
    assert banner("") is None
