"""The quick suite: is this module right and safe, asked of one guest in seconds.

It runs on any kernel, and finds what that kernel's detectors can find: on the debug variant
nearly everything, on a release kernel what shows from outside.  The result says which of
the detectors were there, so that their silence is not taken for more than it is.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import UserError
from kbuild.core.model import MODULE, PROCFILE
from kbuild.guest import detectors, programs, triage
from kbuild.guest.guest import Background, Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.outcome import MODULE_TAINT, taint_letters
from kbuild.guest.programs import PLACE
from kbuild.lab import counts, oracle, procfile, traces
from kbuild.lab.counts import Counts
from kbuild.lab.procfile import Process

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).with_name("programs")
# Compiled by programs.compile_programs() and put in place by prepare().
PROGRAMS = (
    *("topology", "observe", "observe_reads", "recycle", "moment", "witness", "turmoil", "reader"),
    *("lives", traces.PROGRAM, counts.PROGRAM),
)


def sources(names: Iterable[str]) -> list[Path]:
    """Return the C sources of guest programs of the lab."""
    return [_SOURCES / f"{name}.c" for name in names]


_REMOTE = "/tmp/cplayground.ko"
_COUNTED = "/tmp/counted"  # by make_ready()
_KMEMLEAK = detectors.KMEMLEAK
_SCAN = ("sh", "-c", f"echo scan >{_KMEMLEAK}")
_LOOK_EVERY_S = 0.2
# For a quick look: a race of which only a long one tells is for the mutants and for stress.
CHURN_S = 1.5
_STORM_S = "60"  # at most: it ends when the module has come and gone
_OPENS = 128
# What a report still says when its title is there comes within this, or not at all.
_SILENCE_S = 1.0
_REPORT_S = 5.0
# Of the guest's time: when not one object has come back for so long, none will.
_SETTLE_MS = 3000

# What the suite itself can say, beside the names in triage.PATTERNS.
LEAKS = (
    "leak of struct file",
    "leak of struct files_struct",
    "leak of struct task_struct",
    "leak of struct pid",
    "leak of struct pid_namespace",
    "leak of struct seq_file",
    "leak of kmalloc-cg",
    "leak of kmalloc",
    "leak of open files",
)
OWN_DETECTORS = (
    "load",  # insmod failed
    "unload",  # rmmod failed
    "reading",  # a read failed, or a reader did not come to its end
    "grammar",  # the text is not of the format
    "oracle",  # it differs from what /proc and kcmp(2) say
    "ways of reading",  # small reads give other bytes than large ones
    "invariants",  # under churn, something is shown that was never so
    "ids",  # they are not new with each load, or one is used again
    "parent",  # a process is shown with another parent than it had
    *(f"trace {case}" for case in traces.ROUNDS),  # a reader was noticed, or held up
    "privacy",  # a container could open the file
    "many",  # something is missing in a long list
    "kmemleak",
    *LEAKS,
    "lockdep off",  # it has turned itself off, so its silence means nothing
    "kcsan off",  # or was turned off
    "taint",
    "hang",  # a step did not end in its time
    "guest lost",  # the guest is gone
    "workload",  # a program of ours failed: not the module's fault as far as is known
)
# Those of the kernel's detectors that are asked, where they are there and it is wanted.
ASKED = frozenset({"kmemleak", "slab counts", *detectors.SAYS_SO})
DETECTORS = frozenset(OWN_DETECTORS) | {pattern.name for pattern in triage.PATTERNS}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    detector: str  # one of DETECTORS
    message: str
    at_s: float  # seconds of the host since the suite began


@dataclass(frozen=True)
class Step:
    """A part of the suite that came to its end, and what it has seen."""

    name: str
    at_s: float  # when it began, in seconds of the host since the suite did
    seconds: float
    seen: str


@dataclass(frozen=True)
class QuickResult:
    """What the suite found; without findings only ``passed`` says that it was all done."""

    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    reads: int  # whole listings that were read and checked
    records: int  # processes in them
    armed: frozenset[str]  # of ASKED, those that were asked
    complete: bool  # no step was left out
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every step was done and nothing was found."""
        return self.complete and not self.findings


def prepare(guest: Guest, compiled: Mapping[str, Path]) -> None:
    """Put programs into a guest and let its detectors forget what was before.

    What kmemleak finds now is the kernel's own: it is logged, and kept from the console, which
    is judged.
    """
    programs.install(guest, dict(compiled))
    if guest.run(["test", "-e", _KMEMLEAK], timeout_s=10).status == 0:
        guest.run(["sh", "-c", detectors.two_scans()], timeout_s=120, check=True)
        lost = guest.run(["@read", _KMEMLEAK], timeout_s=20, check=True).text
        if lost.strip():
            logger.warning("this kernel loses memory of its own, by kmemleak:\n%s", lost.rstrip())
        guest.run(["sh", "-c", f"echo clear >{_KMEMLEAK}"], timeout_s=60, check=True)


def make_ready(guest: Guest, compiled: Mapping[str, Path]) -> None:
    """Put PROGRAMS into a guest and count what run() is to find again when it ends.

    To be done before a guest is saved: what it costs is then paid once.  Nothing else is to
    be done in the guest between this and run().
    """
    prepare(guest, compiled)
    # A kernel keeps what it allocates for its first mount, namespace or FUSE request.
    for case in _FEW_TRACES:
        argv = traces.argv(PLACE, "-", case, rounds=1, readers=0)
        guest.run(argv, timeout_s=60, cwd="/tmp", check=True)
    count = f"{PLACE}/{counts.PROGRAM} kmalloc >{_COUNTED}"
    # Twice, for the caches that the first time fills.
    guest.run(["sh", "-c", f"{count} && {count}"], timeout_s=60, check=True)


# What a guest has had done to it that is ready.
READYING = (make_ready, prepare)


def run(
    guest: Guest,
    module: Callable[[], Path],
    compiled: Mapping[str, Path],
    *,
    backend: str,
    deadline_s: float,
    window_us: int = 0,
    churn_s: float = CHURN_S,
    kmemleak: bool = True,
    expect: Collection[Collection[str]] = (),
    many: int = 0,
    seed: int = 1,
    thorough: bool = False,
) -> QuickResult:
    """Judge ``module``, a file built for the guest's kernel, with one backend.

    ``module`` is called when all that needs no module has been done, so that it may be
    compiled meanwhile; what it raises goes through.  Without ``backend`` the module chooses.
    ``window_us`` widens the race windows of a lab build from the step "reload" on; 0 for
    another build.  With ``expect`` the suite ends as soon as one detector of each of these
    has reported.  ``many`` demands that so many processes and descriptors are shown.  With
    ``thorough`` each case of lives.c and traces.c is tried, in all of its rounds.
    ``deadline_s`` and ``churn_s`` are seconds of the host, whatever the guest's speed.
    Without ``kmemleak`` leaks are found by counting alone: its two scans take longer than
    all the rest.  A guest that has been found to hang, or that was left before the end, is
    not to be used again: abandon() it.
    """
    one = _Run(guest, backend, window_us, deadline_s, [frozenset(names) for names in expect])
    try:
        one.everything(module, compiled, churn_s, many, seed, kmemleak=kmemleak, thorough=thorough)
    except _Enough:
        one.hear_out()
    except GuestCommandError as error:
        one.note("workload", str(error))
    except GuestLost as lost:
        one.take_reports()
        one.note("guest lost", lost.what)
    return QuickResult(
        findings=tuple(one.findings),
        steps=tuple(one.steps),
        reads=one.reads,
        records=one.records,
        armed=one.armed,
        complete=one.complete,
        seconds=one.elapsed_s,
    )


class _Enough(Exception):  # noqa: N818 - not an error: there is nothing more to learn
    """The suite ends here."""


class _Run:
    """One run of the suite on one guest."""

    def __init__(
        self,
        guest: Guest,
        backend: str,
        window_us: int,
        deadline_s: float,
        expect: Sequence[frozenset[str]],
    ) -> None:
        self._guest = guest
        self._parameters = [f"backend={backend}"] if backend else []
        self._backend = backend or "stock"
        self._window = [f"window_us={window_us}"] if window_us else []
        self._began = time.monotonic()
        self._deadline_s = deadline_s
        self._expect = expect
        self._since = guest.machine.console.size()
        self._reported = 0
        self._loaded = False
        self._before = Counts({})
        self._tainted = 0
        self.findings: list[Finding] = []
        self.steps: list[Step] = []
        self.reads = 0
        self.records = 0
        self.armed: frozenset[str] = frozenset()
        self.complete = False

    # --- findings -----------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def note(self, detector: str, message: str) -> None:
        assert detector in DETECTORS, detector
        self.findings.append(Finding(detector, message, self.elapsed_s))

    def find(self, detector: str, message: str) -> None:
        """Note a finding; raises _Enough when it was the last one that was waited for."""
        self.note(detector, message)
        self._stop_if_satisfied()

    def take_reports(self) -> None:
        """Note what the kernel has said since the last time, as far as its lines are whole."""
        text = self._guest.console(self._since)
        reports = triage.scan(text[: text.rfind("\n") + 1])
        for report in reports[self._reported :]:
            self.note(report.name, report.title)
        self._reported = max(self._reported, len(reports))

    def look(self) -> None:
        """Take the kernel's reports, and end when it is time to."""
        self.take_reports()
        self._stop_if_satisfied()
        if self.elapsed_s > self._deadline_s:
            self.note("hang", f"not at its end after {self._deadline_s:g} s")
            raise _Enough

    def _stop_if_satisfied(self) -> None:
        found = {finding.detector for finding in self.findings}
        if self._expect and all(found & names for names in self._expect):
            raise _Enough

    def hear_out(self) -> None:
        """Wait until the kernel has said all of its last report: the guest ends after that."""
        began = heard = time.monotonic()
        text = self._guest.console(self._since)
        reports = triage.scan(text)
        while reports and not reports[-1].whole:
            now = time.monotonic()
            if now - heard > _SILENCE_S or now - began > _REPORT_S:
                break
            time.sleep(_LOOK_EVERY_S)
            more = self._guest.console(self._since)
            if more != text:
                text, heard = more, time.monotonic()
                reports = triage.scan(text)

    # --- commands -----------------------------------------------------------------------

    def start(self, argv: Sequence[str]) -> Background:
        return self._guest.start(argv, cwd="/tmp")

    def finish(self, job: Background) -> GuestResult:
        """Wait for a command's end with an eye on the console and on the clock."""
        while not job.follow(_LOOK_EVERY_S):
            self.look()
        return job.wait(1)

    def run(self, argv: Sequence[str], detector: str = "", *, stdin: bool = False) -> GuestResult:
        """Run a command to its end; with ``detector``, that it fails is a finding."""
        job = self.start(argv)
        if not stdin:
            job.close_stdin()
        result = self.finish(job)
        if detector and result.status != 0:
            self.find(detector, _said(result))
        return result

    def read_file(self) -> bytes:
        result = self.run(["@read", PROCFILE])
        if result.status != 0:
            self.find("reading", _said(result))
        return result.stdout

    def listing(self) -> tuple[Process, ...]:
        """Read the file once and check its grammar; what is not of it is left out."""
        return self.parsed(self.read_file())

    def parsed(self, text: bytes) -> tuple[Process, ...]:
        try:
            shown = procfile.parse(text)
        except procfile.ProcfileError as error:
            line = text.split(b"\n")[error.line - 1][:120]
            self.find("grammar", f"{error}: {line!r}")
            return ()
        self.reads += 1
        self.records += len(shown)
        return shown

    def hold(self, *scenarios: str) -> Background:
        """Begin processes that hold still until end()."""
        return self.start([f"{PLACE}/topology", *scenarios])

    def held(self, job: Background) -> None:
        """Wait until they do."""
        while not job.follow(_LOOK_EVERY_S, until=b"ready\n"):
            self.look()
        if not job.running:
            self.find("workload", _said(job.wait(1)))

    def end(self, job: Background) -> None:
        """End the processes that were held still."""
        job.close_stdin()
        result = self.finish(job)
        if result.status != 0:
            self.find("workload", _said(result))

    @contextmanager
    def topology(self, *scenarios: str) -> Iterator[None]:
        """Hold processes still in a block."""
        job = self.hold(*scenarios)
        self.held(job)
        yield
        self.end(job)

    # --- steps --------------------------------------------------------------------------

    def step(self, name: str, body: Callable[[], str]) -> None:
        began = time.monotonic()
        seen = body()
        self.look()
        at_s = began - self._began
        self.steps.append(Step(name, at_s, time.monotonic() - began, seen))
        logger.debug("%s: %s (%.1f s)", name, seen, self.steps[-1].seconds)

    def everything(
        self,
        module: Callable[[], Path],
        compiled: Mapping[str, Path],
        churn_s: float,
        many: int,
        seed: int,
        *,
        kmemleak: bool,
        thorough: bool,
    ) -> None:
        self.step("before", lambda: self._look_around(compiled, kmemleak=kmemleak))
        self.step("module", lambda: self._put(module()))
        self.step("load", self._load)
        self.step("recycled", self._recycle)
        self.step("moments", self._change_between)
        if many:
            self.step("many", lambda: self._many(many))
        still, strange = self.hold(*_STILL), self.hold(*_STRANGE)
        self.held(still)
        self.held(strange)
        self.step("still", self._compare)
        self.step("ways of reading", self._read_in_ways)
        self.step("opens", self._open_often)
        self.step("privacy", self._open_inside)
        self.step("reload", self._reload)
        self.end(strange)
        self.step("churn", lambda: self._churn(churn_s, seed))
        self.step("after", self._compare)
        self.step("storm", lambda: self._storm(seed))
        self.end(still)
        self.step("lives", lambda: self._lives(thorough=thorough))
        self.step("traces", lambda: self._traces(thorough=thorough))
        if self._loaded:
            self.step("unload", self._unload)
        self.step("leaks", self._leaks)
        self.step("detectors", self._detectors)
        self.complete = True

    def _look_around(self, compiled: Mapping[str, Path], *, kmemleak: bool) -> str:
        """See what there is, and what is to be so again when the module has gone."""
        counted = self.run(["@read", _COUNTED])
        if counted.status != 0:
            make_ready(self._guest, compiled)
            counted = self.run(["@read", _COUNTED], "workload")
        self._before = self._parsed_counts(counted)
        self._tainted = self._taint()
        armed = {
            "slab counts": self._before.exact,
            **{name: self._alive(name) for name in detectors.SAYS_SO},
            "kmemleak": kmemleak and self.run(["test", "-e", _KMEMLEAK]).status == 0,
        }
        self.armed = frozenset(name for name, there in armed.items() if there)
        for name in sorted(self._guest.spec.checkers & set(detectors.SAYS_SO) - self.armed):
            self.find(f"{name} off", "this kernel has to have it, and it is off or not there")
        return f"{sum(self._before.values.values())} objects"

    def _put(self, module: Path) -> str:
        self._guest.put(module, _REMOTE)
        return module.name

    def _load(self) -> str:
        result = self.run(["insmod", _REMOTE, *self._parameters])
        if result.status != 0:
            # Without the module there is nothing to be judged.
            self.note("load", _said(result))
            raise _Enough
        self._loaded = True
        return " ".join(self._parameters) or "the module's own choice"

    def _unload(self) -> str:
        result = self.run(["rmmod", MODULE])
        if result.status != 0:
            self.find("unload", _said(result))
        self._loaded = result.status != 0
        return "unloaded"

    def _recycle(self) -> str:
        """Readers that stop, and go on when what they have seen is gone."""
        for where, shown in _RECYCLED.items():
            result = self.run([f"{PLACE}/recycle", PROCFILE, where], "reading")
            files = {path for _, path in self._files_of(result)}
            if result.status == 0 and files & {*_RECYCLED.values()} != {shown}:
                self.find("invariants", f"a pid that was given anew: files {sorted(files)}")
        return f"stopped at {', '.join(_RECYCLED)}, and went on"

    def _change_between(self) -> str:
        """Readers that stop inside of a record whose descriptors then all change."""
        for piece, expected in _MOMENTS.items():
            result = self.run([f"{PLACE}/moment", PROCFILE, piece], "reading")
            files = [(fd, path[-3:]) for fd, path in self._files_of(result) if fd < 64]
            if result.status == 0 and files != expected:
                shown = " ".join(f"{fd}:{name.decode(errors='replace')}" for fd, name in files)
                self.find("invariants", f"all has changed once, after {piece}: {shown}")
        return f"stopped at {', '.join(_MOMENTS)}, and went on"

    def _files_of(self, result: GuestResult) -> list[tuple[int, bytes]]:
        """Parse a line with a pid, and a listing; gives that process's descriptors and paths."""
        head, _, text = result.stdout.partition(b"\n")
        return [
            (file.fd, file.path)
            for process in self.parsed(text)
            if head.split()[-1:] == [b"%d" % process.pid]
            for file in process.files
        ]

    def _compare(self) -> str:
        shown = self.listing()
        result = self.run([f"{PLACE}/observe"], "workload")
        if result.status == 0:
            for difference in oracle.differences(shown, oracle.parse(result.stdout))[:3]:
                self.find("oracle", difference)
        processes, files = _sizes(shown)
        return f"{processes} processes, {files} descriptors as the kernel has them"

    def _read_in_ways(self) -> str:
        expected = self.read_file()
        result = self.run([f"{PLACE}/observe_reads", PROCFILE, "size", "61"], "reading")
        if result.stdout != expected:
            self.find(
                "ways of reading",
                f"{len(result.stdout)} bytes in pieces, {len(expected)} bytes at once",
            )
        return f"{len(expected)} bytes, the same in pieces of 61"

    def _open_often(self) -> str:
        """Lose by each open more than counts may differ by, if one is to be lost."""
        opens = f'i=0; while [ "$i" -lt {_OPENS} ]; do : <{PROCFILE}; i=$((i + 1)); done'
        # dash ends where such a redirection fails (POSIX, consequences of shell errors).
        self.run(["sh", "-c", opens], "reading")
        return f"{_OPENS} times, nothing read"

    def _open_inside(self) -> str:
        result = self.run(["unshare", "--fork", "--pid", "--mount-proc", "cat", PROCFILE])
        if result.status == 0 or b"Permission denied" not in result.stderr:
            self.find("privacy", f"status {result.status}: {_said(result)}")
        return "refused to a container"

    def _reload(self) -> str:
        first = self.read_file()
        self._unload()
        # Until here nothing has moved, so that nothing could be met.
        self._parameters += self._window
        self._load()
        second = self.read_file()
        same = set(_IDS.findall(first)) & set(_IDS.findall(second))
        if same:
            self.find("ids", f"{len(same)} ids are the same after another load")
        if not _IDS.search(second):
            self.find("ids", "there are none")
        return f"{len(set(_IDS.findall(second)))} ids, all new"

    def _churn(self, churn_s: float, seed: int) -> str:
        milliseconds = str(round(churn_s * 1000))
        witness = self.start([f"{PLACE}/witness", PROCFILE, milliseconds, str(seed), "1"])
        while not witness.follow(_LOOK_EVERY_S, until=b"\n"):
            self.look()
        churn = self.start([f"{PLACE}/turmoil"])
        seen = self.finish(witness)
        churn.close_stdin()
        rounds = self.finish(churn)
        detector = _WITNESS.get(seen.status, "workload")
        if seen.status != 0:
            self.find(detector, _said(seen))
        if rounds.status != 0:
            self.find("workload", _said(rounds))
        numbers = [int(word) for word in seen.text.split()[-3:] if word.isdigit()]
        listings, records, named = numbers if len(numbers) == 3 else (0, 0, 0)
        self.reads += listings
        self.records += records
        if seen.status == 0 and (not listings or not named):
            self.find("workload", f"nothing was seen of the churn: {seen.text!r}")
        return f"{listings} listings, {records} records, {named} descriptors under churn"

    def _storm(self, seed: int) -> str:
        """Readers of every kind, while the module comes and goes."""
        kind = ["storm", PROCFILE, _STORM_S, str(seed), "reloaded", "told"]
        storm = self.start([f"{PLACE}/reader", *kind])
        while not storm.follow(_LOOK_EVERY_S, until=b"\n"):
            self.look()
        self._unload()
        self._load()
        storm.close_stdin()
        result = self.finish(storm)
        if result.status != 0 and _IDLE not in result.stderr:
            self.find("invariants", _said(result))
        words = (result.text.splitlines() or [""])[-1].split()
        if len(words) >= 7:
            self.reads += int(words[0])
            self.records += int(words[1])
        return f"gone and back under {' '.join(words)}"

    def _expected(self, detector: str) -> bool:
        return any(detector in names for names in self._expect)

    def _lives(self, *, thorough: bool) -> str:
        """Read where one life ends and another begins."""
        seen = []
        for case, (few, rounds, detector, wrong) in _LIVES.items():
            number = rounds if thorough or self._expected(detector) else few
            result = self.run([f"{PLACE}/lives", PROCFILE, case, str(number)], "reading")
            figures = traces.figures(result.text)
            if result.status == 0 and any(figures.get(name) != "0" for name in wrong):
                self.find(detector, f"{case}: {result.text.strip()}")
            seen.append(f"{case} {number}")
        return ", ".join(seen)

    def _traces(self, *, thorough: bool) -> str:
        """Read about programs that would notice it, or hold the reader up."""
        seen = []
        for case, rounds in traces.ROUNDS.items():
            detector = f"trace {case}"
            wanted = thorough or self._expected(detector)
            number = rounds if wanted else _FEW_TRACES.get(case, 0)
            if not number:
                continue
            result = self.run(
                traces.argv(PLACE, PROCFILE, case, rounds=number, readers=_TRACES_READERS), detector
            )
            if result.status == 0:
                try:
                    found = traces.parse(result.text)
                except UserError as error:
                    self.note("workload", str(error))
                    raise _Enough from error
                for fault in traces.faults(case, self._backend, found):
                    self.find(detector, fault)
            seen.append(f"{case} {number}")
        return ", ".join(seen)

    def _many(self, many: int) -> str:
        """More than anybody would have made room for."""
        with self.topology("many-processes", str(many)):
            processes, _ = _sizes(self.listing())
            if processes != many + 1:
                self.find("many", f"{processes} processes are shown of {many + 1}")
        with self.topology("many-files", str(many)):
            processes, files = _sizes(self.listing())
            if processes != 1 or files < many:
                self.find("many", f"{files} descriptors are shown of {many} and some")
        return f"{many} processes, {files} descriptors"

    def _counts(self, *arguments: str) -> Counts:
        result = self.run([f"{PLACE}/{counts.PROGRAM}", "kmalloc", *arguments], "workload")
        return self._parsed_counts(result)

    def _parsed_counts(self, result: GuestResult) -> Counts:
        try:
            return counts.parse(result.text)
        except ValueError as error:
            self.note("workload", f"{_said(result)}: {error}")
            raise _Enough from error

    def _leaks(self) -> str:
        before = self._before
        limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
        after = self._counts(str(_SETTLE_MS), *limits)
        for name, number in counts.leaks(before, after).items():
            self.find(
                f"leak of {name}", f"{number} more than the {before.values.get(name, 0)} of before"
            )
        if "kmemleak" in self.armed:
            # After the counting: a scan has open files, and what is freed meanwhile waits for
            # it.  What two scans agree on is a leak.
            for _ in range(2):
                self.run(_SCAN, "workload")
            text = self.run(["@read", _KMEMLEAK], "workload").text
            if text.strip():
                self.find("kmemleak", text.split("\nunreferenced", 1)[0])
        return ", ".join(f"{name} {value}" for name, value in after.values.items())

    def _detectors(self) -> str:
        for name, (path, _) in detectors.SAYS_SO.items():
            if name in self.armed and not self._alive(name):
                self.find(f"{name} off", f"{path} does not say any more that it is on")
        extra = self._taint() & ~self._tainted & ~MODULE_TAINT
        if extra:
            self.find("taint", f"new taint: {taint_letters(extra)}")
        return ", ".join(sorted(self.armed)) or "none of the kernel's"

    def _taint(self) -> int:
        return int(self.run(["@read", "/proc/sys/kernel/tainted"], "workload").stdout)

    def _alive(self, name: str) -> bool:
        path, _ = detectors.SAYS_SO[name]
        return detectors.alive(name, self.run(["@read", path]).text)


# For a quick look: cases of traces.c, and their rounds.
_FEW_TRACES = {"text": 4, "eof": 4, "fuse": 4}
_TRACES_READERS = 2
# Cases of lives.c: rounds for a quick look, and all; detector; the figures that must be 0.
_LIVES = {
    "exec": (10, 300, "parent", ("wrong", "missing", "bare")),
    "reaped": (10, 300, "parent", ("wrong", "group")),
    "series": (3, 20, "ids", ("repeated", "differ")),
    "between": (1, 20, "ids", ("repeated",)),
}
# The record of each of these stays as it is while others churn.  They are few, since a reader
# is to spend its time with those others.
_STILL = ("tree", "shared-table", "thread")
_STRANGE = (
    *("orphan", "zombie", "nested", "joined", "tables"),
    *("descriptors", "cloexec-kept", "dead-leader", "hostile", "long-paths", "long-lines"),
    "other-root",
)
# Where recycle.c stops, and the files of the process that it is then to be shown.
_RECYCLED = {"header": b"/tmp/old", "files": b"/tmp/old", "end": b"/tmp/new"}
# Where moment.c stops, and the descriptors below 64 of its process that are then to be shown:
# those of a batch that was begun as they were before the change, all later ones as after it.
# The last one of these reads is so large that it begins both batches.
_BEGUN = [(fd, b"old" if fd <= 32 else b"new") for fd in range(1, 64)]
_MOMENTS = {"header": _BEGUN, "1": _BEGUN, "65536": [(fd, b"old") for fd in range(1, 64)]}
_IDS = re.compile(rb"(?<![^\t\n])[0-9a-f]{64}(?=\t)")
# reader.c says so of a kind that had no turn: in so short a time that is nobody's fault.
_IDLE = b"reader has read anything"
# What witness.c ends with.
_WITNESS = {3: "grammar", 4: "invariants", 5: "reading"}


def _sizes(shown: Sequence[Process]) -> tuple[int, int]:
    """Return how many processes and how many descriptors there are."""
    return len(shown), sum(len(process.files) for process in shown)


def _said(result: GuestResult) -> str:
    text = (result.stderr or result.stdout)[-1000:].decode(errors="replace").strip()
    return f"{result.argv[0]}: {text or f'status {result.status}'}"
