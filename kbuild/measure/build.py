"""Measure how long kernels take to build: plainly, in full, on the fast path, after small changes.

Each measurement is a case, and each case can be run on its own.  The results are kept with the
conditions they were measured under.  The table shows every case of a target with its latest run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, places, progress, sandbox
from kbuild.core.errors import KbuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.core.run import run as run_program
from kbuild.core.sandbox import Bind
from kbuild.core.suites import DEBIAN_FLAVOURS
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import (
    compilation,
    helpers,
    kconfig,
    makelog,
    planning,
    quilt,
    remote_cache,
)
from kbuild.measure import misses
from kbuild.measure.build_cases import CASES, FAST, Case, Measurement, choose, read
from kbuild.measure.build_table import render
from kbuild.measure.stats import BenchError
from kbuild.pipeline import images, stages
from kbuild.pipeline.stage import Made
from kbuild.ship import manifest

logger = logging.getLogger(__name__)

_TIMEOUT_S = 24 * 3600.0
_NAMED_MISSES = 20
# Parts of the cache that play no part in what is measured; the benchmark shares them.
_SHARED = (*places.SHELVES, "accelerator", "apt", "locks")
_EXPORT = re.compile(r"^\+EXPORT_SYMBOL(?:_GPL)?\((\w+)\);$", re.MULTILINE)
# A line of "make -n" that compiles one object of C or assembly.
_COMPILES = re.compile(r"\s-c -o \S+\.o\s")


@dataclass(frozen=True)
class Bench:
    """A target to measure, and the places for its builds and results."""

    settings: Settings  # of the user
    target: Target
    before: str  # the version that a point release comes after; "" for none
    cpu: Callable[[], float]  # seconds of CPU time so far, of this process and all it started

    @property
    def home(self) -> Path:
        """The directory of scratch builds."""
        return self.settings.build / "bench" / "build" / self.target.suite / self.target.name

    @property
    def result(self) -> Path:
        """The file that holds the results."""
        name = f"build-{self.target.suite}-{self.target.name}.json"
        return self.settings.build / "bench" / name


def run(
    settings: Settings,
    target: Target,
    *,
    names: Sequence[str] = (),
    before: str = "",
    say: Callable[[str], None] = print,
) -> Path:
    """Measure the cases asked for, print the table, and return the file with the results.

    After a failed case the others are still measured.  The table names each failure, and the
    first one is raised after it.
    """
    cases = choose(target, names, before=before)
    if any(case.name == "point-release" for case in cases):
        check_before(settings, target, before)
    absent: dict[str, str] = {}
    failures: list[KbuildError] = []
    with cpu_account() as cpu:
        bench = Bench(settings, target, before, cpu)
        if not names and (why := _no_fast_path(bench, cases)) is not None:
            absent = dict.fromkeys(FAST, why)
            cases = tuple(case for case in cases if case.name not in absent)
        for case in cases:
            try:
                measure(bench, case)
            except KbuildError as error:
                logger.error("%s: %s error: %s", case.name, error.kind, error)
                absent[case.name] = f"FAILED: {error.kind} error: {error.what}"
                failures.append(error)
    say(render(bench.target, read(bench.result), _siblings(bench), absent=absent))
    if failures:
        raise failures[0]
    return bench.result


def check_before(settings: Settings, target: Target, before: str) -> None:
    """Raise UserError unless ``before`` is an older version that the archive has.

    This check comes first, because the case that needs the version comes after hours of others.
    """
    newest = source.resolve(settings, target).version
    source.resolve(settings, dataclasses.replace(target, version=before))
    if before == newest:
        raise UserError(f"--before {before} is the newest version", found=newest)


def _no_fast_path(bench: Bench, cases: Sequence[Case]) -> str | None:
    """Return why this kernel has no fast path; None if it has one or no case needs one."""
    if not any(case.name in FAST for case in cases):
        return None
    base = source.fetch(bench.settings, bench.target)
    headers = unpack.unpack_deb(bench.settings, base.headers)
    config = headers / "usr/src" / f"linux-headers-{base.release}" / ".config"
    distro = kconfig.read(config, strict=False)
    method, reason = planning.choose_method(bench.target, distro, (), "auto")
    return None if method == "fast" else reason


def measure(bench: Bench, case: Case) -> Measurement:
    """Measure one case and keep the result; a case that it needs is measured first."""
    if case.needs and not any(_private_cache(bench, case.needs).glob("ccache/*/*")):
        logger.info("%s needs the compiler cache of %s, measured first", case.name, case.needs)
        measure(bench, CASES[case.needs])
    logger.info("measuring: %s", case.title)
    found = _MEASURE[case.name](bench, case)
    fs.write_json(bench.result, {**_raw(bench.result), case.name: dataclasses.asdict(found)})
    logger.info(
        "%s: %s, %s of CPU time",
        case.name,
        progress.duration(found.wall_s),
        progress.duration(found.cpu_s),
    )
    return found


def _raw(path: Path) -> dict[str, object]:
    return {name: dataclasses.asdict(one) for name, one in read(path).items()}


def _siblings(bench: Bench) -> dict[str, Measurement]:
    """Return the results of cloud-amd64, from which a full build of amd64 is extrapolated."""
    if bench.target.flavour != "amd64":
        return {}
    target = dataclasses.replace(bench.target, flavour="cloud-amd64")
    return read(dataclasses.replace(bench, target=target).result)


# Running a case.


@dataclass(frozen=True)
class _Clock:
    """The wall time, the CPU time and the load at one moment."""

    wall: float
    cpu: float
    load: float
    began: str


@contextlib.contextmanager
def cpu_account(
    *, mounts: Path = Path("/proc/mounts"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[Callable[[], float]]:
    """Count the CPU time of this process and of everything that it starts.

    Yields a function that returns the seconds, which are those of a control group (cgroups(7),
    version 2).  The times of wait(2) lack the compilers in a root, because bwrap(1) does not
    wait for the processes that it started.  Raises BenchError if no group can be made.
    """
    try:
        top = next(
            Path(fields[1])
            for fields in (line.split() for line in mounts.read_text().splitlines())
            if fields[2] == "cgroup2"
        )
        ours = next(
            line.partition("::")[2].lstrip("/")
            for line in own.read_text().splitlines()
            if line.startswith("0::")
        )
        home = top / ours
        group = home / f"cplayground-bench-{os.getpid()}"
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except (OSError, StopIteration) as error:
        raise BenchError(
            "CPU time cannot be measured here: no control group can be made",
            expected="a mounted cgroup2 file system, and root privileges",
            found=str(error) or "no cgroup2 file system, or this process is in none of its groups",
        ) from error
    try:
        yield lambda: cpu_seconds((group / "cpu.stat").read_text())
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        # A process that we started may not have ended yet.
        with contextlib.suppress(OSError):
            group.rmdir()


def cpu_seconds(stat: str) -> float:
    """Return the seconds in the text of a control group's cpu.stat; raises BenchError."""
    for line in stat.splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    raise BenchError("a control group's cpu.stat has no usage_usec", found=stat)


def _now(bench: Bench) -> _Clock:
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return _Clock(time.monotonic(), bench.cpu(), os.getloadavg()[0], began)


def _found(bench: Bench, case: Case, start: _Clock, version: str, **more: object) -> Measurement:
    end = _now(bench)
    return dataclasses.replace(
        Measurement(
            case=case.name,
            version=version,
            wall_s=round(end.wall - start.wall, 3),
            cpu_s=round(end.cpu - start.cpu, 3),
            began=start.began,
            host=f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs",
            load=(round(start.load, 2), round(end.load, 2)),
            jobs=bench.settings.jobs,
            commit=manifest.project_commit(bench.settings.project) or "",
        ),
        **more,  # type: ignore[arg-type]
    )


def _private_cache(bench: Bench, method: str, *, empty: bool = False) -> Path:
    """Make a cache directory with its own compiler cache and the rest of the machine's cache."""
    cache = bench.home / f"cache-{method}"
    if empty:
        fs.remove_tree(cache / "ccache")
    cache.mkdir(parents=True, exist_ok=True)
    # On a new machine none of them exists yet.  Each is made here, so that it is filled once only.
    for shelf in _SHARED:
        (bench.settings.cache / shelf).mkdir(parents=True, exist_ok=True)
        if not (cache / shelf).exists():
            (cache / shelf).symlink_to(bench.settings.cache / shelf)
    (cache / "ccache").mkdir(exist_ok=True)
    return cache


def _alone(bench: Bench, cache: Path, name: str) -> Settings:
    """Return the settings of an empty build directory, without other machines' help."""
    build = bench.home / name
    fs.remove_tree(build)
    return dataclasses.replace(
        bench.settings, build=build, cache=cache, remote_cache="", scheduler=""
    )


def _built(
    bench: Bench,
    case: Case,
    settings: Settings,
    target: Target,
    modules: str,
    filled: misses.Build | None = None,
) -> Measurement:
    """Time a kernel from compiling to packaging; fetching, unpacking and patching come before.

    ``filled`` is the build that filled the compiler cache used here.
    """
    base = source.fetch(settings, target)
    prepared = stages.prepare(settings, target, base, modules=modules)
    root = roots.compile_root(settings, target.suite)
    made = Made(settings, target, modules, base=base, prepared=prepared, root=root)
    home = made.where.version
    start = _now(bench)
    built = stages.kernel(made).ensure()
    compiled_s = bench.cpu()
    # "make bindeb-pkg" makes packages too, so the two can be compared only with this included.
    stages.kernel_packages(dataclasses.replace(made, kernel=built)).ensure()
    found = _found(bench, case, start, base.version, note=built.method)
    objects = sum(name.endswith(".o") for _, _, names in os.walk(built.output) for name in names)
    packing_s = round(found.cpu_s - (compiled_s - start.cpu), 3)
    found = dataclasses.replace(found, objects=objects, packages_cpu_s=packing_s)
    versions = remote_cache.read_statistics(home / "statistics" / helpers.VERSIONS_LOG)
    if versions is not None:
        found = dataclasses.replace(found, versions=(versions.hits, versions.misses))
    said = remote_cache.read_statistics(home / "statistics" / helpers.OBJECTS_LOG)
    if said is None:
        return found
    reasons: Mapping[str, int] = {}
    if filled is not None and filled.output.is_dir():
        reasons = misses.why(said.missed, filled, misses.Build(built.source, built.output))
    return dataclasses.replace(
        found,
        hits=said.hits,
        misses=said.misses,
        missed=said.missed[:_NAMED_MISSES],
        counters=dict(said.counters),
        reasons=reasons,
    )


def _result_of(bench: Bench, name: str, target: Target, version: str) -> misses.Build:
    """Return the places of the scratch build of a case; it may be gone."""
    build = bench.home / name
    return misses.Build(
        source=build / target.suite / f"source-{version}",
        output=build / target.suite / target.name / version / "out",
    )


def _cold(bench: Bench, case: Case) -> Measurement:
    cache = _private_cache(bench, case.name, empty=True)
    modules = "rebuild" if case.name == "full" else "keep"
    settings = _alone(bench, cache, case.name)
    return _built(bench, case, settings, bench.target, modules)


def _warm(bench: Bench, case: Case) -> Measurement:
    cache = _private_cache(bench, case.needs)
    modules = "rebuild" if case.needs == "full" else "keep"
    settings = _alone(bench, cache, case.name)
    cold = read(bench.result).get(case.needs)
    filled = _result_of(bench, case.needs, bench.target, cold.version) if cold else None
    return _built(bench, case, settings, bench.target, modules, filled)


def _point_release(bench: Bench, case: Case) -> Measurement:
    """Build an earlier version cold, then time the newest with the compiler cache that it left."""
    cache = _private_cache(bench, case.name, empty=True)
    older = dataclasses.replace(bench.target, version=bench.before)
    place = f"{case.name}-before"
    first = _built(bench, case, _alone(bench, cache, place), older, "auto")
    settings = _alone(bench, cache, case.name)
    filled = _result_of(bench, place, older, first.version)
    found = _built(bench, case, settings, bench.target, "auto", filled)
    note = (
        f"{found.note}, after {first.version}, which took {progress.duration(first.cpu_s)} of CPU"
    )
    return dataclasses.replace(found, note=note)


def _plain(bench: Bench, case: Case) -> Measurement:
    """Time the kernel's own "make bindeb-pkg", with the configuration of our full build."""
    settings = _alone(bench, bench.settings.cache, case.name)
    base = source.fetch(settings, bench.target)
    prepared = stages.prepare(settings, bench.target, base, modules="rebuild")
    root = roots.compile_root(settings, bench.target.suite)
    home = settings.build / "plain"
    (home / "out").mkdir(parents=True)
    fs.write_atomic(home / "out/.config", prepared.plan.config)
    arguments = [
        part
        for part in compilation.make_arguments(settings, prepared.plan, plain=True)
        if not part.startswith("KERNELRELEASE=")
    ]
    arguments = [part.replace("O=/mnt/out", "O=/mnt/plain/out") for part in arguments]
    own = bench.target.flavour not in DEBIAN_FLAVOURS
    goal = "allnoconfig" if own else "olddefconfig"
    extra = {"KCONFIG_ALLCONFIG": "/mnt/plain/config"} if own else {}
    fs.write_atomic(home / "config", prepared.plan.config)
    binds = [
        Bind(prepared.tree.path, "/mnt/source"),
        # The packages are written next to the output directory.
        Bind(home, "/mnt/plain", writable=True),
    ]
    log = settings.build / "logs" / "plain.log"
    expected = compilation.expected_objects(settings, prepared.plan)
    start = _now(bench)
    # -d: all build dependencies are installed, but dpkg-buildpackage asks for them by names
    # that differ between suites.
    with makelog.compiling("make bindeb-pkg", expected) as on_line:
        for argv, env in (
            ([*arguments, goal], extra),
            ([*arguments, "DPKG_FLAGS=-d", "bindeb-pkg"], {}),
        ):
            sandbox.enter(
                root, argv, timeout_s=_TIMEOUT_S, binds=binds, env=env, log=log, on_line=on_line
            )
    made = [path.name for path in home.glob("*.deb")]
    if not any(name.startswith("linux-image-") for name in made):
        raise BenchError("make bindeb-pkg made no image package", found=", ".join(made), log=log)
    objects = sum(n.endswith(".o") for _, _, names in os.walk(home / "out") for n in names)
    return _found(bench, case, start, base.version, objects=objects, note=f"{len(made)} packages")


def _count(bench: Bench, case: Case) -> Measurement:
    """Count the objects of a full build with "make -n", without compiling them."""
    settings = _alone(bench, bench.settings.cache, case.name)
    base = source.fetch(settings, bench.target)
    prepared = stages.prepare(settings, bench.target, base, modules="rebuild")
    root = roots.compile_root(settings, bench.target.suite)
    out = settings.build / "count"
    out.mkdir(parents=True)
    fs.write_atomic(out / ".config", prepared.plan.config)
    fs.write_atomic(out / "config", prepared.plan.config)
    own = bench.target.flavour not in DEBIAN_FLAVOURS
    goal = "allnoconfig" if own else "olddefconfig"
    extra = {"KCONFIG_ALLCONFIG": "/mnt/out/config"} if own else {}
    arguments = compilation.make_arguments(settings, prepared.plan, plain=True)
    binds = [Bind(prepared.tree.path, "/mnt/source"), Bind(out, "/mnt/out", writable=True)]
    log = settings.build / "logs" / "count.log"
    start = _now(bench)
    for goals, env in (([goal], extra), (["prepare"], {})):
        sandbox.enter(
            root, [*arguments, *goals], timeout_s=_TIMEOUT_S, binds=binds, env=env, log=log
        )
    # -k: -n makes no file, and a target that needs a missing one must not stop the count.
    said = sandbox.enter(
        root,
        [*arguments, "-n", "-k", "vmlinux", "modules"],
        timeout_s=_TIMEOUT_S,
        binds=binds,
        check=False,
    ).stdout
    objects = count_objects(said)
    if not objects:
        raise BenchError("make -n names nothing that it would compile", log=log)
    return _found(bench, case, start, base.version, objects=objects, note="not compiled")


def count_objects(said: str) -> int:
    """Count the compilations in what "make -n" prints."""
    return sum(1 for line in said.splitlines() if _COMPILES.search(line))


def _copied(bench: Bench) -> Settings:
    """Copy the project, so that its patch can be edited; return settings that use the copy."""
    project = bench.home / "project"
    fs.remove_tree(project)
    for name in ("cplayground", "patches", "kmod", "debian", "dkms", "fragments", "guard"):
        shutil.copytree(bench.settings.project / name, project / name, symlinks=True)
    return dataclasses.replace(bench.settings, build=bench.home / "current", project=project)


def _patch(bench: Bench, case: Case) -> Measurement:
    settings = _copied(bench)
    done = stages.package(settings, bench.target)
    series = quilt.choose(settings.project / "patches", done.kernel.base.upstream)
    edit(series.patches[0].path)
    start = _now(bench)
    again = stages.package(settings, bench.target)
    packaged_s = time.monotonic() - start.wall
    if again.kernel.digest == done.kernel.digest:
        raise BenchError("the kernel was not built again after the edit of the patch")
    images.guest_image(again)
    note = f"packaged after {progress.duration(packaged_s)}, then installed on a guest's disk"
    return _found(bench, case, start, again.kernel.base.version, note=note)


def edit(patch: Path) -> None:
    """Change one line of code that a patch adds: an export becomes GPL-only, or no longer is.

    Each of our series has an export.  The change makes the build compile one file and link the
    kernel.  Raises BenchError for a patch that adds no export.
    """
    text = patch.read_text()
    match = _EXPORT.search(text)
    if match is None:
        raise BenchError(f"{patch} adds no export to edit")
    line = match.group(0)
    other = line.replace("_GPL(", "(") if "_GPL(" in line else line.replace("(", "_GPL(", 1)
    fs.write_atomic(patch, text[: match.start()] + other + text[match.end() :])


def _nothing(bench: Bench, case: Case) -> Measurement:
    """Time the command that a user types, including the start of Python."""
    settings = dataclasses.replace(bench.settings, build=bench.home / "current")
    with places.held(settings):
        done = stages.package(settings, bench.target)
    target = bench.target
    argv = [
        *(sys.executable, "-m", "invoke", "package", "--suite", target.suite),
        *("--flavour", target.flavour, "--variant", target.variant),
        *(["--version", target.version] if target.version else []),
        *(["--offline"] if settings.offline else []),
        *(["--accept-expired"] if settings.accept_expired else []),
    ]
    env = {
        "INVOKE_BUILD_DIR": str(settings.build),
        "INVOKE_CACHE_DIR": str(settings.cache),
        "INVOKE_MIRRORS": " ".join(settings.mirrors),
        "INVOKE_FRAGMENTS": " ".join(str(path) for path in target.fragments),
        "INVOKE_REVISION": str(settings.revision),
    }
    start = _now(bench)
    said = run_program(argv, cwd=settings.project, env=env, timeout_s=_TIMEOUT_S)
    found = _found(bench, case, start, done.kernel.base.version)
    if re.search(r"\b(?:unpacking|building|packaging|making) ", said.stderr):
        raise BenchError(
            "./inv package with nothing changed built or packaged something", found=said.stderr
        )
    return found


_MEASURE: Mapping[str, Callable[[Bench, Case], Measurement]] = {
    "plain": _plain,
    "count": _count,
    "full": _cold,
    "full-ccache": _warm,
    "fast": _cold,
    "fast-ccache": _warm,
    "point-release": _point_release,
    "patch": _patch,
    "nothing": _nothing,
}
