"""A scratch archive in which a release is promoted and rolled back before servers see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kbuild.archive import operations
from kbuild.archive.release import Release
from kbuild.archive.required import REQUIRED
from kbuild.core.model import Settings
from kbuild.gate import report
from kbuild.gate.report import PASSED, CaseResult, Report

_EVERY_SERVER = 100
_NOTE = "rehearsal: a scratch archive takes this for evidence; no case ran"


def archive(settings: Settings, place: Path, releases: Sequence[Release]) -> Settings:
    """Make a scratch archive with releases promoted to every server, and return its settings.

    ``place`` must not exist yet.  ``releases`` are those of one target, the newest first.  The
    archive's own key signs, so that servers with the keyring's package trust it.
    """
    # An archive must not lie in the directory of results, which these settings do not use.
    scratch = dataclasses.replace(settings, archive=place / "archive", build=place / "build")
    for release in reversed(releases):
        stage(scratch, release, place)
        operations.promote(scratch, release.id, _EVERY_SERVER)
    return scratch


def stage(scratch: Settings, release: Release, place: Path) -> None:
    """Stage a release in a scratch archive, whose gate is not the one that judges here."""
    path = place / "evidence" / release.id / report.FILE
    cases = tuple(CaseResult(name, PASSED, notes=(_NOTE,)) for name in REQUIRED)
    made = Report(
        id=release.id,
        packages={one.path.name: one.sha256 for one in release.packages},
        cases=cases,
        older=tuple(one.id for one in operations.releases(scratch)),
        commit="rehearsal",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        accelerator="",
        seconds=0.0,
    )
    report.write(path, made)
    operations.stage(scratch, release, [path])
