"""Stress: plans, parsing of the guest's output, and each check with a fault that it finds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kbuild.core.errors import UserError
from kbuild.guest import triage
from kbuild.guest.guest import Guest, GuestCommandError, GuestResult
from kbuild.guest.outcome import Outcome
from kbuild.guest.verdict import Verdict
from kbuild.lab import checks, stress, stress_summary, workloads
from kbuild.lab.checks import Check, Figures, System
from kbuild.lab.counts import Counts
from kbuild.lab.stress_summary import StressFailedError, Summary

PROJECT = Path(__file__).resolve().parents[2]
EVERYTHING = tuple(workloads.WORKLOADS.values())
SYSTEM = System(
    slab_kib=20_000, unaccounted_kib=30_000, open_files=100, tasks=50, taint=0, answer_s=0.1
)


# The plan.


def test_ours_are_the_workloads_that_the_program_has() -> None:
    source = (PROJECT / "kbuild" / "lab" / "programs" / "load.c").read_text()
    table = source.split("} workloads[] = {", 1)[1].split("};", 1)[0]
    ours = {one.name for one in EVERYTHING if not one.stressor}
    assert set(re.findall(r'\{ "([\w-]+)",', table)) == ours


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("seconds", [270, 600, 1800])
def test_each_workload_has_its_turn_before_any_has_a_third(seconds: int, seed: int) -> None:
    rounds = workloads.plan(EVERYTHING, seconds, seed)
    first = [one for each in rounds for one in each.workloads][: 2 * len(EVERYTHING)]
    turns = Counter(first)
    assert set(turns) == set(EVERYTHING)
    assert set(turns.values()) <= {1, 2}
    assert sum(each.seconds for each in rounds) == seconds
    for each in rounds:
        assert len(set(each.workloads)) == len(each.workloads) <= 4


def test_a_plan_is_its_seed_s() -> None:
    assert workloads.plan(EVERYTHING, 600, 7) == workloads.plan(EVERYTHING, 600, 7)
    assert workloads.plan(EVERYTHING, 600, 7) != workloads.plan(EVERYTHING, 600, 8)


@pytest.mark.parametrize("seconds", [10, 60, 61, 599])
def test_the_module_stays_in_some_rounds_and_comes_and_goes_in_others(seconds: int) -> None:
    rounds = workloads.plan(workloads.choose(["churn"]), seconds, 1)
    assert {each.reloaded for each in rounds} == {False, True}
    assert sum(each.seconds for each in rounds) == seconds


def test_a_slow_kernel_has_fewer_rounds_in_the_same_time() -> None:
    fast, slow = (workloads.plan(EVERYTHING, 1800, 1, slowness) for slowness in (1.0, 6.0))
    assert (len(fast), len(slow)) == (60, 10)
    assert sum(each.seconds for each in slow) == 1800
    assert {one for each in slow for one in each.workloads} == set(EVERYTHING)
    assert len(workloads.plan(EVERYTHING, 60, 1, 6.0)) == 2


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="no such workload: nothing"):
        workloads.choose(["churn", "nothing"])
    with pytest.raises(UserError, match="too short"):
        workloads.plan(EVERYTHING, 9, 1)


# Parsing of the guest's output.


def test_figures_are_read_and_added_up() -> None:
    one = checks.parse_figures(b"10 20 30 4 5 6 700 90\n")
    assert one == Figures(10, 20, 30, 4, 5, 6, 700, 90)
    assert one.plus(Figures(1, 1, 1, 1, 1, 1, 800, 1)) == Figures(11, 21, 31, 5, 6, 7, 800, 91)
    for bad in (b"10 20\n1\n 2 3 4 5 6 7 8 9 10\n", b"ten\n"):
        with pytest.raises((ValueError, TypeError)):
            checks.parse_figures(bad)


MEMINFO = """\
MemTotal:         982320 kB
MemFree:          851340 kB
Buffers:            1000 kB
Cached:            60000 kB
Active(anon):        700 kB
AnonPages:          5000 kB
Slab:              20320 kB
KernelStack:        1200 kB
PageTables:          460 kB
"""


def test_the_system_is_read() -> None:
    text = MEMINFO + "416\t0\t98232\n0.00 0.01 0.05 2/61 1234\n4097\n"
    found = checks.parse_system(text, 0.5)
    assert found == System(
        slab_kib=20320,
        unaccounted_kib=982320 - 851340 - 1000 - 60000 - 5000 - 20320 - 1200 - 460,
        open_files=416,
        tasks=61,
        taint=4097,
        answer_s=0.5,
    )
    with pytest.raises(KeyError):
        checks.parse_system(text.replace("Slab", "Slob"), 0.5)
    with pytest.raises(ValueError, match="not enough values"):
        checks.parse_system(MEMINFO, 0.5)


def test_processes_are_counted_without_kernel_threads() -> None:
    text = (
        "1 (agent) S 0 1 1 0\n2 (kthreadd) S 0 0 0 0\n17 (kworker/0:1) I 2 0 0 0\n"
        "30 (a) R (b) S 1 30 30 0\n31 (load) Z 30 30 30 0\n32 (load) S 1 30 30 0\n"
    )
    assert checks.parse_processes(text) == Counter({"agent": 1, "a) R (b": 1, "load": 2})


# Each check, passing and failing.


def outcome(check: Check) -> Outcome | None:
    return check.outcome


def test_readers_that_read_nothing_are_no_success() -> None:
    good = Figures(listings=10, records=5)
    assert checks.check_readers(good, 1, 3, True).passed
    assert checks.check_readers(good, 1, 0, False).passed
    for figures, samples, unloadings in (
        (replace(good, listings=0), 1, 3),
        (replace(good, records=0), 1, 3),
        (good, 0, 3),
        (good, 1, 0),
    ):
        assert outcome(checks.check_readers(figures, samples, unloadings, True)) is Outcome.FAILED


EXACT = Counts({"struct file": 100, "struct pid": 3, "open files": 90})


def test_objects_that_were_not_given_back() -> None:
    assert checks.check_counts(EXACT, EXACT, True).passed
    more = Counts({**EXACT.values, "struct pid": 43})
    check = checks.check_counts(EXACT, more, True)
    assert check.outcome is Outcome.LEAKED
    assert "40 of struct pid" in check.found


def test_a_kernel_that_does_not_count_is_no_success() -> None:
    rough = Counts({"open files": 90})
    assert outcome(checks.check_counts(rough, rough, False)) is None
    assert outcome(checks.check_counts(rough, rough, True)) is Outcome.FAILED
    leaked = Counts({"open files": 900})
    assert outcome(checks.check_counts(rough, leaked, False)) is Outcome.LEAKED


def test_pages_that_nothing_accounts_for() -> None:
    assert checks.check_pages(SYSTEM, replace(SYSTEM, unaccounted_kib=31_000)).passed
    # the buffers of 400 readers
    leaked = replace(SYSTEM, unaccounted_kib=30_000 + 400 * 68)
    assert outcome(checks.check_pages(SYSTEM, leaked)) is Outcome.LEAKED


def test_processes_that_are_left() -> None:
    before = Counter({"agent": 1, "sh": 1})
    assert checks.check_processes(before, before).passed
    check = checks.check_processes(before, before + Counter({"load": 2}))
    assert check.outcome is Outcome.LEAKED
    assert "2 load" in check.found


def test_a_module_that_is_held() -> None:
    assert checks.check_refcount("0\n").passed
    assert outcome(checks.check_refcount("1\n")) is Outcome.LEAKED


def test_leaks_that_the_kernel_found() -> None:
    assert checks.check_kmemleak("", True).passed
    report = 'unreferenced object 0xffff8880 (size 64):\n  comm "cat", pid 7\n'
    check = checks.check_kmemleak(report * 3, True)
    assert check.outcome is Outcome.LEAKED
    assert "3 objects" in check.found
    assert outcome(checks.check_kmemleak(None, True)) is Outcome.FAILED
    assert outcome(checks.check_kmemleak(None, False)) is None


def test_a_lockdep_that_is_off() -> None:
    alive = " lock-classes:                 1201 [max: 8192]\n debug_locks:                     1\n"
    assert checks.check_alive("lockdep", alive, True).passed
    dead = alive.replace("debug_locks:                     1", "debug_locks:                     0")
    assert outcome(checks.check_alive("lockdep", dead, False)) is Outcome.FAILED
    assert outcome(checks.check_alive("lockdep", None, True)) is Outcome.FAILED
    assert outcome(checks.check_alive("lockdep", None, False)) is None


def test_a_system_that_does_not_answer_in_time() -> None:
    assert checks.check_answer(1.0, 30.0).passed
    assert outcome(checks.check_answer(31.0, 30.0)) is Outcome.HUNG


# The summary.


@pytest.fixture
def summary() -> Summary:
    return Summary(
        release="6.1.0-56-cplayground-lab",
        backend="stock",
        seed=7,
        seconds=61.0,
        figures=Figures(100, 2000, 3_000_000, 4, 5, 6, 7_000_000),
        operations={"churn": 12, "oom": 0},
        oom_kills=3,
        unloadings=30,
        samples=4,
        worst_answer_s=0.4,
        checks=(
            Check("kmemleak", None, "no kmemleak in this kernel"),
            Check("answer", Outcome.PASSED, "a command in 0.1 s"),
        ),
        verdict=Verdict(Outcome.PASSED),
        console=Path("console.log"),
    )


def test_what_was_not_checked_is_named_and_is_no_failure(summary: Summary) -> None:
    assert summary.outcome is Outcome.PASSED
    text = stress_summary.render(summary)
    assert "kmemleak  not checked: no kmemleak in this kernel" in text
    assert "oom not completed" in text
    assert re.search(r"^not run .*fork-pipe-bomb", text, re.MULTILINE)


def test_the_kernel_s_word_comes_before_a_check_s(summary: Summary) -> None:
    leaked = replace(summary, checks=(Check("counts", Outcome.LEAKED, "more"), *summary.checks))
    assert leaked.outcome is Outcome.LEAKED
    reported = replace(leaked, verdict=Verdict(Outcome.REPORTED, ("KASAN",)))
    assert reported.outcome is Outcome.REPORTED
    error = StressFailedError(reported.outcome, "wrong", reported)
    assert error.exit_status == Outcome.REPORTED.exit_status


def test_a_line_says_what_happened_since_the_last_one() -> None:
    text = stress_summary.describe(
        Figures(30, 300, 0, 0, 0, 0, 5_000_000, 90),
        Figures(10, 100, 0, 0, 0, 0, 4_000_000, 40),
        2.0,
        replace(SYSTEM, taint=1 << 12),
    )
    assert text.startswith(
        "25 reads/s, 10.0 listings/s, 100 records/s, worst read 5 ms, slab 19.5 MiB"
    )
    assert text.endswith("100 files, 50 tasks, taint O")


# The run, with a guest whose answers a test chooses.


class FakeJob:
    """A command that has already printed its lines."""

    def __init__(self, result: GuestResult, lines: Sequence[bytes] = ()) -> None:
        self.result = result
        self.lines = list(lines)

    def read_line(self, timeout_s: float) -> bytes:
        return self.lines.pop(0) if self.lines else b""

    def wait(self, timeout_s: float, *, check: bool = False) -> GuestResult:
        if check and self.result.status:
            raise GuestCommandError(f"{self.result.argv[0]} failed", self.result)
        return self.result


class FakeGuest:
    """Answers each command with the first of ``answers`` whose key it contains."""

    def __init__(self, answers: Mapping[str, tuple[int, bytes]]) -> None:
        self.answers = answers
        self.release = "6.1.0-56-cplayground-lab"
        self.spec = SimpleNamespace(scale=1.0, slowness=6.0)
        self.machine = SimpleNamespace(console=SimpleNamespace(path=Path("console.log")))
        self.said: list[str] = []
        self.console = ""

    def reports(self) -> tuple[triage.Report, ...]:
        return triage.scan(self.console)

    def result(self, argv: Sequence[str]) -> GuestResult:
        line = " ".join(argv)
        self.said.append(line)
        status, out = next((v for k, v in self.answers.items() if k in line), (0, b""))
        return GuestResult(tuple(argv), status, b"" if status else out, out, 0.1)

    def run(
        self, argv: Sequence[str], *, timeout_s: float, check: bool = False, **_: object
    ) -> GuestResult:
        return FakeJob(self.result(argv)).wait(timeout_s, check=check)

    def start(self, argv: Sequence[str], **_: object) -> FakeJob:
        result = self.result(argv)
        lines = result.stdout.splitlines(keepends=True) if "reader" in argv[0] else []
        return FakeJob(result, lines)

    def put(self, content: object, remote: str, **_: object) -> None:
        pass

    def read(self, remote: str, **_: object) -> bytes:
        return self.run(["@read", remote], timeout_s=1, check=True).stdout

    def shutdown(self, *, status: int | None = 0) -> Verdict:
        return Verdict(Outcome.FAILED if status else Outcome.PASSED)


LISTING = b"ab" * 32 + b"\t7\t1\t0\t0\tinit\n\n"
GOOD: Mapping[str, tuple[int, bytes]] = {
    "reader storm": (0, b"1 1 100 0 0 0 5 10\n9 9 900 0 0 1 5 90\n"),
    "unload again": (0, b"12\n"),
    "programs/load": (0, b"100 2 0\n"),
    "programs/counts": (0, b"open files 90\nend 1\n"),
    "meminfo": (0, MEMINFO.encode() + b"416\t0\t98232\n0.00 0.01 0.05 2/61 1234\n4096\n"),
    "/proc/[0-9]*/stat": (0, b"1 (agent) S 0 1 1 0\n"),
    "@read /proc/cplayground": (0, LISTING),
    "parameters/backend": (0, b"stock\n"),
    "refcnt": (0, b"0\n"),
    "test -e": (1, b""),
    "lockdep_stats": (1, b""),
    "debug/kcsan": (1, b""),
}


def stress_fake(
    answers: Mapping[str, tuple[int, bytes]], console: str = ""
) -> tuple[Summary, FakeGuest]:
    guest = FakeGuest({**answers, **{k: v for k, v in GOOD.items() if k not in answers}})
    guest.console = console
    return stress.stress_guest(
        cast("Guest", guest),
        Path("cplayground.ko"),
        {},
        rounds=workloads.plan(workloads.choose(["churn", "oom"]), 10, 1),
        parameters=["backend=stock"],
        seed=1,
        fragments=[],
        again="./inv stress --seed 1",
    ), guest


def test_a_whole_run() -> None:
    summary, guest = stress_fake({})
    assert summary.outcome is Outcome.PASSED
    assert summary.figures == Figures(18, 18, 1800, 0, 0, 2, 5, 180)
    assert summary.operations == {"churn": 200, "oom": 200}
    assert (summary.unloadings, summary.samples, summary.backend) == (12, 2, "stock")
    assert [check.name for check in summary.checks if check.passed] == [
        "readers",
        "answer",
        "processes",
        "module",
        "pages",
    ]
    modules = [line for line in guest.said if "insmod" in line or "rmmod" in line]
    assert modules == ["insmod /tmp/cplayground.ko backend=stock", "rmmod cplayground"]
    (reloads,) = (line for line in guest.said if "unload again" in line)
    assert reloads.endswith(" /proc/cplayground /tmp/cplayground.ko 5 1200 backend=stock")


@pytest.mark.parametrize(
    ("what", "answer", "said"),
    [
        ("reader storm", (1, b"a reader saw what it must not see"), "must not see"),
        ("reader storm", (0, b"nonsense\n"), "the readers printed b'nonsense"),
        ("programs/load churn", (1, b"churn has done nothing"), "churn has done nothing"),
        ("unload again", (1, b"delete_module: Device busy"), "Device busy"),
        ("@read /proc/cplayground", (0, LISTING[:-1]), "no empty line at its end"),
        ("@read /proc/cplayground", (1, b"Input/output error"), "could not be read"),
        ("rmmod", (1, b"Module cplayground is in use"), "is in use"),
        ("refcnt", (0, b"2\n"), "2 references"),
    ],
)
def test_whatever_goes_wrong_fails_the_run(what: str, answer: tuple[int, bytes], said: str) -> None:
    with pytest.raises(StressFailedError) as failed:
        stress_fake({what: answer})
    assert said in str(failed.value)
    assert failed.value.exit_status != 0


def test_a_report_ends_the_run_and_is_shown_first() -> None:
    said = "[    5.000000] BUG: KASAN: use-after-free in cpg_show+0x1/0x2 [cplayground]\n"
    with pytest.raises(StressFailedError) as failed:
        stress_fake({}, said)
    text = str(failed.value)
    assert text.startswith("the kernel reported: BUG: KASAN: use-after-free in cpg_show")
    assert text.index("1 report, 1 bug") < text.index("again:    ./inv stress --seed 1")
    assert text.index("again: ") < text.index("read      ")
    assert failed.value.summary.operations == {"churn": 0, "oom": 0}
