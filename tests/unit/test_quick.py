"""The quick suite with a fake guest: its findings, and when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kbuild.core.model import PROCFILE
from kbuild.guest import triage
from kbuild.guest.detectors import KMEMLEAK, SAYS_SO
from kbuild.guest.guest import Guest, GuestResult
from kbuild.guest.programs import PLACE
from kbuild.lab import quick, readying, traces, watching
from kbuild.lab.findings import QuickResult

MODULE = Path(__file__)
# All that can be armed.
ASKED = {"kmemleak", "slab counts", *SAYS_SO}


@pytest.fixture(autouse=True)
def _short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SILENCE_S", 0.05)


OBSERVED = b"P 7 1 0 0 S 0 0 4026532000 61\nend 1\n"
COUNTS = b"struct file 10\nopen files 9\nend 2\n"
KASAN = "[    1.0] BUG: KASAN: use-after-free in cpg_scan+0x1/0x2 [cplayground]\n"

Answer = tuple[int, bytes, bytes]

# By the place where moment.c pauses: the last descriptors that a wrong module shows as before the
# change.  A read of 65536 bytes begins both batches, so all descriptors must be as before.
_MISTAKEN: Mapping[object, tuple[int, ...]] = {
    "header": (-1, 1, 31, 33, 64),
    1: (1, 31, 33, 47, 64),
    65536: (1, 31, 32, 47, 62),
}


@dataclass
class Job:
    """A command of the guest; without an answer it never ends."""

    argv: tuple[str, ...]
    answer: Answer | None
    waits: bool = False  # for its input's end

    @property
    def running(self) -> bool:
        return self.answer is None or self.waits

    def follow(self, timeout_s: float, *, until: bytes | None = None) -> bool:
        if self.answer is None:
            return False
        return not self.waits or (until is not None and until in self.answer[1])

    def close_stdin(self) -> None:
        self.waits = False

    def wait(self, timeout_s: float) -> GuestResult:
        assert self.answer is not None
        return GuestResult(self.argv, *self.answer, seconds=0.0)


def traces_of(name: str, late: int = 0) -> bytes:
    """Return the line that traces.c prints for a command."""
    rounds = name.split()[3] if name.startswith("traces ") else "0"
    words = b"rounds=%s late=%d worst_us=0 listings=999 longest_read_us=5 slept=0\n"
    return words % (rounds.encode(), late)


@dataclass
class FakeGuest:
    """Answers as a guest with a correct module; ``answers`` has the differences."""

    answers: dict[str, Callable[[Sequence[str]], Answer | None]] = field(default_factory=dict)
    loads: int = 0
    kernel_log: str = ""
    started: list[tuple[str, ...]] = field(default_factory=list)

    machine: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(console=SimpleNamespace(size=lambda: 0))
    )
    spec: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(checkers=frozenset({"kmemleak"}))
    )

    def console(self, since: int = 0) -> str:
        return self.kernel_log

    def put(self, content: object, remote: str) -> None:
        assert content == MODULE or remote.startswith("/tmp/programs")

    def run(
        self, argv: Sequence[str], *, timeout_s: float, cwd: str = "/", check: bool = False
    ) -> GuestResult:
        return self.start(argv, cwd=cwd).wait(timeout_s)

    def start(self, argv: Sequence[str], *, cwd: str = "/") -> Job:
        self.started.append(tuple(argv))
        name = " ".join(argv).removeprefix(f"{PLACE}/")
        if argv[0] == "insmod":
            self.loads += 1
        for beginning, special in self.answers.items():
            if name == beginning or name.startswith(f"{beginning} "):
                return Job(tuple(argv), special(argv), waits="topology" in name)
        if argv[0] == "unshare":
            return Job(tuple(argv), (1, b"", b"cat: Permission denied"))
        return Job(tuple(argv), (0, self.usual(name), b""), waits="topology" in name)

    def listing(self) -> bytes:
        identity = hashlib.sha256(bytes([self.loads])).hexdigest()
        return f"{identity}\t7\t1\t0\t0\ta\n\n".encode()

    def recycled(self, path: bytes) -> bytes:
        listing = self.listing().removesuffix(b"\n")
        return b"pid 7\n%s0\t0\t%s\t0\t02\t%s\n\n" % (listing, listing[:64], path)

    def changed(self, fds: range, old: int = 0) -> bytes:
        listing = self.listing().removesuffix(b"\n")
        lines = [
            b"%d\t0\t%s\t0\t02\t/%s\n" % (fd, listing[:64], b"old" if fd <= old else b"new")
            for fd in fds
        ]
        pipe = b"65\t0\t%s\t0\t02\tpipe:[7]\n" % listing[:64]
        return b"pid 7\n%s%s%s\n" % (listing, b"".join(lines), pipe)

    def usual(self, name: str) -> bytes:
        whole = {
            f"@read {PROCFILE}": self.listing(),
            "@read /proc/sys/kernel/tainted": b"4096\n",
            "@read /proc/lockdep_stats": b" debug_locks:      1\n",
            "@read /sys/kernel/debug/kcsan": b"enabled: 1\nsetup_watchpoints: 7\n",
            "@read /tmp/counted": COUNTS,
            f"recycle {PROCFILE} header": self.recycled(b"/tmp/old"),
            f"recycle {PROCFILE} files": self.recycled(b"/tmp/old"),
            f"recycle {PROCFILE} end": self.recycled(b"/tmp/new"),
            f"moment {PROCFILE} header": self.changed(range(1, 64), 32),
            f"moment {PROCFILE} 1": self.changed(range(1, 64), 32),
            f"moment {PROCFILE} 65536": self.changed(range(1, 64), 64),
        }
        by_first_word = {
            "observe": OBSERVED,
            "observe_reads": self.listing(),
            "topology": b"ready\n",
            "counts": COUNTS,
            "witness": b"anchored 1\n12 34 56\n",
            "reader": b"5 6 7 0 0 0 99\n",
            "lives": b"headers=9 wrong=0 missing=0 bare=0 group=0 repeated=0 differ=0\n",
            "traces": traces_of(name),
        }
        return whole.get(name, by_first_word.get(name.split()[0], b""))


def judge(
    guest: FakeGuest,
    *,
    deadline_s: float = 20.0,
    window_us: int = 0,
    expect: Sequence[str] = (),
    kmemleak: bool = True,
    thorough: bool = False,
) -> QuickResult:
    return quick.run(
        cast(Guest, guest),
        lambda: MODULE,
        {},
        backend="stock",
        deadline_s=deadline_s,
        window_us=window_us,
        expect=[{name} for name in expect],
        kmemleak=kmemleak,
        thorough=thorough,
    )


def detectors(result: QuickResult) -> set[str]:
    return {finding.detector for finding in result.findings}


def always(status: int, out: bytes = b"", err: bytes = b"") -> Callable[[Sequence[str]], Answer]:
    return lambda argv: (status, out, err)


def test_a_module_that_is_right_passes() -> None:
    guest = FakeGuest()
    result = judge(guest, window_us=300)
    assert result.findings == ()
    assert result.passed
    assert result.armed == ASKED
    assert (result.reads, result.records) == (2 + 3 + 3 + 12 + 5, 2 + 3 + 3 + 34 + 6)
    loads = [argv for argv in guest.started if argv[0] == "insmod"]
    assert loads[0][2:] == ("backend=stock",)
    assert {load[2:] for load in loads[1:]} == {("backend=stock", "window_us=300")}
    unloads = [argv for argv in guest.started if argv[0] == "rmmod"]
    assert len(loads) == len(unloads)
    assert [step.name for step in result.steps][-2:] == ["leaks", "detectors"]


@pytest.mark.parametrize(
    ("command", "answer", "detector"),
    [
        ("rmmod", always(1, err=b"in use"), "unload"),
        ("recycle", always(1, b"pid 7\n"), "reading"),
        ("recycle", always(0, FakeGuest().recycled(b"/tmp/old")), "invariants"),
        ("recycle", always(0, FakeGuest().recycled(b"/tmp/old")[:-1]), "grammar"),
        ("moment", always(1, b"pid 7\n"), "reading"),
        ("moment", always(0, FakeGuest().changed(range(1, 64), 32)[:-1]), "grammar"),
        ("moment", always(0, FakeGuest().changed(range(1, 64), 32)), "invariants"),
        ("moment", always(0, FakeGuest().changed(range(64), -1)), "invariants"),
        (
            f"moment {PROCFILE} header",
            always(0, FakeGuest().changed(range(1, 64), -1)),
            "invariants",
        ),
        *(
            (
                f"moment {PROCFILE} {size}",
                always(0, FakeGuest().changed(range(1, 64), old)),
                "invariants",
            )
            for size, wrong in _MISTAKEN.items()
            for old in wrong
        ),
        ("observe_reads", always(0, b"other"), "ways of reading"),
        ("observe", always(0, OBSERVED.replace(b"P 7 1 0", b"P 7 1 3")), "oracle"),
        ("observe", always(1), "workload"),
        (f"@read {PROCFILE}", always(5), "reading"),
        (f"@read {PROCFILE}", always(0, b"x\n"), "grammar"),
        ("sh", always(2, err=b"cannot open"), "reading"),
        ("unshare", always(0, b"something"), "privacy"),
        ("witness", always(3, b"anchored 1\n"), "grammar"),
        ("witness", always(4, b"anchored 1\n"), "invariants"),
        ("witness", always(5, b"anchored 1\n"), "reading"),
        ("witness", always(0, b"anchored 1\n0 0 0\n"), "workload"),
        ("witness", always(0, b"anchored 1\n"), "workload"),
        ("turmoil", always(1), "workload"),
        ("lives", always(1), "reading"),
        ("traces", always(0, b"rounds=4 late=0\n"), "workload"),
        (f"lives {PROCFILE} exec", always(0, b"wrong=1 missing=0 bare=0\n"), "parent"),
        (f"lives {PROCFILE} reaped", always(0, b"wrong=0 group=2\n"), "parent"),
        (f"lives {PROCFILE} series", always(0, b"repeated=1 differ=0\n"), "ids"),
        (f"lives {PROCFILE} between", always(0, b"shown=1\n"), "ids"),
        *(
            (f"traces {PROCFILE} {case}", trace, f"trace {case}")
            for case in ("text", "eof", "fuse")
            for trace in (
                always(1),
                always(0, traces_of(f"traces {PROCFILE} {case} 4 2", late=1)),
            )
        ),
        ("reader", always(1, err=b"a reader saw"), "invariants"),
        ("counts kmalloc 3000", always(0, COUNTS.replace(b"10", b"17")), "leak of struct file"),
        (f"@read {KMEMLEAK}", always(0, b"unreferenced object 0x1\n"), "kmemleak"),
    ],
)
def test_what_is_wrong_is_found(
    command: str, answer: Callable[[Sequence[str]], Answer], detector: str
) -> None:
    result = judge(FakeGuest({command: answer}))
    assert detector in detectors(result)
    assert not result.passed


def test_what_was_not_counted_to_its_end_is_no_count() -> None:
    cut = judge(FakeGuest({"@read /tmp/counted": always(0, b"struct file 10\n")}))
    assert (detectors(cut), cut.complete) == ({"workload"}, False)


def test_a_guest_that_was_not_made_ready_is() -> None:
    counted = iter([(1, b"", b"no such file"), (0, COUNTS, b"")])
    guest = FakeGuest({"@read /tmp/counted": lambda argv: next(counted)})
    assert judge(guest).passed
    assert any("/tmp/counted" in argv[-1] for argv in guest.started if argv[0] == "sh")


def test_what_a_kernel_has_lost_at_boot_is_its_own_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = iter([(0, b"unreferenced object 0x1 (size 8):\n", b"")])
    guest = FakeGuest({f"@read {KMEMLEAK}": lambda argv: next(told)})
    readying.prepare(cast(Guest, guest), {})
    assert "unreferenced object 0x1" in caplog.text
    words = " ".join(argv[-1] for argv in guest.started if argv[0] == "sh")
    # The console level is lowered for the scans and then restored, and the list is cleared.
    quiet, scan, loud = (words.index(part) for part in ("echo 6 >", "echo scan", "echo $level"))
    assert quiet < scan < words.rindex("echo scan") < loud < words.index("echo clear")


def test_ids_that_stay_are_found() -> None:
    listing = FakeGuest().listing()
    result = judge(FakeGuest({f"@read {PROCFILE}": always(0, listing)}))
    assert "ids" in detectors(result)


def test_a_module_that_does_not_load_is_not_judged_further() -> None:
    result = judge(FakeGuest({"insmod": always(1, err=b"Unknown symbol")}))
    assert detectors(result) == {"load"}
    assert not result.complete


def test_new_taint_and_a_lockdep_that_is_off() -> None:
    guest = FakeGuest()
    states = iter([b" debug_locks: 1\n", b" debug_locks: 0\n"])
    taints = iter([b"0\n", b"512\n"])
    guest.answers = {
        "@read /proc/lockdep_stats": lambda argv: (0, next(states), b""),
        "@read /proc/sys/kernel/tainted": lambda argv: (0, next(taints), b""),
    }
    assert detectors(judge(guest)) == {"lockdep off", "taint"}


@pytest.mark.parametrize("said", [always(1), always(0, b"enabled: 0\n")])
def test_a_detector_that_has_to_be_there_and_is_not(said: Callable[..., Answer]) -> None:
    guest = FakeGuest({"@read /sys/kernel/debug/kcsan": said})
    guest.spec.checkers = frozenset({"lockdep", "kcsan"})
    assert detectors(judge(guest)) == {"kcsan off"}


def test_what_cannot_be_asked_is_not_armed() -> None:
    def absent(argv: Sequence[str]) -> Answer:
        return (argv[2].startswith("/sys"), b"", b"")

    guest = FakeGuest(
        {
            "test": absent,
            "@read /proc/lockdep_stats": always(1),
            "@read /sys/kernel/debug/kcsan": always(1),
            "@read /tmp/counted": always(0, b"open files 9\nend 1\n"),
            "counts": always(0, b"open files 9\nend 1\n"),
        }
    )
    result = judge(guest)
    assert result.passed
    assert result.armed == frozenset()


def test_kmemleak_is_not_armed_where_it_is_not_asked() -> None:
    leaks = always(0, b"unreferenced object 0x1\n")
    result = judge(FakeGuest({f"@read {KMEMLEAK}": leaks}), kmemleak=False)
    assert result.passed
    assert result.armed == ASKED - {"kmemleak"}


def test_nothing_is_counted_while_kmemleak_scans() -> None:
    """A scan has open files of its own, which would be counted as leaks."""
    guest = FakeGuest()
    judge(guest)
    programs = [argv[0].removeprefix(f"{PLACE}/") for argv in guest.started]
    scans = [i for i, argv in enumerate(guest.started) if argv == quick._SCAN]
    assert len(scans) == 2
    assert programs.index("counts") < min(scans)
    assert "counts" not in programs[min(scans) :]


def test_a_reader_that_had_no_turn_is_no_finding() -> None:
    idle = always(1, b"5 6 7 0 0 0 99\n", b"reader: no slow reader has read anything")
    assert judge(FakeGuest({"reader": idle})).passed


def cases(guest: FakeGuest, program: str) -> dict[str, int]:
    """Return the rounds of each case of a program that has read the module's file."""
    ran = [argv for argv in guest.started if argv[:2] == (f"{PLACE}/{program}", PROCFILE)]
    return {argv[2]: int(argv[3]) for argv in ran}


def test_a_quick_look_at_lives_and_traces_is_a_short_one() -> None:
    guest = FakeGuest()
    assert judge(guest).passed
    assert cases(guest, "lives") == {name: few for name, (few, *_) in quick._LIVES.items()}
    assert cases(guest, "traces") == readying.FEW_TRACES


def test_what_is_expected_gets_all_of_its_rounds() -> None:
    guest = FakeGuest()
    judge(guest, expect=("trace linger", "ids"))
    assert cases(guest, "traces") == {**readying.FEW_TRACES, "linger": traces.ROUNDS["linger"]}
    lives = cases(guest, "lives")
    assert (lives["exec"], lives["series"]) == (quick._LIVES["exec"][0], quick._LIVES["series"][1])
    # Those that are expected end with their first evidence.
    ended = {argv[2] for argv in guest.started if argv[-1] == "first"}
    assert ended == {"linger", "series", "between"}


def test_a_thorough_look_tries_each_case() -> None:
    def alone(argv: Sequence[str]) -> Answer:
        words = traces_of(" ".join(argv).removeprefix(f"{PLACE}/")).rstrip(b"\n")
        return (0, words + b" by_others=0 killed=not-tried unload=not-tried\n", b"")

    guest = FakeGuest({f"traces {PROCFILE} fuse-stuck": alone})
    assert judge(guest, thorough=True).passed
    assert cases(guest, "traces") == traces.ROUNDS
    assert cases(guest, "lives") == {name: most for name, (_, most, *_) in quick._LIVES.items()}


def test_stops_when_what_was_expected_has_reported() -> None:
    guest = FakeGuest(kernel_log=KASAN)
    result = judge(guest, expect=("KASAN",))
    assert detectors(result) == {"KASAN"}
    assert not result.complete
    assert not any("turmoil" in argv[0] for argv in guest.started)


def test_hears_a_report_out(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = FakeGuest(kernel_log=KASAN)
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.001)
    looks = iter(["[    1.0] Freed by task 7:\n", "[    1.0] " + "=" * 66 + "\n", "after"])
    console = guest.console

    def grows(since: int = 0) -> str:
        text = console(since)
        guest.kernel_log += next(looks, "")
        return text

    monkeypatch.setattr(guest, "console", grows)
    judge(guest, expect=("KASAN",))
    assert triage.scan(guest.kernel_log)[0].whole


def test_goes_on_for_what_was_expected_and_has_not_reported() -> None:
    result = judge(FakeGuest(kernel_log=KASAN), expect=("kmemleak",))
    assert detectors(result) == {"KASAN"}
    assert result.complete


def test_half_a_line_is_no_report_yet() -> None:
    assert judge(FakeGuest(kernel_log="[    1.0] BUG: K")).passed


def test_a_step_without_an_end_is_a_hang() -> None:
    result = judge(FakeGuest({"observe": lambda argv: None}), deadline_s=0.05)
    assert detectors(result) == {"hang"}
    assert not result.complete
