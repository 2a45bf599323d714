"""Make the apt repository of our packages with reprepro(1)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Package, Settings
from kbuild.core.run import run

logger = logging.getLogger(__name__)

COMPONENT = "main"
_TIMEOUT_S = 600


def publish(settings: Settings, suite_packages: Mapping[str, Sequence[Package]]) -> Path:
    """Make build/repo/ anew with the given packages of each suite, and return it.

    It contains exactly these packages.  A reader sees the old repository or the new one.
    Raises BuildError if a package differs from its digest, or if reprepro refuses it.
    """
    if not suite_packages:
        raise UserError("a repository needs a suite")
    target = settings.build / "repo"
    log = settings.build / "logs" / "repo.log"
    log.unlink(missing_ok=True)
    with fs.lock(settings.build / "repo.lock"):
        # reprepro's own database must not be in the directory that apt reads.
        database = settings.build / "reprepro"
        for path in (target, database):
            fs.remove_leftovers(path)
        with (
            fs.fresh_directory(target) as fresh,
            tempfile.TemporaryDirectory(dir=settings.build, prefix=f".{database.name}.") as work,
        ):
            _make(fresh, Path(work), suite_packages, log)
    logger.info(
        "%s holds %d packages", target, sum(len(unique(p)) for p in suite_packages.values())
    )
    return target


def _make(
    fresh: Path, work: Path, suite_packages: Mapping[str, Sequence[Package]], log: Path
) -> None:
    configuration = work / "conf"
    fs.write_atomic(configuration / "distributions", distributions(suite_packages))
    command = [
        "reprepro",
        "--silent",
        f"--basedir={fresh}",
        f"--confdir={configuration}",
        f"--dbdir={work / 'db'}",
    ]
    for suite, packages in sorted(suite_packages.items()):
        files = [_checked(package) for package in unique(packages)]
        if files:
            run([*command, "includedeb", suite, *files], timeout_s=_TIMEOUT_S, log=log)
    # A suite without packages also needs an index, which says so.
    run([*command, "export"], timeout_s=_TIMEOUT_S, log=log)


def sources_line(repository: str, suite: str) -> str:
    """Return the line for apt's sources.list; ``repository`` is its URI (file:/mnt/repo)."""
    return f"deb [trusted=yes] {repository} {suite} {COMPONENT}\n"


def distributions(suites: Mapping[str, Sequence[Package]]) -> str:
    """Return reprepro's conf/distributions, one stanza for each suite."""
    stanzas = []
    for suite in sorted(suites):
        stanzas.append(
            "\n".join(
                (
                    "Origin: cplayground-kernel",
                    "Label: cplayground-kernel",
                    # unattended-upgrades names an archive by it: "cplayground-kernel:bookworm".
                    f"Suite: {suite}",
                    f"Codename: {suite}",
                    "Architectures: amd64",
                    f"Components: {COMPONENT}",
                    "Description: Kernels with the cplayground exports, and the module",
                )
            )
        )
    return "\n\n".join(stanzas) + "\n"


def unique(packages: Sequence[Package]) -> tuple[Package, ...]:
    """Return packages sorted; a package that is in several sets is listed once.

    Raises BuildError if two files claim to be the same version of a package.
    """
    seen: dict[tuple[str, str, str], Package] = {}
    for package in packages:
        key = (package.name, package.version, package.architecture)
        other = seen.setdefault(key, package)
        if other.sha256 != package.sha256:
            raise BuildError(
                f"there are two different packages {package.name} {package.version}",
                expected=f"{other.sha256}  {other.path}",
                found=f"{package.sha256}  {package.path}",
                hint="raise the revision, or clean build/ and package again",
            )
    return tuple(seen[key] for key in sorted(seen))


def _checked(package: Package) -> Path:
    found = fs.sha256_file(package.path) if package.path.exists() else "no such file"
    if found != package.sha256:
        raise BuildError(
            f"{package.path.name} has changed since it was built",
            expected=package.sha256,
            found=found,
            hint="run ./inv package again",
        )
    return package.path
