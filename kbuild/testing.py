"""The ``test`` command: the tiers of tests on one kernel, each run by pytest."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from debian.debian_support import Version

from kbuild import dry_run
from kbuild.answer import Answer
from kbuild.core import progress
from kbuild.core.errors import InfrastructureError, KbuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.core.run import start, stop
from kbuild.fetch import roots, source
from kbuild.gate import candidate, server
from kbuild.lab import setup
from kbuild.pipeline import images, lint, stages

logger = logging.getLogger(__name__)

TIERS = ("unit", "vm", "gate", "mutants", "lab")
# The mutants are a sample of the lab: they show that the suite notices bugs.
USUAL_TIERS = ("unit", "vm", "gate", "mutants")
# The mutants are among the lab's tests.
ALL_TIERS = ("unit", "vm", "gate", "lab")
_CHOSEN_TIERS = ("unit", "vm")
_FILES = {"mutants": "tests/lab/test_mutants.py"}
# The kernel of the lab's tests: all detectors that work in one kernel.
LAB_FLAVOUR, LAB_VARIANT = "lab", "debug"

# On top of a server's: the tools of every kind of disk, and UEFI with its GRUB.
_DISK_PACKAGES = (
    "btrfs-progs",
    "dosfstools",
    "grub-efi-amd64-bin",
    "lvm2",
    "mdadm",
    "mtools",
    "ovmf",
    "xfsprogs",
)

_TIER_TIMEOUT_S = {"unit": 1200.0, **dict.fromkeys(("vm", "gate", "mutants", "lab"), 3600.0)}
# For everything that the lab has, each ten times.
_WHOLE_TIMEOUT_S = 8 * 3600.0
# pytest's own exit statuses (pytest.ExitCode).
_PASSED, _MISUSED, _NOTHING_SELECTED = 0, 4, 5


class FailedTestsError(KbuildError):
    """Tests ran, and some of them failed."""

    kind = "test"


class NoTestsError(FailedTestsError):
    """No test was run, so nothing was proved."""

    kind = "empty test"


class MisusedTestsError(FailedTestsError):
    """pytest refused its arguments, such as a -k that is not an expression."""

    kind = "test usage"


@dataclass(frozen=True)
class TierResult:
    """The result of one tier; the counts are those of pytest's JUnit file."""

    tier: str
    status: int
    tests: int
    failed: int
    seconds: float
    junit: Path


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tests to run, and the kernel to run them on."""

    tiers: tuple[str, ...]
    keyword: str | None = None  # pytest's -k
    whole: bool = False  # everything that the lab has, instead of a sample
    stock: bool = False  # only Debian's own kernel: none is compiled
    kernel: str = "all"  # of the image: "ours", "stock", or both
    older: str | None = None  # Debian version that the gate's servers have already
    accel: str | None = None
    modules: str = "auto"


def select(
    *,
    tier: str | None = None,
    keyword: str | None = None,
    whole: bool = False,
    stock: bool = False,
    accel: str | None = None,
    modules: str = "auto",
    older: str | None = None,
) -> Selection:
    """Return the selection of one tier, or of the usual ones without ``tier``.

    The lab builds a kernel of its own, so it is left out if only some tests or Debian's kernel
    are asked for.  Raises UserError for an unknown tier, with ``stock`` for a tier that needs a
    kernel of ours, and with ``older`` if the gate is not among the tiers.
    """
    if tier is not None:
        tiers: tuple[str, ...] = (tier,)
    elif whole:
        tiers = ALL_TIERS
    else:
        tiers = _CHOSEN_TIERS if keyword or stock else USUAL_TIERS
    unknown = [one for one in tiers if one not in TIERS]
    if unknown:
        raise UserError(f"no such tier: {unknown[0]}", expected=", ".join(TIERS))
    ours = [one for one in tiers if one in ("gate", "mutants", "lab")]
    if stock and ours:
        raise UserError(
            f"--stock compiles no kernel, and the tier {ours[0]} needs a kernel of ours",
            expected="--stock with the tiers unit and vm only",
            found=", ".join(tiers),
            hint="leave --stock out, or use --tier vm",
        )
    if older and "gate" not in tiers:
        raise UserError(
            "--older is for the servers of the gate, which is not among the tiers",
            expected="--older with the tier gate",
            found=", ".join(tiers),
            hint="add --tier gate",
        )
    return Selection(
        tiers=tiers,
        keyword=keyword,
        whole=whole,
        stock=stock,
        accel=accel,
        modules=modules,
        older=older,
    )


def run(settings: Settings, target: Target, selection: Selection) -> Answer:
    """Run tests on one kernel, and answer with the results, also if tests failed.

    A dry run only says what it would do.  Raises what the pipeline raises.
    """
    if settings.dry:
        return dry_answer(settings, target, selection)
    results = _run_tiers(settings, target, selection)
    counts = ", ".join(f"{one.tests} {one.tier}" for one in results)
    took = progress.duration(sum(one.seconds for one in results))
    return Answer(
        data={"tiers": results}, summary=f"passed: {counts} tests in {took}", error=judge(results)
    )


def dry_answer(settings: Settings, target: Target, selection: Selection) -> Answer:
    """Answer with the command of each tier and the stages of ``package``.

    The commands are without the options that lead to a guest's image.
    """
    commands = [pytest_command(settings, one, _keyword(selection)) for one in selection.tiers]
    plan = Answer() if selection.stock else dry_run.explain(settings, target, selection.modules)
    return Answer(
        data={"commands": commands, **plan.data},
        text="\n".join([*map(shlex.join, commands), plan.text]),
    )


def run_tests(
    settings: Settings, target: Target, selection: Selection, *, name: str = ""
) -> tuple[TierResult, ...]:
    """Run the tiers in order; the VM's tier builds the packages that are missing.

    ``name`` begins the names of the JUnit files.  The tiers after a failed one still run.
    Raises FailedTestsError if a test failed or no test was run, and what the pipeline raises.
    """
    results = _run_tiers(settings, target, selection, name=name)
    if (error := judge(results)) is not None:
        raise error
    return results


def _run_tiers(
    settings: Settings, target: Target, selection: Selection, *, name: str = ""
) -> tuple[TierResult, ...]:
    results = []
    for tier in selection.tiers:
        options = _keyword(selection)
        if tier == "vm":
            options += _vm_options(settings, target, selection)
        if tier == "gate":
            options += _gate_options(settings, target, selection)
        if tier in ("mutants", "lab"):
            options += _lab_options(settings, target, accel=selection.accel, whole=selection.whole)
        results.append(_run_tier(settings, tier, options, whole=selection.whole, name=name))
        if selection.keyword and results[-1].status == _MISUSED:
            # The next tier would refuse the expression too, after all that it has built.
            break
    return tuple(results)


def _keyword(selection: Selection) -> list[str]:
    return ["-k", selection.keyword] if selection.keyword else []


def _vm_options(settings: Settings, target: Target, selection: Selection) -> list[str]:
    """Prepare the guest's image, and return the options that lead the tests to it.

    The root of the tool's tests comes first: an archive that is gone is told before a compile.
    """
    roots.oldest_python_root(settings)
    again = target.options("suite", "flavour", "variant", "version", "fragment")
    again += f" --modules {selection.modules}" if selection.modules != "auto" else ""
    options = []
    if selection.stock:
        again += " --stock"
        lint.check_stock_module(settings, target)
        made = images.stock_image(settings, target, tools=roots.RUNTIMES)
    else:
        done = stages.package(settings, target, modules=selection.modules)
        lint.check_module(done)
        lint.check_packages(done)
        made = images.guest_image(done, tools=roots.RUNTIMES)
        options += ["--prebuilt", str(images.prebuilt_module(done))]
    options += ["--image", str(made.description), "--target", again]
    options += _place_options(settings, target, selection.accel)
    if settings.jobs > 1 and not selection.keyword:
        # A process for each kernel, because one kernel's guests keep less than one processor busy.
        options += ["-n", "2", "--dist=loadscope"]
    return [*options, "--kernel", selection.kernel]


def _gate_options(settings: Settings, target: Target, selection: Selection) -> list[str]:
    """Package two releases, and return the options that lead the tests to both.

    One is the target's own, the other gives the servers something to upgrade from or to: the
    requested older version, else the target's next revision.
    """
    options = []
    own = (settings, target)
    if selection.older:
        _check_older(settings, target, selection.older)
        pair = {"promoted": (settings, replace(target, version=selection.older)), "candidate": own}
    else:
        newer = replace(settings, revision=settings.revision + 1)
        pair = {"candidate": (newer, target), "promoted": own}
    # The target's own comes last, because it stays in the repository and in the record.
    for name, one in pair.items():
        made = stages.package(*one, modules=selection.modules)
        path = settings.build / "test" / f"gate-{name}.json"
        candidate.write(path, candidate.of(made))
        options += [f"--{name}", str(path)]
    options += ["--server", str(server.stock(settings, made.base).path)]
    packages = (*server.packages(target.suite, dkms=False), *_DISK_PACKAGES)
    disks = roots.make_root(settings, target.suite, "server-disks", packages)
    options += ["--disks", str(disks.path)]
    options += ["--all"] if selection.whole else []
    return [*options, *_place_options(settings, target, selection.accel)]


def _check_older(settings: Settings, target: Target, older: str) -> None:
    """Raise UserError, before anything is compiled, if the archive has no such older version."""
    source.resolve(settings, replace(target, version=older))
    version = source.resolve(settings, target).version
    if Version(older) >= Version(version):
        raise UserError(
            f"--older {older} is not older than the kernel that is judged",
            expected=f"a Debian version before {version}",
            found=older,
        )


def _place_options(settings: Settings, target: Target, accel: str | None) -> list[str]:
    """Return the options that lead a guest's tests to its files."""
    options = ["--suite", target.suite, "--build", str(settings.build)]
    options += ["--cache", str(settings.cache), "--revision", str(settings.revision)]
    options += ["--kernel-version", target.version] if target.version else []
    options += ["--accept-expired"] if settings.accept_expired else []
    return options + (["--accel", accel] if accel else [])


def lab_target(target: Target) -> Target:
    """Return the target whose kernel the lab's tests run on."""
    variant = LAB_VARIANT if target.variant == "release" else target.variant
    return replace(target, flavour=LAB_FLAVOUR, variant=variant)


def _lab_options(
    settings: Settings, target: Target, *, accel: str | None, whole: bool
) -> list[str]:
    """Prepare the lab, and return the options that lead the tests to it."""
    wanted = lab_target(target)
    setup.prepare(settings, wanted, accel=accel)
    options = ["--variant", wanted.variant, *_place_options(settings, wanted, accel)]
    options += [word for path in wanted.fragments for word in ("--fragment", str(path))]
    return options + (["--all"] if whole else [])


def _junit(settings: Settings, tier: str, name: str) -> Path:
    return settings.build / "test" / f"{name}{'-' if name else ''}{tier}.xml"


def pytest_command(
    settings: Settings, tier: str, options: Sequence[str], *, name: str = ""
) -> list[str]:
    """Return the command that runs one tier; ``name`` begins the name of its JUnit file."""
    junit = _junit(settings, tier, name)
    return [
        sys.executable,
        "-m",
        "pytest",
        _FILES.get(tier, f"tests/{tier}"),
        f"--junitxml={junit}",
        f"--override-ini=junit_suite_name={tier}",
        # Each of the other tiers boots one guest at a time.
        *(parallel(settings.jobs) if tier == "unit" else ()),
        *options,
    ]


def parallel(jobs: int) -> tuple[str, ...]:
    """Return pytest's options for running tests in ``jobs`` processes."""
    return ("-n", str(jobs), "--dist=worksteal") if jobs > 1 else ()


def _run_tier(
    settings: Settings,
    tier: str,
    options: Sequence[str],
    *,
    whole: bool = False,
    name: str = "",
) -> TierResult:
    junit = _junit(settings, tier, name)
    junit.parent.mkdir(parents=True, exist_ok=True)
    junit.unlink(missing_ok=True)
    logger.info("running the %s tests", tier)
    began = time.monotonic()
    # pytest writes to the terminal itself.
    command = pytest_command(settings, tier, options, name=name)
    process = start(command, cwd=settings.project)
    limit_s = _WHOLE_TIMEOUT_S if whole else _TIER_TIMEOUT_S[tier]
    try:
        status = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise InfrastructureError(
            f"the {tier} tests did not end within {progress.duration(limit_s)}",
            hint=f"see {settings.build / 'test'}; choose single tests with -k",
        ) from None
    finally:
        if process.poll() is None:
            stop(process)
    tests, failed = read_junit(junit)
    return TierResult(tier, status, tests, failed, time.monotonic() - began, junit)


def read_junit(path: Path) -> tuple[int, int]:
    """Return the number of tests in a JUnit file, and of those that failed or broke."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 0
    tests = sum(int(one.get("tests", 0)) for one in suites)
    return tests, sum(int(one.get("failures", 0)) + int(one.get("errors", 0)) for one in suites)


def judge(results: Sequence[TierResult]) -> FailedTestsError | None:
    """Log each result; return the error if a test failed or no test was run."""
    for one in results:
        logger.info(
            "%s: %d tests, %d failed, %s (%s)",
            one.tier,
            one.tests,
            one.failed,
            progress.duration(one.seconds),
            one.junit,
        )
    bad = [one for one in results if one.status not in (_PASSED, _NOTHING_SELECTED)]
    if bad:
        misused = any(one.status == _MISUSED for one in bad)
        return (MisusedTestsError if misused else FailedTestsError)(
            "; ".join(
                f"{one.failed} of {one.tests} {one.tier} tests failed"
                if one.failed
                else f"the {one.tier} tests ended with status {one.status}"
                for one in bad
            ),
            hint="the failures above show how to run a single test",
        )
    if not any(one.tests and one.status == _PASSED for one in results):
        return NoTestsError(
            "no test was run", hint="no test matches -k, which takes pytest's expressions"
        )
    return None
