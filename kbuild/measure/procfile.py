"""Measure the cost of reading /proc/cplayground, and of every other way to learn the same.

In one guest, under each of several loads, every method runs once in each round.  The order
rotates from round to round.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, sandbox
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import BACKENDS, PROCFILE, Settings, Target
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.guest import programs
from kbuild.guest.guest import Background, Guest, GuestCommandError
from kbuild.guest.outcome import MODULE_TAINT
from kbuild.guest.programs import PLACE
from kbuild.kernel import debian_image, module
from kbuild.kernel.module import BuiltModule
from kbuild.lab import procfile, setup
from kbuild.lab.setup import Lab
from kbuild.measure import stats
from kbuild.measure.stats import Aim, BenchError, Comparison, Pass, Series

logger = logging.getLogger(__name__)

# Packages that the guest has in addition, to compare the module with.
GUEST_TOOLS = ("bpftool", "lsof", "python3-psutil", "util-linux-extra")
# Packages of the root in which the BPF program is compiled.
BPF_PACKAGES = ("bpftool", "clang", "libbpf-dev")
SOURCES = Path(__file__).with_name("programs")
PROGRAMS = ("bench_load", "bench_read", "bench_run", "bench_walk", "bench_work")
KERNELS = ("ours", "stock", "all")

ITERATOR = "/sys/fs/bpf/cplayground_bench"
# Where bench_load mounts a container's own procfs.
OWN_PROC = "/proc/{pid}/root/tmp/bench-proc"

# Room for a load of 4,000 processes and for the tools.
_MEMORY_MIB = 2048
_HOST_PROCESSES = 4000
# Scattered processes are this many pids apart, and so spread over the kernel's default of 32,768.
_APART = 8
_PID_MAX = 65536
_READ_TIMEOUT_S = 120.0
_LOAD_TIMEOUT_S = 120.0
_WORKER_CPU, _READER_CPU = 0, 1
# The methods that are tried on a busy host, in addition to the module.
_BUSY = ("BPF iterator", "C walk")
_NOBODY = "no reader"
_CONTROL = "control: /proc/kallsyms is read"
_IDS = ("siphash", "sha256", "digest")
_ID_NAMES = {
    "siphash": "SipHash, as in the module",
    "sha256": "crypto API, SHA-256, allocated for each id",
    "digest": "crypto API, SHA-256, allocated once",
}


@dataclass(frozen=True)
class Load:
    """A load: processes and open files that bench_load makes and keeps unchanged."""

    name: str
    processes: int
    files: int  # of each process
    stride: int = 1  # from one descriptor number to the next
    path: int = 32  # bytes

    @property
    def lines(self) -> int:
        """Lines the module prints: for each process a header, its descriptors, an empty line."""
        return self.processes * (self.files + 2)

    @property
    def descriptors(self) -> int:
        """The number of descriptors of all processes."""
        return self.processes * self.files

    @property
    def title(self) -> str:
        """The load in words."""
        sparse = f", {self.stride} apart" if self.stride > 1 else ""
        return (
            f"{self.name}: {self.processes} processes × {self.files} descriptors{sparse},"
            f" paths of {self.path} bytes"
        )


LOADS = {
    load.name: load
    for load in (
        Load("few-few", 10, 10),
        Load("few-many", 2, 1000),
        Load("many-few", 200, 10),
        Load("many-many", 40, 100),
        Load("sparse", 4, 500, stride=256),
        Load("long-paths", 4, 250, path=3000),
    )
}
# All measurements, in their order.
NAMES = ("ids", *LOADS, "busy-host", "disturbance")
# The container that is read on a quiet and on a busy host.
_SMALL = Load("one container", 20, 20)


@dataclass(frozen=True)
class Method:
    """One way to learn what the module shows."""

    name: str
    command: Callable[[int, Sequence[int]], list[str]]  # (passes, pids) → argv
    passes: int = 1  # in one round, whose value is the least of them
    backend: str | None = None  # load the module with this backend meanwhile
    rounds: int | None = None  # a limit, for slow methods
    # It prints this many lines fewer than the module; None: at least one for each descriptor.
    fewer: int | None = None


@dataclass(frozen=True)
class Stage:
    """A booted guest with everything that the measurements need."""

    lab: Lab
    guest: Guest
    module: BuiltModule
    methods: tuple[Method, ...]
    missing: Mapping[str, str]  # methods that cannot be measured here → reason


# --- methods ----------------------------------------------------------------------------


def reader(path: str) -> Callable[[int, Sequence[int]], list[str]]:
    """Return the command that reads a file to its end."""
    return lambda passes, _: [f"{PLACE}/bench_read", "passes", str(passes), path]


def walker(kind: str) -> Callable[[int, Sequence[int]], list[str]]:
    """Return the command that walks /proc; ``kind`` is plain or kcmp."""
    return lambda passes, _: [f"{PLACE}/bench_walk", "passes", str(passes), kind, "/proc"]


def tool(*argv: str, separator: str = ",") -> Callable[[int, Sequence[int]], list[str]]:
    """Return the command that runs a tool on processes; PIDS in ``argv`` is their list."""
    return lambda passes, pids: [
        *(f"{PLACE}/bench_run", "passes", str(passes)),
        *(one.replace("PIDS", separator.join(map(str, pids))) for one in argv),
    ]


def psutil(passes: int, pids: Sequence[int]) -> list[str]:
    """Return the command that runs psutil_files.py."""
    return ["python3", f"{PLACE}/psutil_files.py", str(passes), *map(str, pids)]


_LSFD = (
    "lsfd",
    "--noheadings",
    "--raw",
    "--output",
    "PID,COMMAND,FD,FLAGS,POS,NAME",
    "--filter",
    "FD >= 0",
)
OTHERS = (
    # Its empty lines stand between records, not after each.
    Method("BPF iterator", reader(ITERATOR), passes=9, fewer=1),
    Method("C walk", walker("plain"), passes=3, fewer=0),
    Method("C walk with kcmp", walker("kcmp"), passes=3, fewer=0),
    Method("lsof", tool("lsof", "-nPw", "+fg", "-p", "PIDS"), passes=2, rounds=3),
    Method("lsfd", tool(*_LSFD, "--pid", "PIDS"), passes=2, rounds=3),
    Method("psutil", psutil, passes=2, rounds=3),
)


# The aims of the module.
AIMS = (Aim("BPF iterator", 2), Aim("C walk", 40), Aim("C walk with kcmp", 40))


def module_methods(backends: Sequence[str]) -> tuple[Method, ...]:
    """Return the methods that read the module's file, the default backend first."""
    return tuple(
        Method(f"module, {name}", reader(PROCFILE), passes=9, backend=name, fewer=0)
        for name in backends
    )


# --- the guest --------------------------------------------------------------------------


@contextmanager
def stage(settings: Settings, target: Target, *, stock: bool, accel: str | None) -> Iterator[Stage]:
    """Yield a booted guest with every method prepared that its kernel allows."""
    lab = setup.prepare(settings, target, accel=accel, stock=stock, tools=GUEST_TOOLS, booted=False)
    lab = dataclasses.replace(
        lab,
        spec=dataclasses.replace(lab.spec, memory_mib=max(_MEMORY_MIB, lab.spec.memory_mib)),
    )
    scratch = settings.build / "bench" / lab.release
    built = setup.build_module(
        lab, settings.project / "kmod", out=scratch / "module", race_windows=False
    )
    compiled = programs.compile_programs(
        settings, lab.root, [SOURCES / f"{name}.c" for name in PROGRAMS]
    )
    workdir = settings.build / "logs" / "vm" / "bench"
    with Guest.boot(lab.spec, workdir=workdir, expected_taint=MODULE_TAINT) as guest:
        script = SOURCES / "psutil_files.py"
        programs.install(guest, compiled | {script.name: script})
        guest.put(built.path, "/tmp/cplayground.ko")
        missing = {}
        for name in BACKENDS:
            if name not in built.backends:
                missing[f"module, {name}"] = "the kernel does not export what it takes"
        why = _pin_iterator(settings, lab, guest, scratch / "bpf")
        if why is not None:
            missing["BPF iterator"] = why
        yield Stage(lab, guest, built, (*module_methods(built.backends), *OTHERS), missing)
        verdict = guest.shutdown()
        if not verdict.passed:
            raise BenchError(
                f"the guest of the benchmark: {verdict}", log=guest.machine.console.path
            )


def kernel_types(lab: Lab) -> bytes:
    """Return the BTF of a lab's kernel; raises BuildError if it has none."""
    vmlinuz = lab.spec.kernel.root / "boot" / f"vmlinuz-{lab.release}"
    return debian_image.btf_section(debian_image.unpack_vmlinuz(vmlinuz), where=vmlinuz)


def compile_bpf(settings: Settings, lab: Lab, btf: bytes, out: Path) -> Path:
    """Compile the BPF program against a kernel's BTF; raises BuildError."""
    root = roots.make_root(settings, lab.target.suite, "bpf", BPF_PACKAGES)
    with fs.fresh_directory(out) as scratch:
        (scratch / "kernel.btf").write_bytes(btf)
        binds = [
            Bind(scratch, "/mnt/out", writable=True),
            Bind(SOURCES, "/mnt/source"),
        ]
        types = sandbox.enter(
            root,
            ["bpftool", "btf", "dump", "file", "/mnt/out/kernel.btf", "format", "c"],
            timeout_s=60,
            binds=binds,
        )
        # By rename: programs in the root can write there, and may have left a link.
        fs.write_atomic(scratch / "vmlinux.h", types.stdout)
        sandbox.enter(
            root,
            [
                *("clang", "-target", "bpf", "-D__TARGET_ARCH_x86", "-O2", "-g"),
                *("-Wall", "-Wextra", "-Werror", "-I/mnt/out"),
                *("-c", "/mnt/source/task_file.bpf.c", "-o", "/mnt/out/task_file.bpf.o"),
            ],
            timeout_s=120,
            binds=binds,
        )
    return out / "task_file.bpf.o"


def _pin_iterator(settings: Settings, lab: Lab, guest: Guest, out: Path) -> str | None:
    """Pin the BPF iterator as a file in the guest; return the reason if that fails."""
    try:
        btf = kernel_types(lab)
    except BuildError:
        return "the kernel's image has no BTF"
    compiled = compile_bpf(settings, lab, btf, out)
    guest.put(compiled, "/tmp/task_file.bpf.o")
    pinned = guest.run(["bpftool", "iter", "pin", "/tmp/task_file.bpf.o", ITERATOR], timeout_s=60)
    return None if pinned.status == 0 else _reason(pinned.stderr)


def _reason(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it failed without a message"


@contextmanager
def loaded(guest: Guest, backend: str) -> Iterator[None]:
    """Load the module for the time of the block."""
    guest.run(["insmod", "/tmp/cplayground.ko", f"backend={backend}"], timeout_s=20, check=True)
    try:
        yield
    finally:
        guest.run(["rmmod", "cplayground"], timeout_s=20, check=True)


@contextmanager
def held(guest: Guest, **options: int) -> Iterator[tuple[int, ...]]:
    """Keep a load in the guest for the time of the block; yields the pids of its inits."""
    background = guest.start(
        [f"{PLACE}/bench_load", *(f"{name}={value}" for name, value in options.items())]
    )
    inits = []
    while not (line := background.read_line(_LOAD_TIMEOUT_S).decode()).startswith("ready "):
        match = re.fullmatch(r"container (\d+)\n", line)
        if match is None:
            result = background.wait(_LOAD_TIMEOUT_S)
            raise BenchError("bench_load could not make the load", found=_reason(result.stderr))
        inits.append(int(match[1]))
    yield tuple(inits)
    background.close_stdin()
    background.wait(_LOAD_TIMEOUT_S, check=True)


def load_options(load: Load, **more: int) -> dict[str, int]:
    """Return bench_load's options for a load."""
    options = dataclasses.asdict(load)
    del options["name"]
    return options | more


def pids_of(stage: Stage, load: Load) -> list[int]:
    """Return the pids of the load from the module's file; raises BenchError if some lack."""
    with loaded(stage.guest, stage.module.backends[0]):
        records = procfile.parse(stage.guest.read(PROCFILE, timeout_s=_READ_TIMEOUT_S))
    descriptors = sum(len(one.files) for one in records)
    if (len(records), descriptors) != (load.processes, load.descriptors):
        raise BenchError(
            "the module does not show the load",
            expected=f"{load.processes} processes, {load.descriptors} descriptors",
            found=f"{len(records)} processes, {descriptors} descriptors",
        )
    return [one.pid for one in records]


# --- measuring --------------------------------------------------------------------------


def run_method(guest: Guest, method: Method, pids: Sequence[int]) -> tuple[Pass, ...] | str:
    """Run a method once; return its passes, or the reason of a failure.

    A failure of the module's own methods raises GuestCommandError.
    """
    if method.backend is None:
        try:
            done = guest.run(method.command(method.passes, pids), timeout_s=_READ_TIMEOUT_S)
        except GuestCommandError as error:
            return error.what
        return stats.parse_passes(done.text) if done.status == 0 else _reason(done.stderr)
    with loaded(guest, method.backend):
        done = guest.run(method.command(method.passes, pids), timeout_s=_READ_TIMEOUT_S, check=True)
    return stats.parse_passes(done.text)


def check_lines(method: Method, passes: Sequence[Pass], load: Load) -> None:
    """Raise BenchError unless the number of lines fits the load."""
    exact = method.fewer is not None
    wanted = load.lines - (method.fewer or 0) if exact else load.descriptors
    for one in passes:
        if one.lines < wanted or (exact and one.lines > wanted):
            raise BenchError(
                f"{method.name} did not show the load {load.name}",
                expected=f"{wanted} lines{'' if exact else ' or more'}",
                found=f"{one.lines} lines",
            )


def least_us(passes: Sequence[Pass]) -> float:
    """Return the shortest time, that of the pass least disturbed by the machine's other work."""
    return min(one.ns for one in passes) / 1e3


def rotate(methods: Sequence[Method], turn: int) -> list[Method]:
    """Return the methods in the order of a round."""
    at = turn % len(methods)
    return [*methods[at:], *methods[:at]]


def compare(stage: Stage, load: Load, rounds: int) -> Comparison:
    """Measure every method under one load, in µs per line that the module prints."""
    values: dict[str, dict[int, float]] = {}
    missing = dict(stage.missing)
    with held(stage.guest, **load_options(load)):
        pids = pids_of(stage, load)
        for turn in range(rounds):
            for method in rotate(stage.methods, turn):
                if method.name in missing or (method.rounds and turn >= method.rounds):
                    continue
                passes = run_method(stage.guest, method, pids)
                if isinstance(passes, str):
                    missing[method.name] = passes
                    values.pop(method.name, None)
                    continue
                check_lines(method, passes, load)
                values.setdefault(method.name, {})[turn] = least_us(passes) / load.lines
    names = dict.fromkeys([*(one.name for one in stage.methods), *sorted(missing)])
    return Comparison(
        load.name,
        load.title,
        f"µs per line, {load.lines:,} lines",
        stage.methods[0].name,
        tuple(
            Series(name, why=missing[name]) if name in missing else Series(name, values[name])
            for name in names
        ),
    )


def busy_host(stage: Stage, rounds: int) -> Comparison:
    """Measure reading one container with and without idle host processes, in µs in all."""
    quiet, busy = "no other process", f"{_HOST_PROCESSES:,} host processes"
    states = {
        quiet: {"host": 0},
        busy: {"host": _HOST_PROCESSES},
        f"{busy}, {_APART} numbers apart": {"host": _HOST_PROCESSES, "apart": _APART},
    }
    own = "C walk of the container's own procfs"
    methods = [one for one in stage.methods if one.backend or one.name in _BUSY]
    values: dict[str, dict[int, float]] = {}
    missing = {f"{name}, {state}": why for name, why in stage.missing.items() for state in states}
    stage.guest.run(["sysctl", "-qw", f"kernel.pid_max={_PID_MAX}"], timeout_s=20, check=True)
    with held(stage.guest, **load_options(_SMALL)) as (init,):
        pids = pids_of(stage, _SMALL)
        walk = [f"{PLACE}/bench_walk", "passes", "3", "plain", OWN_PROC.format(pid=init)]
        methods.append(Method(own, lambda _passes, _pids: walk, fewer=0))
        for turn in range(rounds):
            for state, options in states.items():
                with held(stage.guest, containers=0, **options):
                    for method in rotate(methods, turn):
                        name = f"{method.name}, {state}"
                        if method.name in stage.missing or name in missing:
                            continue
                        passes = run_method(stage.guest, method, pids)
                        if isinstance(passes, str):
                            missing[name] = passes
                            continue
                        check_lines(method, passes, _SMALL)
                        values.setdefault(name, {})[turn] = least_us(passes)
    names = [f"{one.name}, {state}" for one in methods for state in states]
    return Comparison(
        "busy-host",
        f"a busy host; {_SMALL.title}",
        f"µs in all, {_SMALL.lines} lines",
        names[0],
        tuple(
            Series(name, why=missing[name]) if name in missing else Series(name, values[name])
            for name in dict.fromkeys([*names, *sorted(missing)])
        ),
    )


def disturbance(
    stage: Stage, rounds: int, *, descriptors: int = 256, slice_ms: int = 300
) -> Comparison:
    """Measure how much a program slows down while it is read, in operations per CPU second.

    The program works on one CPU, the reader loops on the other.  The reference is a reader of
    an unrelated file, because two busy CPUs are slower than one, above all under TCG.
    """
    guest = stage.guest
    read = [f"{PLACE}/bench_read", "loop", str(_READER_CPU)]
    readers: dict[str, tuple[list[str] | None, str | None]] = {
        _NOBODY: (None, None),
        _CONTROL: ([*read, "/proc/kallsyms"], None),
    }
    for name in stage.module.backends:
        readers[f"read by the module, {name}"] = ([*read, PROCFILE], name)
    if "BPF iterator" not in stage.missing:
        readers["read by the BPF iterator"] = ([*read, ITERATOR], None)
    walk = [f"{PLACE}/bench_walk", "loop", str(_READER_CPU), "plain", "/proc"]
    readers["read by the C walk"] = (walk, None)
    values: dict[str, dict[int, float]] = {name: {} for name in readers}
    worker = guest.start([f"{PLACE}/bench_work", str(_WORKER_CPU), str(descriptors)])
    if not worker.read_line(_LOAD_TIMEOUT_S).startswith(b"container "):
        raise BenchError("the program that is read did not start")
    order = list(readers)
    for turn in range(rounds):
        at = turn % len(order)
        for name in [*order[at:], *order[:at]]:
            argv, backend = readers[name]
            with _looping(guest, argv, backend):
                worker.write(f"{slice_ms}\n".encode())
                values[name][turn] = parse_work(worker.read_line(_LOAD_TIMEOUT_S).decode())
    worker.close_stdin()
    worker.wait(_LOAD_TIMEOUT_S, check=True)
    series = [Series(name, values[name]) for name in readers]
    if "BPF iterator" in stage.missing:
        series.append(Series("read by the BPF iterator", why=stage.missing["BPF iterator"]))
    return Comparison(
        "disturbance",
        f"a program is read while it works: open, dup, fstat, pipe, close;"
        f" {descriptors} other descriptors",
        "operations per CPU second",
        _CONTROL,
        tuple(series),
    )


@contextmanager
def _looping(guest: Guest, argv: list[str] | None, backend: str | None) -> Iterator[None]:
    """Keep a reader reading for the time of the block, from its second pass on, if any."""
    if argv is None:
        yield
        return
    if backend is not None:
        with loaded(guest, backend), _looping(guest, argv, None):
            yield
        return
    looper: Background = guest.start(argv)
    if looper.read_line(_READ_TIMEOUT_S) != b"reading\n":
        result = looper.wait(_READ_TIMEOUT_S)
        raise BenchError(
            f"{shlex.join(argv)} did not finish a first pass", found=_reason(result.stderr)
        )
    yield
    looper.close_stdin()
    looper.wait(_READ_TIMEOUT_S, check=True)


def parse_work(line: str) -> float:
    """Return operations per second of "work <operations> <ns>"; raises BenchError."""
    match = re.fullmatch(r"work (\d+) (\d+)\n", line)
    if match is None or int(match[2]) == 0:
        raise BenchError(
            "the program that is read printed an unknown line",
            expected="work <operations> <ns>",
            found=line,
        )
    return int(match[1]) / int(match[2]) * 1e9


def ids(stage: Stage, rounds: int, *, iterations: int = 5000) -> Comparison:
    """Measure the cost of an id in the kernel, in ns, with the module bench_ids."""
    settings, lab, guest = stage.lab.settings, stage.lab, stage.guest
    scratch = settings.build / "bench" / lab.release
    built = module.compile_other(
        settings,
        lab.root,
        headers=lab.headers,
        source=SOURCES / "ids",
        out=scratch / "ids",
        log=scratch / "ids.log",
    )
    guest.put(built, "/tmp/bench_ids.ko")
    values: dict[str, dict[int, float]] = {name: {} for name in _IDS}
    why = None
    for turn in range(rounds):
        done = guest.run(["insmod", "/tmp/bench_ids.ko", f"iterations={iterations}"], timeout_s=60)
        if done.status:
            # insmod only says "Unknown symbol"; the kernel's log names the symbol.
            said = [line for line in guest.console().splitlines() if "bench_ids: " in line]
            why = said[-1].partition("bench_ids: ")[2] if said else _reason(done.stderr)
            break
        for name in _IDS:
            text = guest.read(f"/sys/module/bench_ids/parameters/{name}_ns")
            values[name][turn] = int(text) / iterations
        guest.run(["rmmod", "bench_ids"], timeout_s=20, check=True)
    return Comparison(
        "ids",
        f"ids, {iterations:,} made in each way",
        "ns per id",
        _ID_NAMES["siphash"],
        tuple(
            Series(_ID_NAMES[name], why=why) if why else Series(_ID_NAMES[name], values[name])
            for name in _IDS
        ),
    )


# --- a run ------------------------------------------------------------------------------


def conditions(stage: Stage, rounds: int) -> dict[str, str]:
    """Return the conditions of the measurement, by name."""
    spec = stage.lab.spec
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *GUEST_TOOLS]
    tools = stage.guest.run(query, timeout_s=20, check=True).text
    return {
        "kernel": stage.guest.release,
        "accelerator": spec.accelerator.name,
        "guest": f"{spec.cpus} CPUs, {spec.memory_mib} MiB",
        "host": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs,"
        f" load {os.getloadavg()[0]:.1f}",
        "module": f"{stage.module.vermagic.split()[0]}, backends {' '.join(stage.module.backends)}",
        "tools": tools.removesuffix(", "),
        "rounds": str(rounds),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def verdicts(done: Sequence[Comparison]) -> list[str]:
    """Say for each of AIMS under which loads it was met, and how much being read costs a program.

    Measurements that were not made are left out.
    """
    under_load = [one for one in done if one.name in LOADS]
    said = [stats.judge(aim, under_load) for aim in AIMS] if under_load else []
    for one in done:
        if one.name == "disturbance":
            said += [
                stats.loss(one, series.name)
                for series in one.series
                if series.name not in (_NOBODY, _CONTROL) and series.why is None
            ]
    return said


def describe(state: Mapping[str, str], done: Sequence[Comparison]) -> dict[str, object]:
    """Return the content of a run's JSON file."""
    return {
        "conditions": dict(state),
        "comparisons": [stats.to_json(one) for one in done],
        "aims": verdicts(done),
    }


def check(*, kernel: str, rounds: int, loads: Sequence[str]) -> None:
    """Raise UserError for arguments that :func:`run` does not support."""
    unknown = set(loads) - set(NAMES)
    if unknown:
        raise UserError(f"no such load: {', '.join(sorted(unknown))}", expected=", ".join(NAMES))
    if kernel not in KERNELS:
        raise UserError(f"no such kernel: {kernel}", expected=", ".join(KERNELS))
    if rounds < 1:
        raise UserError("at least one round is needed", found=str(rounds))


def run(
    settings: Settings,
    target: Target,
    *,
    kernel: str = "ours",
    rounds: int = 9,
    loads: Sequence[str] = (),
    accel: str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Path, ...]:
    """Measure on one kernel of a target's image, or on both; return the JSON files.

    ``loads`` lists some of NAMES; by default all are measured.
    """
    check(kernel=kernel, rounds=rounds, loads=loads)
    results = []
    for stock in {"ours": (False,), "stock": (True,), "all": (False, True)}[kernel]:
        with stage(settings, target, stock=stock, accel=accel) as place:
            state = conditions(place, rounds)
            say("\n".join(f"{name}: {value}" for name, value in state.items()) + "\n")
            path = settings.build / "bench" / f"procfile-{place.lab.release}.json"
            done: list[Comparison] = []
            # Written after each comparison, so that an interrupted run keeps its results.
            for comparison in _comparisons(place, rounds, loads):
                done.append(comparison)
                say(stats.render(comparison))
                fs.write_json(path, describe(state, done))
            say("\n".join(verdicts(done)))
            results.append(path)
    return tuple(results)


def _comparisons(place: Stage, rounds: int, names: Sequence[str]) -> Iterator[Comparison]:
    beside = {"ids": ids, "busy-host": busy_host, "disturbance": disturbance}
    for name in names or NAMES:
        yield beside[name](place, rounds) if name in beside else compare(place, LOADS[name], rounds)
