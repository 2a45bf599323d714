"""The tasks of ``./inv``: options in, calls of the library, exit statuses out.

``./inv --list`` shows the tasks, ``./inv --help TASK`` the options of one.  invoke.yaml and
INVOKE_* variables set defaults, in Invoke's own order.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace

from invoke.collection import Collection

from kbuild import (
    archive_tasks,
    cleaning,
    dry_run,
    every_suite,
    gating,
    releasing,
    reproducing,
    signing_keys,
    testing,
    unattended,
    updating,
)
from kbuild import demo as demonstration
from kbuild import doctor as doctor_checks
from kbuild import verify as verification
from kbuild import vm as guests
from kbuild.answer import Answer
from kbuild.cli import Command, command, old_name, say
from kbuild.core import progress, suites, variants
from kbuild.core.errors import LostDependencyError
from kbuild.core.model import BACKENDS, BuiltKernel, Settings, Target
from kbuild.fetch import source
from kbuild.lab import campaign, kill_matrix, stress_summary, trying, workloads
from kbuild.lab import mutants as mutations
from kbuild.lab import stress as stresses
from kbuild.measure import build as bench_build
from kbuild.measure import build_cases
from kbuild.measure import drawing as bench_drawing
from kbuild.measure import parsing as bench_parsing
from kbuild.measure import procfile as bench_procfile
from kbuild.options import (
    ACCEL,
    ARCHIVE,
    BUILD,
    DEFAULTS,
    FLAVOUR,
    JOBS,
    JSON,
    MODULES,
    RUN,
    SUITE,
    SUITE_OR_ALL,
    TARGET,
    VARIANT,
    VERSION,
    Option,
)
from kbuild.pipeline import papers, stages
from kbuild.report import kernels as reports
from kbuild.report import text as report_text

BUILDER = (*TARGET, *BUILD, *RUN)
BUILDER_OF_ALL = (SUITE_OR_ALL, *BUILDER[1:])
# The kernels of the lab have a flavour of their own.
LAB = (ACCEL, SUITE, VERSION, *RUN)
BACKEND = Option(
    "backend", "backend of the module", default="", choices=BACKENDS, usual="the module's own"
)


def _kernel(built: BuiltKernel) -> dict[str, object]:
    return {
        "release": built.release,
        "suite": built.target.suite,
        "flavour": built.target.flavour,
        "variant": built.target.variant,
        "base_version": built.base.version,
        "method": built.method,
    }


@command(JSON, *TARGET, *RUN)
def fetch(settings: Settings, target: Target) -> Answer:
    """Fetch and verify the source and packages of Debian's kernel.

    ./inv fetch --suite trixie
    """
    base = source.fetch(settings, target)
    names = ("suite", "flavour", "version", "release", "signers", "expired")
    return Answer(
        data={"base": {name: getattr(base, name) for name in names}},
        text=f"linux {base.version} ({base.release}), signed by {', '.join(base.signers)}",
    )


@command(JSON, *BUILDER_OF_ALL, root=True)
def build_kernel(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Fetch, patch, configure and compile a kernel.

    ./inv build-kernel --flavour amd64
    """
    if target.suite == suites.ALL:
        return every_suite.build_kernels(settings, target, modules=modules)
    if settings.dry:
        return dry_run.explain(settings, target, modules)
    built = stages.build_kernel(settings, target, modules=modules)
    return Answer(
        data={"kernel": _kernel(built), "output": built.output},
        text=f"{built.release} ({built.method}): {built.output}",
    )


@command(JSON, *BUILDER, root=True)
def build_module(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Compile the module against the headers package of the kernel.

    ./inv build-module --flavour lab
    """
    if settings.dry:
        return dry_run.explain(settings, target, modules)
    made = stages.build_module(settings, target, modules=modules)
    return Answer(
        data={"module": made},
        text=f"{made.path} for {made.release}, backends: {', '.join(made.backends)}",
    )


@command(JSON, *BUILDER, root=True)
def package(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Build kernel, module and packages, and an apt repository.

    ./inv package --suite bookworm --flavour cloud-amd64
    """
    if settings.dry:
        return dry_run.explain(settings, target, modules)
    done = stages.package(settings, target, modules=modules)
    sizes = {one.path.name: one.path.stat().st_size for one in done.packages}
    return Answer(
        data={
            "kernel": _kernel(done.kernel),
            "packages": [{**vars(one), "size": sizes[one.path.name]} for one in done.packages],
            "repository": done.repo,
            "manifest": done.manifest,
            "seconds": done.took,
        },
        text="\n".join(
            (
                *(f"{progress.size(size):>9}  {name}" for name, size in sizes.items()),
                f"repository: {done.repo}",
                f"manifest:   {done.manifest}",
            )
        ),
        summary=f"packaged {done.kernel.release}: {len(sizes)} packages,"
        f" {progress.size(sum(sizes.values()))}, {progress.duration(sum(done.took.values()))}",
    )


@command(JSON, *BUILDER, root=True)
def sbom(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Write the bill of materials and the provenance of packages.

    ./inv sbom --flavour lab
    """
    if settings.dry:
        return dry_run.explain(settings, target, modules)
    found = papers.write(stages.package(settings, target, modules=modules))
    return Answer(data={"papers": found}, text="\n".join(map(str, found)))


@command(ACCEL, JSON, *BUILDER, root=True)
def release(settings: Settings, target: Target, *, modules: str, accel: str | None) -> Answer:
    """Package, test, judge and stage a kernel.

    ./inv release --suite bookworm --flavour cloud-amd64
    """
    return releasing.run(settings, target, modules=modules, accel=accel)


RELEASE = Option("release", "ID of a release in the archive", first=True)
RECORD = Option("manifest", "manifest.json of a release, of this archive or another")


@command(
    *(JSON, RELEASE, RECORD, SUITE, FLAVOUR, VARIANT, *RUN),
    ignores={"release": (RECORD, SUITE, FLAVOUR, VARIANT), "manifest": (SUITE, FLAVOUR, VARIANT)},
    root=True,
)
def reproduce(
    settings: Settings, target: Target, *, release: str | None, manifest: str | None
) -> Answer:
    """Build packages again elsewhere, and compare them bit for bit.

    Without a release or a manifest, they are those of the target's last 'package'.

    ./inv reproduce --flavour lab
    """
    path = reproducing.find(settings, target, release=release or "", manifest_file=manifest or "")
    return reproducing.run(settings, path)


KEYWORD = Option("k", "pytest expression that selects tests, of unit and vm without --tier")
TIER = Option(
    "tier", "the only tier to run", choices=testing.TIERS, usual="unit, vm, gate and mutants"
)
WHOLE = Option("all", "all tests of unit, vm, gate and lab, which take hours", kind=bool)
STOCK = Option("stock", "only Debian's own kernel is tested, and none is compiled", kind=bool)
OLDER = Option(
    "older",
    "Debian version that the gate's servers upgrade from, such as 6.1.192-2",
    usual="the same version, a revision earlier",
)


@command(
    *(TIER, KEYWORD, OLDER, STOCK, WHOLE, ACCEL, JSON, *BUILDER_OF_ALL),
    ignores={
        "stock": BUILD,
        "tier=unit": (VARIANT, VERSION, WHOLE, ACCEL, *BUILD),
        "tier=vm": (WHOLE,),
        "tier=mutants": (MODULES,),
        "tier=lab": (MODULES,),
    },
    root=lambda own: own["tier"] != "unit",
)
def test(
    settings: Settings,
    target: Target,
    *,
    modules: str,
    tier: str | None,
    k: str | None,
    older: str | None,
    all: bool,
    stock: bool,
    accel: str | None,
) -> Answer:
    """Run the unit tests, the VM tests, the gate and the mutants.

    ./inv test --tier vm --stock -k namespaces
    """
    chosen = testing.select(
        tier=tier,
        keyword=k,
        whole=all,
        stock=stock,
        accel=accel,
        modules=modules,
        older=older,
    )
    run = every_suite.run_tests if target.suite == suites.ALL else testing.run
    return run(settings, target, chosen)


CASES = Option("k", "words of the names of the cases to run; a run of some cases is no evidence")


@command(
    *(RELEASE, CASES, ACCEL, JSON, SUITE, FLAVOUR, VARIANT, *ARCHIVE),
    ignores={"release": (SUITE, FLAVOUR, VARIANT)},
    root=True,
)
def gate(
    settings: Settings, target: Target, *, release: str | None, k: str | None, accel: str | None
) -> Answer:
    """Install and boot packages on a server, and judge them.

    ./inv gate --flavour lab
    """
    return gating.run(settings, target, release=release, k=k, accel=accel)


COMMAND = Option("command", "command that the guest runs, instead of a shell")
STOCK_GUEST = Option("stock", "Debian's own kernel boots, and none is compiled", kind=bool)


@command(
    *(COMMAND, STOCK_GUEST, ACCEL, *BUILDER),
    ignores={"stock": (VARIANT, *BUILD)},
    root=True,
)
def vm(
    settings: Settings,
    target: Target,
    *,
    modules: str,
    command: str | None,
    stock: bool,
    accel: str | None,
) -> int:
    """Open a shell in a guest that has the packages installed.

    ./inv vm --stock --command 'modprobe cplayground && cat /proc/cplayground'
    """
    return guests.run(
        settings, target, modules=modules, command=command, stock=stock, accel=accel, say=say
    )


@command(ACCEL, SUITE, FLAVOUR, VERSION, *RUN, root=True)
def demo(settings: Settings, target: Target, *, accel: str | None) -> Answer:
    """Show the tool: it finds and draws a mistake in a guest.

    ./inv demo
    """
    return demonstration.run(settings, target, accel=accel, say=say)


ANY_SUITE = Option("suite", "Debian suite", default="all", choices=SUITE_OR_ALL.choices)
ANY_FLAVOUR = Option(
    "flavour", "Debian's kernel flavour", default="all", choices=(*suites.DEBIAN_FLAVOURS, "all")
)


@command(ANY_SUITE, ANY_FLAVOUR, JSON, *ARCHIVE)
def report(settings: Settings, target: Target, *, suite: str, flavour: str) -> Answer:
    """Report for each kernel if the patch is needed and applies.

    ./inv report --suite trixie --json
    """
    found = reports.run(settings, target, suite=suite, flavour=flavour)
    return Answer(
        data={"kernels": report_text.to_json(found)},
        text=report_text.render(found, terminal=sys.stdout.isatty()),
        status=reports.exit_status(found),
    )


SOURCE = Option(
    "source", "newest source is fetched (170 MB), to tell if the patch applies", kind=bool
)


@command(
    *(replace(ANY_SUITE, default=None, usual="those of watch_targets"),),
    *(replace(ANY_FLAVOUR, default=None, usual="those of watch_targets"),),
    *(SOURCE, JSON, MODULES, *ARCHIVE),
    reads=True,
)
def check_updates(
    settings: Settings,
    target: Target,
    *,
    suite: str | None,
    flavour: str | None,
    source: bool,
    modules: str,
) -> Answer:
    """Compare Debian's newest kernel with the last promoted one.

    The exit status is 10 if Debian's is newer.

    ./inv check-updates --suite all
    """
    return updating.check(
        settings, target, suite=suite, flavour=flavour, source=source, modules=modules
    )


@command(ACCEL, JSON, *BUILD, *RUN, repairs=True, root=True)
def watch(settings: Settings, target: Target, *, modules: str, accel: str | None) -> Answer:
    """Keep the servers' kernels current: one unattended round.

    It asks Debian's archive, releases, promotes and notifies, as the watch_* keys say.

    ./inv watch
    """
    return unattended.run(settings, target, modules=modules, accel=accel)


@command(JSON, *BUILDER, reads=True)
def explain(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Show which stages of package would run, and why.

    ./inv explain --flavour lab
    """
    return dry_run.explain(settings, target, modules)


@command(JSON)
def verify(settings: Settings, target: Target) -> Answer:
    """Read all kept files and list the damaged ones.

    The next run replaces the damaged files.

    ./inv verify
    """
    if settings.dry:
        paths = verification.places(settings)
        return Answer(
            data={"places": [{"path": path} for path in paths]},
            text="\n".join(f"would read {path}" for path in paths),
        )
    found = []
    for place in verification.check(settings):
        found.append(place)
        say(f"{place.path}: {place.checked} checked, {len(place.damaged)} damaged")
    return Answer(
        data={"places": found},
        summary=f"verified: {sum(place.checked for place in found)} checked, none damaged",
        error=verification.error(found),
    )


@command(JSON, JOBS, repairs=True)
def doctor(settings: Settings, target: Target) -> Answer:
    """Check this machine, and show how to get what is missing.

    ./inv doctor
    """
    findings = doctor_checks.check(settings)
    bad = [one.name for one in findings if not one.ok]
    return Answer(
        data={"checks": findings},
        text=doctor_checks.render(findings),
        summary=f"not ready: {', '.join(bad)}" if bad else f"ready: {len(findings)} checks passed",
        status=0 if doctor_checks.healthy(findings) else LostDependencyError.exit_status,
    )


ALL_CACHES = Option("cache", "caches too: downloads, roots, trees, compiled objects", kind=bool)
ROOTS = Option("roots", "roots too; the next run makes them from the current archive", kind=bool)
UNUSED = Option(
    "unused", "only entries that no run has used for this many days", kind=int, default=0, least=1
)


@command(ALL_CACHES, ROOTS, UNUSED, JSON, ignores={"unused": (ALL_CACHES, ROOTS)}, repairs=True)
def clean(settings: Settings, target: Target, *, cache: bool, roots: bool, unused: int) -> Answer:
    """Remove the results, and on request the caches.

    ./inv clean --unused 30
    """
    if unused:
        removed = cleaning.clean_unused(settings, days=unused)
    else:
        removed = cleaning.clean(settings, cache=cache, roots=roots)
    done = "would remove" if settings.dry else "removed"
    return Answer(data={"removed": removed}, text="\n".join(f"{done} {path}" for path in removed))


WATCH = Option("watch", "module is judged again after each edit of kmod/", kind=bool)
DEBUG_VARIANT = replace(VARIANT, default="debug", key="")
WINDOW = Option(
    "window-us",
    "race windows of the module are widened by this many microseconds",
    kind=int,
    default=trying.WINDOW_US,
)
LEAKS = Option("kmemleak", "kmemleak scans too, which at least doubles the time", kind=bool)


@command(WATCH, DEBUG_VARIANT, BACKEND, WINDOW, LEAKS, *LAB, name="try", root=True)
def try_(
    settings: Settings,
    target: Target,
    *,
    variant: str,
    watch: bool,
    backend: str,
    window_us: int,
    kmemleak: bool,
    accel: str | None,
) -> None:
    """Judge the module in a restored guest of a debug kernel.

    ./inv lab.try --watch
    """
    target = replace(target, flavour="lab", variant=variant)
    if settings.dry:
        say(f"would try {settings.project / 'kmod'} on the kernel {target.name}")
        return
    trying.run(
        settings,
        target,
        backend=backend,
        window_us=window_us,
        kmemleak=kmemleak,
        watch=watch,
        accel=accel,
        say=say,
    )


MINUTES = Option("minutes", "duration of the loads", kind=int, default=5, least=1)

SECONDS = Option("seconds", "duration in seconds, instead of minutes", kind=int, default=0, least=1)
WORKLOAD = Option(
    "workload",
    "load to run",
    kind=list,
    choices=tuple(workloads.WORKLOADS),
    usual="all in turn",
)
SEED = Option("seed", "seed of the choices and the loads", kind=int, default=0, usual="random")


@command(
    *(MINUTES, SECONDS, WORKLOAD, BACKEND, SEED, VARIANT, *LAB),
    ignores={"seconds": (MINUTES,)},
    root=True,
)
def stress(
    settings: Settings,
    target: Target,
    *,
    minutes: int,
    seconds: int,
    workload: tuple[str, ...],
    backend: str,
    seed: int,
    accel: str | None,
) -> None:
    """Run loads and readers on the module, and look for leaks.

    ./inv lab.stress --minutes 30 --variant debug
    """
    seed = seed or random.randrange(1, 1 << 32)
    seconds = seconds or minutes * 60
    if settings.dry:
        slowness = variants.variant(target.variant).slowness
        for one in workloads.plan(workloads.choose(workload), seconds, seed, slowness):
            names = " + ".join(load.name for load in one.workloads)
            say(f"{one.seconds:>4} s  {names}{', reloaded' * one.reloaded}")
        return
    summary = stresses.run(
        settings,
        replace(target, flavour="lab"),
        seconds=seconds,
        seed=seed,
        workloads=workload,
        backend=backend,
        accel=accel,
    )
    say(stress_summary.render(summary))


SOME = Option("k", "pytest expression that selects mutants")
REPEATED = Option(
    "all", "ten trials of each on each backend, twenty of the module itself", kind=bool
)
REFRESH = Option("refresh", "mutants' patches are adapted to kmod/, and none is tried", kind=bool)
PAGE = Option("page", "kill matrix's page is written, and no mutant is tried", kind=bool)


@command(
    *(SOME, REPEATED, REFRESH, PAGE, *LAB),
    ignores={"refresh": (SOME, REPEATED, PAGE, *LAB), "page": (SOME, REPEATED, ACCEL)},
    root=lambda own: not (own["refresh"] or own["page"]),
)
def mutants(
    settings: Settings,
    target: Target,
    *,
    k: str | None,
    all: bool,
    refresh: bool,
    page: bool,
    accel: str | None,
) -> None:
    """Check that the tests find each of the module's known bugs.

    ./inv lab.mutants -k rcu
    """
    every = mutations.read_all(settings.project / mutations.PATCHES)
    if settings.dry:
        for one in every:
            say(f"{one.name:<28} {mutations.written(one.detectors)}")
        return
    if refresh:
        for one in every:
            changed = mutations.refresh(one, settings.project / "kmod")
            say(f"{one.name:<28} {'written anew' if changed else 'is current'}")
        return
    wanted = testing.lab_target(target)
    if page:
        say(str(kill_matrix.write_page(settings, wanted)))
        return
    campaign.run(settings, wanted, keyword=k or "", whole=all, accel=accel, say=say)


CASE = Option(
    "case", "measurement to make", kind=list, choices=tuple(build_cases.CASES), usual="all"
)
BEFORE = Option("before", "version that the case point-release builds first", default="")


@command(CASE, BEFORE, *TARGET, *RUN, name="build", root=True)
def measure_building(
    settings: Settings, target: Target, *, case: tuple[str, ...], before: str
) -> None:
    """Measure how long each way to build a kernel takes.

    ./inv bench.build --case fast --case fast-ccache
    """
    if settings.dry:
        for one in build_cases.choose(target, case, before=before):
            say(f"would measure {one.name:<14} {one.title}")
        return
    path = bench_build.run(settings, target, names=case, before=before, say=say)
    say(f"result: {path}")


KERNEL = Option("kernel", "kernel of the guest", default="ours", choices=bench_procfile.KERNELS)
ROUNDS = Option("rounds", "number of measurements of each kind", kind=int, default=9, least=1)
LOAD = Option("load", "load to measure", kind=list, choices=bench_procfile.NAMES, usual="all")


@command(KERNEL, ROUNDS, LOAD, ACCEL, *TARGET, *RUN, name="procfile", root=True)
def measure_reading(
    settings: Settings,
    target: Target,
    *,
    kernel: str,
    rounds: int,
    load: tuple[str, ...],
    accel: str | None,
) -> None:
    """Measure what reading /proc/cplayground costs.

    ./inv bench.procfile --load sparse --rounds 3
    """
    bench_procfile.check(kernel=kernel, rounds=rounds, loads=load)
    if settings.dry:
        say(f"would measure procfile on the kernel {kernel} of {target.flavour}, {rounds} rounds")
        return
    for path in bench_procfile.run(
        settings, target, kernel=kernel, rounds=rounds, loads=load, accel=accel, say=say
    ):
        say(f"result: {path}")


@command(ROUNDS, name="parse")
def measure_parsing(settings: Settings, target: Target, *, rounds: int) -> None:
    """Measure what the tool takes to parse a million lines.

    ./inv bench.parse --rounds 3
    """
    if settings.dry:
        say(f"would parse {bench_parsing.LOAD.lines:,} lines, {rounds} rounds")
        return
    path = bench_parsing.run(settings, rounds=rounds, say=say)
    say(f"result: {path}")


@command(ROUNDS, name="draw")
def measure_drawing(settings: Settings, target: Target, *, rounds: int) -> None:
    """Measure what the tool takes to draw pictures.

    ./inv bench.draw --rounds 3
    """
    if settings.dry:
        say(f"would draw {len(bench_drawing.SCENES)} pictures, {rounds} rounds")
        return
    path = bench_drawing.run(settings, rounds=rounds, say=say)
    say(f"result: {path}")


PERCENT = Option(
    "percent", "percentage of the servers that upgrade to it: 10, 50 or 100", kind=int, default=10
)


@command(JSON, RELEASE, PERCENT, reads=True)
def promote(settings: Settings, target: Target, *, release: str | None, percent: int) -> Answer:
    """Let servers upgrade to a staged release.

    ./inv releases lists the releases.  At 100 %, older ones are superseded.

    ./inv promote bookworm-cloud-amd64-6.1.192-3+cplayground1 --percent 50
    """
    return archive_tasks.promote(settings, release or "", percent)


REASON = Option("reason", "reason, for the release's history", default="")


@command(JSON, RELEASE, REASON, reads=True)
def rollback(settings: Settings, target: Target, *, release: str | None, reason: str) -> Answer:
    """Withdraw a release, and bring its servers back.

    ./inv rollback bookworm-cloud-amd64-6.1.192-3+cplayground2 --reason 'hangs at boot'
    """
    return archive_tasks.rollback(settings, release or "", reason)


@command(JSON, reads=True)
def releases(settings: Settings, target: Target) -> Answer:
    """List the releases in the archive, with their states.

    ./inv releases
    """
    return archive_tasks.releases(settings)


@command(JSON, reads=True)
def verify_archive(settings: Settings, target: Target) -> Answer:
    """Check the archive: signatures, hashes, records and evidence.

    ./inv verify-archive
    """
    return archive_tasks.verify_archive(settings)


WITHDRAW = Option(
    "withdraw-mok", "SHA-256 of a certificate for Secure Boot that servers need no more", default=""
)


@command(JSON, WITHDRAW, reads=True)
def sign_archive(settings: Settings, target: Target, *, withdraw_mok: str) -> Answer:
    """Sign the archive's indexes again, for another 30 days.

    ./inv sign-archive
    """
    return archive_tasks.sign_archive(settings, withdraw=withdraw_mok)


MOK = Option("mok", "key for Secure Boot is made, in place of the archive's", kind=bool)


@command(JSON, MOK, name="keys.make", reads=True)
def make_key(settings: Settings, target: Target, *, mok: bool) -> Answer:
    """Make the key that signs the archive, or kernels.

    ./inv keys.make --mok
    """
    return signing_keys.make(settings, secure_boot=mok)


OUTPUT = Option("output", "file to write, as text if it ends in .asc", usual="standard output")


@command(JSON, OUTPUT, name="keys.export", reads=True)
def export_keys(settings: Settings, target: Target, *, output: str | None) -> Answer:
    """Export the public keys that servers must know.

    ./inv keys.export --output cplayground-archive-keyring.gpg
    """
    return signing_keys.export(settings, output)


FINISH = Option("finish", "older key retires now, and no key is made", kind=bool)


@command(JSON, FINISH, name="keys.rotate", reads=True)
def rotate_keys(settings: Settings, target: Target, *, finish: bool) -> Answer:
    """Make a new key; the one before signs too for 60 days.

    ./inv keys.rotate
    """
    return signing_keys.rotate(settings, finish=finish)


@command(JSON, name="keys.list", reads=True)
def list_keys(settings: Settings, target: Target) -> Answer:
    """List the archive's keys, and tell which of them sign.

    ./inv keys.list
    """
    return signing_keys.show(settings)


VERBS: tuple[Command, ...] = (
    *(demo, fetch, build_kernel, build_module, package, sbom, reproduce, test, gate, vm),
    *(release, promote, rollback, releases, verify_archive, sign_archive),
    *(check_updates, watch, report, explain, verify, doctor, clean),
)
KEYS = {
    "keys.make": make_key,
    "keys.export": export_keys,
    "keys.rotate": rotate_keys,
    "keys.list": list_keys,
}
TRIALS = {"lab.try": try_, "lab.stress": stress, "lab.mutants": mutants}
BENCHES = {
    "bench.build": measure_building,
    "bench.procfile": measure_reading,
    "bench.parse": measure_parsing,
    "bench.draw": measure_drawing,
}

bench = Collection("bench", *BENCHES.values())
bench.add_task(old_name("bench", BENCHES, word="what"), default=True)
keys = Collection("keys", *KEYS.values())
ns = Collection(*VERBS, Collection("lab", *TRIALS.values()), keys, bench)
for name, one in TRIALS.items():
    ns.add_task(old_name(one.name, {name: one}))
ns.configure(DEFAULTS)
