"""The test command: the unit tests, then a VM with the packages installed, judged."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kbuild import pipeline, progress
from kbuild.errors import InfrastructureError, KbuildError, UserError
from kbuild.model import Settings, Target
from kbuild.run import start, stop

logger = logging.getLogger(__name__)

TIERS = ("unit", "vm")

_TIER_TIMEOUT_S = {"unit": 1200.0, "vm": 3600.0}
# pytest's own exit statuses (pytest.ExitCode).
_PASSED, _NOTHING_SELECTED = 0, 5


class FailedTestsError(KbuildError):
    """Tests ran, and some of them failed."""

    kind = "test"


@dataclass(frozen=True)
class TierResult:
    """What one tier of tests came to; the counts are pytest's, from its JUnit file."""

    tier: str
    status: int
    tests: int
    failed: int
    seconds: float
    junit: Path


def run_tests(
    settings: Settings,
    target: Target,
    *,
    modules: str = "auto",
    tiers: Sequence[str] = TIERS,
    keyword: str | None = None,
    accel: str | None = None,
) -> tuple[TierResult, ...]:
    """Run the tiers in order; the VM's needs the packages, and builds what is missing of them.

    ``keyword`` is pytest's -k.  A failing tier does not keep the next one from running.
    Raises FailedTestsError when a test failed or none was run, and what the pipeline raises.
    """
    unknown = set(tiers) - set(TIERS)
    if unknown:
        raise UserError(f"no such tier: {', '.join(sorted(unknown))}", expected=", ".join(TIERS))
    results = []
    for tier in tiers:
        options = ["-k", keyword] if keyword else []
        if tier == "vm":
            done = pipeline.package(settings, target, modules=modules)
            pipeline.check_module(settings, target, done)
            pipeline.check_packages(settings, target, done)
            made = pipeline.guest_image(settings, target, done)
            options += ["--prebuilt", str(pipeline.prebuilt_module(done))]
            options += ["--image", str(made.description), "--cache", str(settings.cache)]
            options += ["--target", f"--suite {target.suite} --flavour {target.flavour}"]
            options += ["--accel", accel] if accel else []
        results.append(_run_tier(settings, tier, options))
    _judge(results)
    return tuple(results)


def pytest_command(settings: Settings, tier: str, options: Sequence[str]) -> list[str]:
    """Return the command that runs one tier."""
    junit = settings.build / "test" / f"{tier}.xml"
    return [
        sys.executable,
        "-m",
        "pytest",
        f"tests/{tier}",
        f"--junitxml={junit}",
        f"--override-ini=junit_suite_name={tier}",
        *options,
    ]


def _run_tier(settings: Settings, tier: str, options: Sequence[str]) -> TierResult:
    junit = settings.build / "test" / f"{tier}.xml"
    junit.parent.mkdir(parents=True, exist_ok=True)
    junit.unlink(missing_ok=True)
    logger.info("running the %s tests", tier)
    began = time.monotonic()
    # pytest talks to the terminal itself: what it says is the result.
    process = start(pytest_command(settings, tier, options), cwd=settings.project)
    try:
        status = process.wait(timeout=_TIER_TIMEOUT_S[tier])
    except subprocess.TimeoutExpired:
        raise InfrastructureError(
            f"the {tier} tests did not end in {progress.duration(_TIER_TIMEOUT_S[tier])}",
            hint=f"see {settings.build / 'test'}; run one of them with -k",
        ) from None
    finally:
        if process.poll() is None:
            stop(process)
    tests, failed = read_junit(junit)
    return TierResult(tier, status, tests, failed, time.monotonic() - began, junit)


def read_junit(path: Path) -> tuple[int, int]:
    """Return how many tests a JUnit file counts, and how many of them failed or broke."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 0
    tests = sum(int(one.get("tests", 0)) for one in suites)
    return tests, sum(int(one.get("failures", 0)) + int(one.get("errors", 0)) for one in suites)


def _judge(results: Sequence[TierResult]) -> None:
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
        raise FailedTestsError(
            "; ".join(
                f"{one.failed} of {one.tests} {one.tier} tests failed"
                if one.failed
                else f"the {one.tier} tests ended with status {one.status}"
                for one in bad
            ),
            hint="the failures above say how to run each one alone",
        )
    if not any(one.tests and one.status == _PASSED for one in results):
        raise FailedTestsError(
            "no test was run", hint="-k names none: ./inv test -k takes pytest's expressions"
        )
