"""The gate refuses a release with a planted defect, and says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.archive import operations
from kbuild.archive.release import Release
from kbuild.core.model import Settings
from kbuild.gate import judging, rehearsal, report
from kbuild.gate.report import FAILED
from kbuild.gate.round import names
from kbuild.ship import versions
from tests.gate import planting

Change = Callable[[Path], None]


def image(release: Release) -> str:
    return versions.image_package(release.kernel)


def module(release: Release) -> str:
    return versions.modules_package(release.kernel)


def metapackage(release: Release) -> str:
    return names(release).image


@pytest.mark.parametrize(
    ("package", "change", "case", "reason"),
    [
        pytest.param(
            image,
            planting.failing_postinst,
            "reinstall",
            "planted: this postinst fails",
            id="failing-postinst",
        ),
        pytest.param(
            metapackage,
            planting.missing_dependency,
            "reinstall",
            "gate-nowhere",
            id="missing-dependency",
        ),
        pytest.param(
            module,
            planting.not_loadable,
            "upgrade",
            "the module was not loaded by itself",
            id="module-that-does-not-load",
        ),
        pytest.param(
            module,
            planting.oopsing,
            "upgrade",
            r"console line \d+: NULL dereference: BUG: ",
            id="oops-at-boot",
        ),
        pytest.param(
            image,
            planting.write("boot/vmlinuz-*", b"no kernel\n" * 5000),
            "upgrade",
            "the kernel wrote nothing to the console",
            id="garbage-as-vmlinuz",
        ),
    ],
)
def test_a_planted_defect_is_found(
    signed: Settings,
    older: Release,
    newer: Release,
    accel: str | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    package: Callable[[Release], str],
    change: Change,
    case: str,
    reason: str,
) -> None:
    bad = planting.plant(newer, package(newer), change, tmp_path)
    scratch = rehearsal.archive(signed, tmp_path / "promoted", [older])
    view = operations.preview(scratch, bad, tmp_path / "view")
    part = f"planted/{request.node.callspec.id}"
    made = judging.run(signed, view, k=case, accel=accel, part=part)
    assert report.error(made) is not None
    (result,) = (one for one in made.cases if one.name == case)
    assert result.outcome == FAILED
    assert re.search(reason, "\n".join(result.reasons)), result.reasons
