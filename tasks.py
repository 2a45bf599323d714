"""What a user can ask for: arguments in, exit statuses out.

Everything that is done is done by the library, kbuild/.  ``invoke --list`` shows the
tasks, ``invoke --help TASK`` their options; invoke.yaml and INVOKE_* variables set the
defaults, in Invoke's own order.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import inspect
import io
import locale
import logging
import os
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from json import dumps as dump_json
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task

from kbuild import cleaning, every_suite, pipeline, request, testing
from kbuild import doctor as doctor_checks
from kbuild import verify as verification
from kbuild.core import places, progress, suites, variants
from kbuild.core.errors import DefectError, KbuildError, LostDependencyError, UserError, naming
from kbuild.core.model import Settings, Target
from kbuild.core.run import Interrupted, interruptible
from kbuild.core.secrets import redact
from kbuild.every_suite import Step
from kbuild.fetch import roots, source
from kbuild.guest import session, shell
from kbuild.kernel import helpers
from kbuild.lab import loop, mutation, workloads
from kbuild.lab import mutants as mutations
from kbuild.lab import stress as stresses
from kbuild.measure import build as bench_build
from kbuild.measure import build_cases
from kbuild.measure import procfile as bench_procfile
from kbuild.report import kernels as reports
from kbuild.report import text as report_text

PROJECT = Path(__file__).resolve().parent

DEFAULTS = {
    # All are text, because Invoke turns an environment variable into whatever the default is: of a
    # number it makes a traceback, and of "false" something true.
    # empty: this machine's own where it is one of ours, else bookworm and cloud-amd64
    "suite": "",
    "flavour": "",
    "variant": "release",
    "kernel_version": "",
    "modules": "auto",
    "fragments": "",
    "mirrors": "",
    "jobs": "",
    "offline": "",
    "accept_expired": "",
    "revision": "1",
    "build_dir": "build",
    "cache_dir": "",
    "remote_cache": "",
    "scheduler": "",
}

# Option → (default, help).  The default None means: what the configuration says.
_TARGET_OPTIONS = {
    "suite": f"Debian suite: {', '.join(suites.SUITES)}; build-kernel and test also take all",
    "flavour": "cloud-amd64, amd64 (Debian's), or lab (a small kernel for the VM)",
    "variant": f"fragments on the flavour: {', '.join(variants.VARIANTS)}",
    "version": "Debian version of the kernel source, as 6.1.192-2; default: the newest",
}
_JOBS_OPTIONS = {"jobs": "parallel compiler processes; default: as many as cores"}
_ARCHIVE_OPTIONS = {
    "mirror": "base URL of a mirror to try first; may be given several times",
    "offline": "read nothing but the cache",
    "accept-expired": "take an InRelease that is past its Valid-Until, with a warning",
}
_RUN_OPTIONS = {**_ARCHIVE_OPTIONS, **_JOBS_OPTIONS}
_BUILD_OPTIONS = {
    "modules": "keep the distro's modules (fast path), rebuild them, or auto",
    "fragment": "file with kernel configuration of your own; may be given several times",
    "cache": "remote compiler cache: redis://host, redis+unix:///socket or http://host/path",
    "scheduler": "host of an icecream scheduler, whose workers compile along",
}
# Without a kernel of ours, none of these has a meaning.
_OF_OUR_KERNEL = ("modules", "fragment", "cache", "scheduler")
# The lab has a flavour of its own.
_LAB_OPTIONS = {name: text for name, text in _TARGET_OPTIONS.items() if name != "flavour"}
_FLAGS = ("offline", "accept_expired")
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_SEVERAL = ("mirror", "fragment", "workload", "load", "case")


def _settings(config: Mapping[str, object], given: Mapping[str, object], *, dry: bool) -> Settings:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = str(config["cache_dir"]) or str(caches / "cplayground-kernel")
    mirrors = [*_strings(given.get("mirror")), *_strings(config["mirrors"])]
    jobs = _number("jobs", given.get("jobs") or config["jobs"] or 0)
    settings = Settings(
        project=PROJECT,
        # Relative places are resolved against the checkout.
        build=request.place("build_dir", str(config["build_dir"]), PROJECT),
        cache=request.place("cache_dir", cache, PROJECT),
        jobs=jobs or len(os.sched_getaffinity(0)),
        offline=bool(given.get("offline")) or _flag("offline", config["offline"]),
        dry=dry,
        mirrors=tuple(mirrors),
        revision=_number("revision", config["revision"], least=1),
        accept_expired=bool(given.get("accept_expired"))
        or _flag("accept_expired", config["accept_expired"]),
        remote_cache=_text(given.get("cache")) or str(config["remote_cache"]),
        scheduler=_text(given.get("scheduler")) or str(config["scheduler"]),
    )
    helpers.check(settings)
    return settings


def _target(config: Mapping[str, object], given: Mapping[str, object]) -> Target:
    fragments = [*_strings(config["fragments"]), *_strings(given.get("fragment"))]
    return Target(
        suite=str(given.get("suite") or config["suite"] or suites.own_suite()),
        flavour=str(given.get("flavour") or config["flavour"] or suites.own_flavour()),
        variant=str(given.get("variant") or config["variant"] or DEFAULTS["variant"]),
        version=str(given.get("version") or config["kernel_version"]) or None,
        fragments=tuple(request.place("fragment", name, Path.cwd()) for name in fragments),
    )


def _number(name: str, value: object, *, least: int = 0) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < least:
        raise UserError(
            f"{name.replace('_', '-')} is no number that makes sense",
            expected=f"a whole number, {least} or more",
            found=str(value) or "nothing",
        )
    return number


def _flag(name: str, value: object) -> bool:
    text = str(value).lower()
    if text not in _YES + _NO:
        raise UserError(f"{name} is neither yes nor no", expected="true or false", found=text)
    return text in _YES


def _text(value: object) -> str:
    # The option --cache of clean is a flag.
    return value if isinstance(value, str) else ""


def _strings(value: object) -> list[str]:
    if not value:
        return []
    return value.split() if isinstance(value, str) else [str(item) for item in value]  # type: ignore[attr-defined]


class _Formatter(logging.Formatter):
    """Write a log line, the traceback that may follow it included, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _set_up_log(c: Context) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("kbuild")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if c.config.run.echo else logging.INFO)
    root.propagate = False


def _set_up_output() -> None:
    """Let every name be printed; refuse a locale in which files are not read as UTF-8."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name != "utf-8":
        raise UserError(
            f"Python reads and writes files as {encoding} in this locale",
            expected="UTF-8",
            hint="run ./inv, which sees to it; or set PYTHONUTF8=1",
        )


def _known(error: Exception, places: Iterable[Path]) -> KbuildError:
    """Return an exception as an error of ours; the traceback of one nobody foresaw is logged."""
    if isinstance(error, KbuildError):
        return error
    known = DefectError.of(error, places)
    if isinstance(known, DefectError):
        logging.getLogger("kbuild").error("an exception that nobody foresaw", exc_info=error)
    return known


def _command(
    *groups: dict[str, str],
    options: dict[str, str] | None = None,
    ignores: dict[str, Sequence[str]] | None = None,
    every_suite: bool = False,
    reads: bool = False,
    repairs: bool = False,
    root: Callable[[dict[str, object]], bool] | None = None,
) -> Callable[[Callable[..., int | None]], Task[Callable[..., None]]]:
    """Make a task of ``body(settings, target, ...)``, with the common options of ``groups``.

    ``options`` is the help for the body's own keyword-only parameters; ``ignores`` has the options
    without a meaning by the one that takes it from them; ``every_suite`` is for a body that takes
    the suite "all", ``reads`` for one that leaves build/ as it is, ``repairs`` for one that is to
    run where nothing else does.
    ``root`` says for a body's own parameters if it needs root privileges.
    What makes no sense is refused before the body begins.  An exception becomes its text on
    standard error and its own exit status.
    """
    common = {name.replace("-", "_"): text for group in groups for name, text in group.items()}

    def decorate(body: Callable[..., int | None]) -> Task[Callable[..., None]]:
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        parameters = inspect.signature(body).parameters
        own = [one for one in parameters.values() if one.kind is keyword_only]

        @functools.wraps(body)
        def run(c: Context, **given: object) -> None:
            # Results have the same modes for every user; apt reads them as one of its own.
            os.umask(0o022)
            _set_up_log(c)
            written = [Path(os.environ.get("TMPDIR", "/tmp"))]
            try:
                _set_up_output()
                request.check_ignored(given, ignores or {})
                extra = {one.name: _own(one, given[one.name]) for one in own}
                config = request.configured(c.config, DEFAULTS, os.environ)
                if "modules" in parameters:
                    extra["modules"] = given["modules"] or config["modules"] or DEFAULTS["modules"]
                settings = _settings(config, given, dry=_flag("run.dry", c.config.run.dry or ""))
                target = _target(config, given)
                written[:0] = [settings.build, settings.cache]
                for name, value in extra.items():
                    request.check_choice(name, value)
                if "suite" in common:
                    request.check_target(target, every=every_suite)
                if root is not None and not settings.dry and root(extra):
                    roots.check_privileges()
                with interruptible(), contextlib.ExitStack() as stack:
                    if not repairs:
                        writes = not (reads or settings.dry)
                        stack.enter_context(places.held(settings, build=writes))
                    status = body(settings, target, **extra)
            except Exit:
                raise
            except KeyboardInterrupt as error:
                signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
                _say_last("interrupted; the same command takes it up again")
                raise Exit(code=128 + signum) from None
            except Exception as error:
                known = _known(error, written)
                _say_last(f"{known.kind} error: {known}")
                raise Exit(code=known.exit_status) from error
            if status:
                raise Exit(code=status)

        # Invoke makes its options from the signature: the default of a flag is False.  Every other
        # default is None, which tells what was given.  Numbers become text so, and are parsed
        # here: Invoke answers a bad number with a traceback.
        defaults = dict.fromkeys(_FLAGS, False)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("c", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                *(
                    inspect.Parameter(name, keyword_only, default=defaults.get(name))
                    for name in common
                ),
                *(one.replace(default=None) if _is_unsaid(one) else one for one in own),
            ]
        )
        return Task(
            run,
            help={**common, **(options or {})},
            iterable=[name for name in _SEVERAL if name in (*common, *(one.name for one in own))],
            auto_shortflags=False,
        )

    return decorate


def _say_last(text: str) -> None:
    """Write a line to standard error, if there still is one: a terminal may be gone."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Python would try again at its end, and exit with a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _is_unsaid(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty and parameter.default is not False


def _own(parameter: inspect.Parameter, value: object) -> object:
    """Return the value of a body's own parameter, as the body wants it."""
    if value is None and _is_unsaid(parameter):
        return parameter.default
    return _number(parameter.name, value) if type(parameter.default) is int else value


def _say(text: str) -> None:
    try:
        with naming(Path("standard output")):
            print(redact(text), flush=True)
    except OSError as error:
        # Python would try to write the rest when it ends, and complain.
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Exit(code=128 + signal.SIGPIPE) from None
        raise


def _always(_: dict[str, object]) -> bool:
    return True


def _dry(settings: Settings, target: Target, modules: str) -> bool:
    """In a dry run, say what the pipeline would do; the caller then does nothing."""
    if settings.dry:
        _print_steps(settings, target, modules)
    return settings.dry


def _every(
    settings: Settings, target: Target, modules: str, steps: Callable[..., Sequence[Step]]
) -> int:
    """Do something for every suite, print the table, and return the exit status."""
    if settings.dry:
        status = 0
        for name in suites.SUITES:
            _say(f"{name}:")
            try:
                _print_steps(settings, replace(target, suite=name), modules)
            except KbuildError as error:
                _say(f"{error.kind} error: {error}")
                status = status or error.exit_status
        return status
    rows = every_suite.run(target, lambda one: steps(settings, one, modules=modules))
    _say(every_suite.render(rows))
    return every_suite.exit_status(rows)


def _print_steps(settings: Settings, target: Target, modules: str) -> None:
    for step in pipeline.explain(settings, target, modules=modules):
        _say(f"{step.name:<16} {'would run: ' + step.reason if step.reason else 'is current'}")


@_command(_TARGET_OPTIONS, _RUN_OPTIONS)
def fetch(settings: Settings, target: Target) -> None:
    """Fetch the distro's kernel into the cache, every file verified from the archive's key on."""
    base = source.fetch(settings, target)
    _say(f"linux {base.version} ({base.release}), signed by {', '.join(base.signers)}")


@_command(_TARGET_OPTIONS, _BUILD_OPTIONS, _RUN_OPTIONS, every_suite=True, root=_always)
def build_kernel(settings: Settings, target: Target, modules: str) -> int:
    """Fetch, patch, configure and compile a kernel, or with --suite all one of each suite."""
    if target.suite == every_suite.ALL:
        return _every(settings, target, modules, every_suite.build_steps)
    if not _dry(settings, target, modules):
        built = pipeline.build_kernel(settings, target, modules=modules)
        _say(f"{built.release} ({built.method}): {built.output}")
    return 0


@_command(_TARGET_OPTIONS, _BUILD_OPTIONS, _RUN_OPTIONS, root=_always)
def build_module(settings: Settings, target: Target, modules: str) -> None:
    """Build the module against the headers package of the kernel."""
    if not _dry(settings, target, modules):
        made = pipeline.build_module(settings, target, modules=modules)
        _say(f"{made.path} for {made.release}, backends: {', '.join(made.backends)}")


@_command(_TARGET_OPTIONS, _BUILD_OPTIONS, _RUN_OPTIONS, root=_always)
def package(settings: Settings, target: Target, modules: str) -> None:
    """Do the main job: fetch, patch, build, and make packages and an apt repository."""
    if _dry(settings, target, modules):
        return
    done = pipeline.package(settings, target, modules=modules)
    for one in done.packages:
        _say(f"{progress.size(one.path.stat().st_size):>9}  {one.path.name}")
    _say(f"repository: {done.repo}")
    _say(f"manifest:   {done.manifest}")


@_command(
    _TARGET_OPTIONS,
    _BUILD_OPTIONS,
    _RUN_OPTIONS,
    options={
        "k": "run only the tests that match this pytest expression; without --tier of unit and vm",
        "tier": "run only this tier: unit, vm, mutants, or lab",
        "all": "everything, also in the lab, of which --tier lab is a sample: hours",
        "stock": "in the VM, try Debian's own kernel alone: no kernel is compiled; without the lab",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    ignores={
        "stock": _OF_OUR_KERNEL,
        "tier=unit": ("variant", "version", "all", "accel", *_OF_OUR_KERNEL),
        "tier=vm": ("all",),
        "tier=mutants": ("modules",),
        "tier=lab": ("modules",),
    },
    every_suite=True,
    root=lambda own: own["tier"] != "unit",
)
def test(
    settings: Settings,
    target: Target,
    modules: str,
    *,
    k: str | None = None,
    tier: str | None = None,
    all: bool = False,
    stock: bool = False,
    accel: str | None = None,
) -> int:
    """Run the unit tests, those in a VM with the packages, and the mutants on a debug kernel."""
    usual = testing.usual_tiers(whole=all, chosen=bool(k) or stock)
    tiers = (tier,) if tier else usual
    testing.check_tiers(tiers, stock=stock)
    if settings.dry:
        for one in tiers:
            _say(shlex.join(testing.pytest_command(settings, one, ["-k", k] if k else [])))
    if target.suite == every_suite.ALL:
        if settings.dry and stock:
            return 0
        steps = functools.partial(
            every_suite.test_steps, tiers=tiers, keyword=k, accel=accel, whole=all, stock=stock
        )
        failed = None
        if not settings.dry:
            failed = every_suite.unit_tests(settings, target, tiers=tiers, keyword=k)
        status = _every(settings, target, modules, steps)
        if failed is not None:
            _say(f"unit tests: {failed}")
        return failed.exit_status if failed else status
    if settings.dry:
        if not stock:
            _print_steps(settings, target, modules)
        return 0
    testing.run_tests(
        settings,
        target,
        modules=modules,
        tiers=tiers,
        keyword=k,
        accel=accel,
        whole=all,
        stock=stock,
    )
    return 0


@_command(
    {name: text for name, text in _LAB_OPTIONS.items() if name != "variant"},
    _RUN_OPTIONS,
    options={
        "k": "try only the mutants that match this pytest expression",
        "all": "each ten times on each of its backends, the module itself twenty times: hours",
        "refresh": "write the patches anew for kmod/ as it is now, and try none",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    ignores={"refresh": ("k", "all", "accel", "suite", "version", "mirror", "jobs", "offline")},
    root=lambda own: not own["refresh"],
)
def mutants(
    settings: Settings,
    target: Target,
    *,
    k: str | None = None,
    all: bool = False,
    refresh: bool = False,
    accel: str | None = None,
) -> None:
    """Try the module's mutants on the debug kernel, and print which detector killed each."""
    every = mutations.read_all(settings.project / mutations.PATCHES)
    if settings.dry:
        for one in every:
            _say(f"{one.name:<28} {mutation.written(one.detectors)}")
        return
    if refresh:
        for one in every:
            changed = mutations.refresh(one, settings.project / "kmod")
            _say(f"{one.name:<28} {'written anew' if changed else 'is current'}")
        return
    _say(testing.run_mutants(settings, target, keyword=k, accel=accel, whole=all))


@_command(
    _TARGET_OPTIONS,
    _BUILD_OPTIONS,
    _RUN_OPTIONS,
    options={
        "command": "run this in the guest instead of a shell, with this standard input and output",
        "stock": "boot Debian's own kernel instead of ours, of which none is compiled then",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    ignores={"stock": ("variant", *_OF_OUR_KERNEL)},
    root=_always,
)
def vm(
    settings: Settings,
    target: Target,
    modules: str,
    *,
    command: str | None = None,
    stock: bool = False,
    accel: str | None = None,
) -> int:
    """Open a shell in a booted guest with the packages installed."""
    if command is not None:
        session.check(command)
    if stock and settings.dry:
        _say(f"would boot Debian's own kernel of {target.suite}, {target.flavour}")
        return 0
    if _dry(settings, target, modules):
        return 0
    if command is None:
        shell.check_terminal()
    if stock:
        made = pipeline.stock_image(settings, target)
    else:
        made = pipeline.guest_image(
            settings, target, pipeline.package(settings, target, modules=modules)
        )
    return session.run(
        settings, made, variant=target.variant, command=command, stock=stock, accel=accel
    )


@_command(
    _LAB_OPTIONS,
    _RUN_OPTIONS,
    options={
        "minutes": "how long the loads run",
        "seconds": "the same in seconds, instead",
        "workload": "one of the workloads, instead of all in turn; may be given several times",
        "backend": "export or stock; default: the module's own",
        "seed": "what decides the choice and the loads; default: drawn, and shown",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    ignores={"seconds": ("minutes",)},
    root=_always,
)
def stress(
    settings: Settings,
    target: Target,
    *,
    minutes: int = 5,
    seconds: int = 0,
    workload: list[str] | None = None,
    backend: str = "",
    seed: int = 0,
    accel: str | None = None,
) -> None:
    """Run loads, readers and reloads on the module in a guest of the lab, and look for leaks."""
    seed = seed or random.randrange(1, 1 << 32)
    seconds = seconds or minutes * 60
    if settings.dry:
        slowness = variants.variant(target.variant).slowness
        rounds = workloads.plan(workloads.choose(workload or ()), seconds, seed, slowness)
        for one in rounds:
            names = " + ".join(load.name for load in one.workloads)
            _say(f"{one.seconds:>4} s  {names}{', reloaded' * one.reloaded}")
        return
    summary = stresses.run(
        settings,
        replace(target, flavour="lab"),
        seconds=seconds,
        seed=seed,
        workloads=workload or (),
        backend=backend,
        accel=accel,
    )
    _say(stresses.render(summary))


@_command(
    _TARGET_OPTIONS,
    _RUN_OPTIONS,
    options={
        "what": "procfile: reading /proc/cplayground, beside every other way to learn the same; "
        "build: how long a kernel takes to build, in each way",
        "kernel": "of the guest: ours, stock (Debian's own), or all of them, one after the other",
        "rounds": "how often each thing is measured",
        "load": "this load, ids, busy-host or disturbance alone; may be given several times",
        "case": "of build: this measurement alone; may be given several times",
        "before": "of build: the version that was built before a point release",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    ignores={
        "what=build": ("kernel", "rounds", "load", "accel"),
        "what=procfile": ("case", "before"),
    },
    root=_always,
)
def bench(
    settings: Settings,
    target: Target,
    *,
    what: str,
    kernel: str = "ours",
    rounds: int = 9,
    load: list[str] | None = None,
    case: list[str] | None = None,
    before: str = "",
    accel: str | None = None,
) -> None:
    """Measure what reading costs, or what building does, and keep the result as JSON."""
    if what == "build":
        if settings.dry:
            for one in build_cases.choose(target, case or (), before=before):
                _say(f"would measure {one.name:<14} {one.title}")
            return
        path = bench_build.run(settings, target, names=case or (), before=before, say=_say)
        _say(f"result: {path}")
        return
    if what != "procfile":
        raise UserError(
            f"no such benchmark: {what}",
            expected="procfile or build",
            hint="'./inv --help bench' shows its options",
        )
    bench_procfile.check(kernel=kernel, rounds=rounds, loads=load or ())
    if settings.dry:
        _say(f"would measure {what} on the kernel {kernel} of {target.flavour}, {rounds} rounds")
        return
    for path in bench_procfile.run(
        settings, target, kernel=kernel, rounds=rounds, loads=load or (), accel=accel, say=_say
    ):
        _say(f"result: {path}")


@_command(
    {name: text for name, text in _LAB_OPTIONS.items() if name != "variant"},
    _RUN_OPTIONS,
    options={
        "variant": "of the kernel; default: debug, which has all detectors that go together",
        "watch": "again after each edit of kmod/, until it is interrupted",
        "backend": "export or stock; default: the module's own",
        "window-us": "how far the lab's build widens the module's race windows, in microseconds",
        "kmemleak": "let kmemleak scan too, beside counting objects: twice the time or more",
        "accel": "QEMU's accelerator: kvm or tcg; default: kvm if a boot under it is seen",
    },
    root=_always,
)
def try_(
    settings: Settings,
    target: Target,
    *,
    variant: str = "debug",
    watch: bool = False,
    backend: str = "",
    window_us: int = loop.WINDOW_US,
    kmemleak: bool = False,
    accel: str | None = None,
) -> None:
    """Compile kmod/, load it into a restored guest of a debug kernel, and judge it in seconds."""
    target = replace(target, flavour="lab", variant=variant)
    if settings.dry:
        _say(f"would try {settings.project / 'kmod'} on the kernel {target.name}")
        return
    loop.run(
        settings,
        target,
        backend=backend,
        window_us=window_us,
        kmemleak=kmemleak,
        watch=watch,
        accel=accel,
        say=_say,
    )


@_command(
    _ARCHIVE_OPTIONS,
    options={
        "suite": "Debian suite, or all",
        "flavour": "one of Debian's flavours, or all",
        "json": "everything that was found, for a program",
    },
)
def report(
    settings: Settings,
    target: Target,
    *,
    suite: str = "all",
    flavour: str = "all",
    json: bool = False,
) -> int:
    """Say of each kernel whether the patch is needed, whether it applies, and what is new."""
    found = reports.run(settings, target, suite=suite, flavour=flavour)
    if json:
        _say(dump_json(report_text.to_json(found), indent=2))
    else:
        _say(report_text.render(found, terminal=sys.stdout.isatty()).rstrip("\n"))
    return reports.exit_status(found)


@_command(
    options={
        "cache": "also the downloads, roots, trees and compiler cache",
        "roots": "also the roots, which are then made from the archive as it is now",
        "unused": "instead of all that, what no run has used for so many days",
    },
    repairs=True,
)
def clean(
    settings: Settings,
    target: Target,
    *,
    cache: bool = False,
    roots: bool = False,
    unused: str = "",
) -> None:
    """Remove the results in build/, and on request what lies in the cache."""
    if unused and (cache or roots):
        raise UserError("--unused is for itself", found="--cache or --roots beside it")
    if unused:
        removed = cleaning.clean_unused(settings, days=_number("unused", unused, least=1))
    else:
        removed = cleaning.clean(settings, cache=cache, roots=roots)
    for path in removed:
        _say(f"{'would remove' if settings.dry else 'removed'} {path}")


@_command(_JOBS_OPTIONS, repairs=True)
def doctor(settings: Settings, target: Target) -> int:
    """Say what is missing on this machine, and how to get it."""
    findings = doctor_checks.check(settings)
    _say(doctor_checks.render(findings).rstrip("\n"))
    return 0 if doctor_checks.healthy(findings) else LostDependencyError.exit_status


@_command()
def verify(settings: Settings, target: Target) -> None:
    """Read everything that was kept and name what is damaged, which the next run makes again."""
    if settings.dry:
        for path in verification.places(settings):
            _say(f"would read {path}")
        return
    found = []
    for place in verification.check(settings):
        found.append(place)
        _say(f"{place.path}: {place.checked} checked, {len(place.damaged)} damaged")
    if (error := verification.error(found)) is not None:
        raise error


@_command(_TARGET_OPTIONS, _BUILD_OPTIONS, _RUN_OPTIONS, reads=True)
def explain(settings: Settings, target: Target, modules: str) -> None:
    """Say which stages 'package' would run, and why; changes nothing."""
    _print_steps(settings, target, modules)


ns = Collection(
    *(
        fetch,
        build_kernel,
        build_module,
        package,
        test,
        mutants,
        vm,
        stress,
        bench,
        report,
        clean,
        doctor,
        explain,
        verify,
    ),
    # a keyword of Python's, so that the function cannot have the name
    **{"try": try_},
)
ns.configure(DEFAULTS)

if Path(sys.argv[0]).name == "invoke":
    # Invoke's --list and --help end as other programs do when nobody reads on; tasks see to it
    # themselves, and a server that hangs up must not end them.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
