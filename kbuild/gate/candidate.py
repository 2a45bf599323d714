"""The release that the last run of ``package`` made for a target, and releases in files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kbuild.archive.release import Release
from kbuild.core import fs
from kbuild.core.errors import UserError
from kbuild.core.model import Package, Settings, Target
from kbuild.pipeline.stage import Made
from kbuild.ship import manifest, versions


def of(made: Made) -> Release:
    """Return the release of packages that the stages made."""
    version = versions.package_version(made.base.version, made.settings.revision)
    return Release(made.target, made.kernel.release, version, made.packages)


def last(settings: Settings, target: Target) -> Release:
    """Return the release whose packages the target's record names.

    Raises UserError if the target was not packaged, BuildError if its record is damaged.
    """
    path = settings.build / target.suite / target.name / manifest.RECORD
    if not path.exists():
        raise UserError(
            f"{target.name} of {target.suite} has no packages",
            expected=str(path),
            hint=f"./inv package {target.options('suite', 'flavour', 'variant')}",
        )
    record = manifest.read(path)
    (kernel,) = record.kernels
    packages = tuple(
        Package(one.name, one.version, one.architecture, settings.build / one.path, one.sha256)
        for one in record.outputs
    )
    image = versions.image_package(kernel.release)
    (version,) = (one.version for one in packages if one.name == image)
    # The version that the user asked for is in the record already.
    plain = Target(target.suite, target.flavour, target.variant)
    return Release(plain, kernel.release, version, packages)


def write(path: Path, release: Release) -> None:
    """Write a release to a file, for :func:`read` in another process."""
    packages = [
        {**dataclasses.asdict(one), "path": str(one.path.absolute())} for one in release.packages
    ]
    target = {
        "suite": release.target.suite,
        "flavour": release.target.flavour,
        "variant": release.target.variant,
    }
    fields = {"target": target, "kernel": release.kernel, "version": release.version}
    fs.write_json(path, {**fields, "packages": packages})


def read(path: Path) -> Release:
    """Read a release that :func:`write` wrote."""
    raw = json.loads(path.read_text())
    packages = tuple(Package(**{**one, "path": Path(one["path"])}) for one in raw["packages"])
    return Release(Target(**raw["target"]), raw["kernel"], raw["version"], packages)
