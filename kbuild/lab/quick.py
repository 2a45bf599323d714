"""The quick suite: test in one guest, in seconds, that the module is correct and safe.

It runs on any kernel and finds what the detectors of that kernel can find: nearly everything on
the debug variant, and on a release kernel only what is visible from outside.  The result names
the detectors that were armed, because the silence of a missing detector proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from kbuild.core.errors import UserError
from kbuild.core.model import MODULE, PROCFILE
from kbuild.guest import detectors
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.outcome import MODULE_TAINT, taint_letters
from kbuild.guest.programs import PLACE
from kbuild.lab import counts, oracle, readying, traces
from kbuild.lab.counts import Counts
from kbuild.lab.findings import QuickResult
from kbuild.lab.procfile import Process
from kbuild.lab.watching import EnoughError, Watch, said

_REMOTE = "/tmp/cplayground.ko"
_SCAN = ("sh", "-c", f"echo scan >{detectors.KMEMLEAK}")
# For a quick look.  Mutants and stress runs, which must meet rare races, take longer.
CHURN_S = 1.5
_STORM_S = "60"  # at most: the storm ends when the module has been reloaded
_OPENS = 128
# Stop waiting after this many guest milliseconds without a freed object.
_SETTLE_MS = 3000


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

    ``module`` is called when everything that needs no module is done, so the caller can compile
    meanwhile.  Its exceptions pass through.  With an empty ``backend`` the module chooses.
    ``window_us`` widens the race windows of a lab build from the step "reload" on; use 0 for
    other builds.  With ``expect`` the suite ends as soon as one detector of each set has
    reported.  ``many`` demands that this many processes and descriptors are shown.  With
    ``thorough`` all cases of lives.c and traces.c run, each with all its rounds.
    ``deadline_s`` and ``churn_s`` are seconds on the host, independent of the guest's speed.
    Without ``kmemleak``, whose two scans take longer than everything else, only counting
    detects leaks.  Abandon the guest if the result has a hang or is not complete.
    """
    watch = Watch(guest, deadline_s=deadline_s, expect=[frozenset(names) for names in expect])
    suite = _Suite(watch, backend, window_us, thorough=thorough)
    try:
        suite.everything(module, compiled, churn_s, many, seed, kmemleak=kmemleak)
    except EnoughError:
        watch.hear_out()
    except GuestCommandError as error:
        watch.note("workload", str(error))
    except GuestLost as lost:
        watch.take_reports()
        watch.note("guest lost", lost.what)
    return QuickResult(
        findings=tuple(watch.findings),
        steps=tuple(watch.steps),
        reads=watch.reads,
        records=watch.records,
        armed=suite.armed,
        complete=suite.complete,
        seconds=watch.elapsed_s,
    )


class _Suite:
    """The steps of one run of the suite; each returns what it saw."""

    def __init__(self, watch: Watch, backend: str, window_us: int, *, thorough: bool) -> None:
        self._watch = watch
        self._parameters = [f"backend={backend}"] if backend else []
        self._backend = backend or "stock"
        self._window = [f"window_us={window_us}"] if window_us else []
        self._thorough = thorough
        self._loaded = False
        self._before = Counts({})
        self._tainted = 0
        self.armed: frozenset[str] = frozenset()
        self.complete = False

    def everything(
        self,
        module: Callable[[], Path],
        compiled: Mapping[str, Path],
        churn_s: float,
        many: int,
        seed: int,
        *,
        kmemleak: bool,
    ) -> None:
        """Run all steps in order."""
        watch = self._watch
        watch.step("before", lambda: self._look_around(compiled, kmemleak=kmemleak))
        watch.step("module", lambda: self._put(module()))
        watch.step("load", self._load)
        watch.step("recycled", self._recycle)
        watch.step("moments", self._change_between)
        if many:
            watch.step("many", lambda: self._many(many))
        still, strange = watch.hold(*_STILL), watch.hold(*_STRANGE)
        watch.held(still)
        watch.held(strange)
        watch.step("still", self._compare)
        watch.step("ways of reading", self._read_in_ways)
        watch.step("opens", self._open_often)
        watch.step("privacy", self._open_inside)
        watch.step("reload", self._reload)
        watch.end(strange)
        watch.step("churn", lambda: self._churn(churn_s, seed))
        watch.step("after", self._compare)
        watch.step("storm", lambda: self._storm(seed))
        watch.end(still)
        watch.step("lives", self._lives)
        watch.step("traces", self._traces)
        if self._loaded:
            watch.step("unload", self._unload)
        watch.step("leaks", self._leaks)
        watch.step("detectors", self._detectors)
        self.complete = True

    def _look_around(self, compiled: Mapping[str, Path], *, kmemleak: bool) -> str:
        """Record the state to compare with after the unloading, and arm the detectors."""
        counted = self._watch.run(["@read", readying.COUNTED])
        if counted.status != 0:
            readying.make_ready(self._watch.guest, compiled)
            counted = self._watch.run(["@read", readying.COUNTED], "workload")
        self._before = self._parsed_counts(counted)
        self._tainted = self._taint()
        armed = {
            "slab counts": self._before.exact,
            **{name: self._alive(name) for name in detectors.SAYS_SO},
            "kmemleak": kmemleak
            and self._watch.run(["test", "-e", detectors.KMEMLEAK]).status == 0,
        }
        self.armed = frozenset(name for name, there in armed.items() if there)
        for name in sorted(self._watch.guest.spec.checkers & set(detectors.SAYS_SO) - self.armed):
            self._watch.find(f"{name} off", "this kernel must have it, but it is off or missing")
        return f"{sum(self._before.values.values())} objects"

    def _put(self, module: Path) -> str:
        self._watch.guest.put(module, _REMOTE)
        return module.name

    def _load(self) -> str:
        result = self._watch.run(["insmod", _REMOTE, *self._parameters])
        if result.status != 0:
            # Without the module there is nothing to judge.
            self._watch.note("load", said(result))
            raise EnoughError
        self._loaded = True
        return " ".join(self._parameters) or "the module's own choice"

    def _unload(self) -> str:
        result = self._watch.run(["rmmod", MODULE])
        if result.status != 0:
            self._watch.find("unload", said(result))
        self._loaded = result.status != 0
        return "unloaded"

    def _recycle(self) -> str:
        """Let readers pause, and go on when the processes that they have seen are gone."""
        for where, shown in _RECYCLED.items():
            result = self._watch.run([f"{PLACE}/recycle", PROCFILE, where], "reading")
            files = {path for _, path in self._files_of(result)}
            if result.status == 0 and files & {*_RECYCLED.values()} != {shown}:
                self._watch.find(
                    "invariants", f"a pid was reused, and its process has the files {sorted(files)}"
                )
        return f"paused at {', '.join(_RECYCLED)}, and went on"

    def _change_between(self) -> str:
        """Let readers pause inside a record, of which all descriptors then change."""
        for piece, expected in _MOMENTS.items():
            result = self._watch.run([f"{PLACE}/moment", PROCFILE, piece], "reading")
            files = [(fd, path[-3:]) for fd, path in self._files_of(result) if fd < 64]
            if result.status == 0 and files != expected:
                shown = " ".join(f"{fd}:{name.decode(errors='replace')}" for fd, name in files)
                self._watch.find(
                    "invariants", f"all descriptors changed once, after {piece}: {shown}"
                )
        return f"paused at {', '.join(_MOMENTS)}, and went on"

    def _files_of(self, result: GuestResult) -> list[tuple[int, bytes]]:
        """Parse a line with a pid and a listing; return that process's descriptors and paths."""
        head, _, text = result.stdout.partition(b"\n")
        return [
            (file.fd, file.path)
            for process in self._watch.parsed(text)
            if head.split()[-1:] == [b"%d" % process.pid]
            for file in process.files
        ]

    def _compare(self) -> str:
        shown = self._watch.listing()
        result = self._watch.run([f"{PLACE}/observe"], "workload")
        if result.status == 0:
            for difference in oracle.differences(shown, oracle.parse(result.stdout))[:3]:
                self._watch.find("oracle", difference)
        processes, files = _sizes(shown)
        return f"{processes} processes, {files} descriptors as the kernel has them"

    def _read_in_ways(self) -> str:
        expected = self._watch.read_file()
        result = self._watch.run([f"{PLACE}/observe_reads", PROCFILE, "size", "61"], "reading")
        if result.stdout != expected:
            self._watch.find(
                "ways of reading",
                f"{len(result.stdout)} bytes in pieces, {len(expected)} bytes at once",
            )
        return f"{len(expected)} bytes, the same in pieces of 61"

    def _open_often(self) -> str:
        """Open and close so often that a leak in each open exceeds the tolerance of the counts."""
        opens = f'i=0; while [ "$i" -lt {_OPENS} ]; do : <{PROCFILE}; i=$((i + 1)); done'
        # If the redirection fails, dash exits (POSIX, consequences of shell errors).
        self._watch.run(["sh", "-c", opens], "reading")
        return f"{_OPENS} times, without reading"

    def _open_inside(self) -> str:
        result = self._watch.run(["unshare", "--fork", "--pid", "--mount-proc", "cat", PROCFILE])
        if result.status == 0 or b"Permission denied" not in result.stderr:
            self._watch.find("privacy", f"status {result.status}: {said(result)}")
        return "refused to a container"

    def _reload(self) -> str:
        first = self._watch.read_file()
        self._unload()
        # Until here nothing changed concurrently, so wider windows had no effect.
        self._parameters += self._window
        self._load()
        second = self._watch.read_file()
        same = set(_IDS.findall(first)) & set(_IDS.findall(second))
        if same:
            self._watch.find("ids", f"{len(same)} ids are the same after another load")
        if not _IDS.search(second):
            self._watch.find("ids", "there are none")
        return f"{len(set(_IDS.findall(second)))} ids, all new"

    def _churn(self, churn_s: float, seed: int) -> str:
        milliseconds = str(round(churn_s * 1000))
        witness = self._watch.start([f"{PLACE}/witness", PROCFILE, milliseconds, str(seed), "1"])
        self._watch.follow(witness, until=b"\n")
        churn = self._watch.start([f"{PLACE}/turmoil"])
        seen = self._watch.finish(witness)
        churn.close_stdin()
        rounds = self._watch.finish(churn)
        detector = _WITNESS.get(seen.status, "workload")
        if seen.status != 0:
            self._watch.find(detector, said(seen))
        if rounds.status != 0:
            self._watch.find("workload", said(rounds))
        numbers = [int(word) for word in seen.text.split()[-3:] if word.isdigit()]
        listings, records, named = numbers if len(numbers) == 3 else (0, 0, 0)
        self._watch.reads += listings
        self._watch.records += records
        if seen.status == 0 and (not listings or not named):
            self._watch.find("workload", f"the readers saw nothing of the churn: {seen.text!r}")
        return f"{listings} listings, {records} records, {named} descriptors under churn"

    def _storm(self, seed: int) -> str:
        """Let readers of every kind read while the module is reloaded."""
        kind = ["storm", PROCFILE, _STORM_S, str(seed), "reloaded", "told"]
        storm = self._watch.start([f"{PLACE}/reader", *kind])
        self._watch.follow(storm, until=b"\n")
        self._unload()
        self._load()
        storm.close_stdin()
        result = self._watch.finish(storm)
        if result.status != 0 and _IDLE not in result.stderr:
            self._watch.find("invariants", said(result))
        words = (result.text.splitlines() or [""])[-1].split()
        if len(words) >= 7:
            self._watch.reads += int(words[0])
            self._watch.records += int(words[1])
        return f"reloaded under {' '.join(words)}"

    def _lives(self) -> str:
        """Read while processes exec, end and are replaced."""
        seen = []
        for case, (few, rounds, detector, wrong) in _LIVES.items():
            number = rounds if self._thorough or self._watch.expected(detector) else few
            # A detector that is expected to report needs no more than its first evidence.
            first = ["first"] if self._watch.expected(detector) else []
            argv = [f"{PLACE}/lives", PROCFILE, case, str(number), *first]
            result = self._watch.run(argv, "reading")
            figures = traces.figures(result.text)
            if result.status == 0 and any(figures.get(name) != "0" for name in wrong):
                self._watch.find(detector, f"{case}: {result.text.strip()}")
            seen.append(f"{case} {number}")
        return ", ".join(seen)

    def _traces(self) -> str:
        """Read programs that could notice the reader, or block it."""
        seen = []
        for case, rounds in traces.ROUNDS.items():
            detector = f"trace {case}"
            expected = self._watch.expected(detector)
            wanted = self._thorough or expected
            number = rounds if wanted else readying.FEW_TRACES.get(case, 0)
            if not number:
                continue
            argv = traces.argv(
                PLACE,
                PROCFILE,
                case,
                rounds=number,
                readers=_TRACES_READERS,
                first=expected,
            )
            result = self._watch.run(argv, detector)
            if result.status == 0:
                try:
                    found = traces.parse(result.text)
                except UserError as error:
                    self._watch.note("workload", str(error))
                    raise EnoughError from error
                for fault in traces.faults(case, self._backend, found):
                    self._watch.find(detector, fault)
            seen.append(f"{case} {number}")
        return ", ".join(seen)

    def _many(self, many: int) -> str:
        """Show more processes and descriptors than a fixed array would hold."""
        with self._watch.topology("many-processes", str(many)):
            processes, _ = _sizes(self._watch.listing())
            if processes != many + 1:
                self._watch.find("many", f"{processes} processes are shown of {many + 1}")
        with self._watch.topology("many-files", str(many)):
            processes, files = _sizes(self._watch.listing())
            if processes != 1 or files < many:
                self._watch.find("many", f"{files} descriptors are shown, of more than {many}")
        return f"{many} processes, {files} descriptors"

    def _counts(self, *arguments: str) -> Counts:
        result = self._watch.run([f"{PLACE}/{counts.PROGRAM}", "kmalloc", *arguments], "workload")
        return self._parsed_counts(result)

    def _parsed_counts(self, result: GuestResult) -> Counts:
        try:
            return counts.parse(result.text)
        except ValueError as error:
            self._watch.note("workload", f"{said(result)}: {error}")
            raise EnoughError from error

    def _leaks(self) -> str:
        before = self._before
        limits = [f"{name}={most}" for name, most in counts.limits(before).items()]
        after = self._counts(str(_SETTLE_MS), *limits)
        for name, number in counts.leaks(before, after).items():
            self._watch.find(
                f"leak of {name}", f"{number} more than the {before.values.get(name, 0)} before"
            )
        if "kmemleak" in self.armed:
            # Scan after counting: a scan has open files itself, and delays the freeing of
            # objects.  An object that both scans report is a leak.
            for _ in range(2):
                self._watch.run(_SCAN, "workload")
            text = self._watch.run(["@read", detectors.KMEMLEAK], "workload").text
            if text.strip():
                self._watch.find("kmemleak", text.split("\nunreferenced", 1)[0])
        return ", ".join(f"{name} {value}" for name, value in after.values.items())

    def _detectors(self) -> str:
        for name, (path, _) in detectors.SAYS_SO.items():
            if name in self.armed and not self._alive(name):
                self._watch.find(f"{name} off", f"{path} no longer says that it is on")
        extra = self._taint() & ~self._tainted & ~MODULE_TAINT
        if extra:
            self._watch.find("taint", f"new taint: {taint_letters(extra)}")
        return ", ".join(sorted(self.armed)) or "none of the kernel"

    def _taint(self) -> int:
        return int(self._watch.run(["@read", "/proc/sys/kernel/tainted"], "workload").stdout)

    def _alive(self, name: str) -> bool:
        path, _ = detectors.SAYS_SO[name]
        return detectors.alive(name, self._watch.run(["@read", path]).text)


_TRACES_READERS = 2
# By case of lives.c: rounds in a quick look, all rounds, detector, figures that must be 0.
_LIVES = {
    "exec": (10, 300, "parent", ("wrong", "missing", "bare")),
    "reaped": (10, 300, "parent", ("wrong", "group")),
    "series": (3, 20, "ids", ("repeated", "differ")),
    "between": (1, 20, "ids", ("repeated",)),
}
# Scenarios whose records do not change while others churn.  They are few, so that a reader
# spends its time on the others.
_STILL = ("tree", "shared-table", "thread")
_STRANGE = (
    *("orphan", "zombie", "nested", "joined", "tables"),
    *("descriptors", "cloexec-kept", "dead-leader", "hostile", "long-paths", "long-lines"),
    "other-root",
)
# By the place where recycle.c pauses: the file that its process must show afterwards.
_RECYCLED = {"header": b"/tmp/old", "files": b"/tmp/old", "end": b"/tmp/new"}
# By the place where moment.c pauses: the descriptors below 64 that its process must show.  Those
# of a batch that has begun are as before the change, all later ones as after it.  The last of
# these reads is so large that it begins both batches.
_BEGUN = [(fd, b"old" if fd <= 32 else b"new") for fd in range(1, 64)]
_MOMENTS = {"header": _BEGUN, "1": _BEGUN, "65536": [(fd, b"old") for fd in range(1, 64)]}
_IDS = re.compile(rb"(?<![^\t\n])[0-9a-f]{64}(?=\t)")
# The end of reader.c's message for a kind of reader that had no turn.  A storm this short may
# give it none, so the message is not a finding.
_IDLE = b"reader has read anything"
# By exit status of witness.c: the detector.
_WITNESS = {3: "grammar", 4: "invariants", 5: "reading"}


def _sizes(shown: Sequence[Process]) -> tuple[int, int]:
    """Return how many processes and how many descriptors there are."""
    return len(shown), sum(len(process.files) for process in shown)
