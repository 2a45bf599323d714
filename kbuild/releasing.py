"""The ``release`` command: from Debian's source to the staging suite of our archive, unattended.

Nothing reaches an index of the archive before a VM and the gate have passed exactly its bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from kbuild import archive_tasks, dry_run, gating, testing
from kbuild.answer import Answer
from kbuild.archive import operations, place, verify
from kbuild.archive.contents import ALL
from kbuild.archive.release import VISIBLE, Record, Release, State
from kbuild.core import fs, progress
from kbuild.core.errors import EvidenceError, SigningError
from kbuild.core.model import Settings, Target
from kbuild.gate import candidate, report
from kbuild.pipeline import papers, stages
from kbuild.pipeline.stage import Made
from kbuild.ship import mok, signing

logger = logging.getLogger(__name__)

STEPS = ("archive", "package", "preview", "test", "papers", "gate", "stage")


@dataclass
class _Clock:
    """The seconds that each step took, of one run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block, and log which step of how many it is."""
        logger.info("release, step %d of %d: %s", STEPS.index(name) + 1, len(STEPS), name)
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 1)


def run(settings: Settings, target: Target, *, modules: str, accel: str | None) -> Answer:
    """Package a target, test and judge it, and put it into the staging of its suite.

    A release that is staged already stays as it is, as long as its evidence holds.  Raises
    SigningError before anything is built if no key can sign, or if nothing would sign the kernel
    after signed releases.  Raises what the stages raise, FailedTestsError, PoolError, and GateError
    if the gate refuses the packages.  The archive then shows servers what it showed before.
    """
    if settings.dry:
        return dry_run.explain(settings, target, modules)
    clock = _Clock()
    # A second run waits, and then finds most of its work done.
    with fs.lock(settings.build / ".release.lock"):
        with clock.step("archive"):
            signing.signers(settings)
            certificates = mok.check(settings)
            for one in certificates[:1]:
                mok.check_valid(one)
            if not certificates:
                _check_unsigned(settings, target)
            operations.refresh(settings)
            check(settings)
        with clock.step("package"):
            made = stages.package(settings, target, modules=modules)
        release = candidate.of(made)
        record = published(settings, release)
        if record is None:
            record = _publish(settings, made, release, clock, modules=modules, accel=accel)
            check(settings)
    took = progress.duration(sum(clock.seconds.values()))
    return Answer(
        data={
            "release": archive_tasks.describe(record),
            "archive": settings.archive,
            "seconds": clock.seconds,
        },
        text="".join(
            f"{name:<10}{progress.duration(s):>12}\n" for name, s in clock.seconds.items()
        ),
        summary=f"{operations.describe(record)}: {record.id}, after {took}",
    )


def _check_unsigned(settings: Settings, target: Target) -> None:
    """Raise SigningError if servers with Secure Boot would refuse an unsigned kernel."""
    before = operations.served_signed(settings, target)
    if before is not None:
        raise SigningError(
            f"{target.name} of {target.suite} would not be signed for Secure Boot",
            expected=f"a signature, because servers may have {before.id}, which is signed",
            found="no mok_certificate in the configuration",
            hint="set mok_certificate and mok_key as in the configuration of that release",
        )


def check(settings: Settings) -> None:
    """Raise the error of verify-archive if anything in an archive is not as it should be."""
    if place.check(settings) and (error := verify.error(verify.check(settings))) is not None:
        raise error


def published(settings: Settings, release: Release) -> Record | None:
    """Return the record of a release that servers may see with exactly these packages.

    It is None if its evidence does not allow the next promotion, so it must be judged again.
    """
    wanted = {one.sha256 for one in release.packages}
    for record in operations.releases(settings):
        same = record.id == release.id and {one.sha256 for one in record.packages} == wanted
        if same and record.state in VISIBLE:
            final = record.state is State.SUPERSEDED or record.percent == ALL
            complaints = () if final else operations.complaints(settings, record.id)
            for one in complaints:
                logger.warning("%s is judged again: %s", record.id, one)
            return None if complaints else record
    return None


def _publish(
    settings: Settings,
    made: Made,
    release: Release,
    clock: _Clock,
    *,
    modules: str,
    accel: str | None,
) -> Record:
    """Test, judge and stage packages."""
    with clock.step("preview"), gating.view(settings, release):
        # A refusal by the archive or by the keys comes before the tests take their time.
        pass
    with clock.step("test"):
        chosen = testing.select(tier="vm", accel=accel, modules=modules)
        tests = testing.run_tests(settings, made.target, chosen)
    with clock.step("papers"):
        sign = functools.partial(signing.sign_detached, settings)
        files = (*papers.write(made, sign=sign), *(one.junit for one in tests))
    with contextlib.ExitStack() as stack:
        with clock.step("gate"):
            judging = gating.judged(settings, release, accel=accel)
            judged, verdict = stack.enter_context(judging)
        with clock.step("stage"):
            try:
                return operations.stage(settings, release, [verdict, *files])
            except EvidenceError:
                # The record says now that it was refused; the gate's own error says more.
                if (error := report.error(judged)) is not None:
                    raise error from None
                raise
