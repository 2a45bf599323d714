"""Make build/repo, an apt repository for a try on the spot, signed with a key of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Package, Settings
from kbuild.ship import indexes, signing
from kbuild.ship.indexes import Group

logger = logging.getLogger(__name__)

# The public key, next to dists/ and pool/.
KEY = "cplayground.gpg"
# In each dists/<suite>; it finds the repository where it was made.
SOURCES = "cplayground-build.sources"


def publish(settings: Settings, suite_packages: Mapping[str, Sequence[Package]]) -> Path:
    """Make build/repo/ anew with the given packages of each suite, and return it.

    It contains exactly these packages.  A reader sees the old repository or the new one.
    Raises BuildError if a package differs from its digest or is none, and SigningError.
    """
    if not suite_packages:
        raise UserError("a repository needs a suite")
    target = settings.build / "repo"
    everything = indexes.unique(one for many in suite_packages.values() for one in many)
    with fs.lock(settings.build / "repo.lock"):
        fs.remove_leftovers(target)
        with (
            fs.fresh_directory(target) as fresh,
            signing.throw_away(settings, fresh / KEY) as sign,
        ):
            now = datetime.now(UTC)
            for suite, packages in sorted(suite_packages.items()):
                pooled = [_pool(fresh, package) for package in indexes.unique(packages)]
                dist = fresh / "dists" / suite
                group = Group(tuple(pooled))
                indexes.write(dist, fresh, suite, [group], now=now, valid=None, sign=sign)
                (dist / SOURCES).write_text(sources(f"file:{target}", suite, target / KEY))
            for path in fresh.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
    logger.info("%s holds %d packages", target, len(everything))
    return target


def sources(uri: str, suite: str, key: Path) -> str:
    """Return the deb822 stanza with which apt finds a repository at ``uri``: file:/mnt/repo."""
    return (
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {indexes.COMPONENT}\n"
        f"Architectures: {indexes.ARCHITECTURE}\nSigned-By: {key}\n"
    )


def _pool(root: Path, package: Package) -> Package:
    """Copy a package into the pool: a second copy, from which a damaged one is replaced."""
    path = root / "pool" / indexes.COMPONENT / package.name / package.path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(package.path, path)
    except FileNotFoundError:
        raise BuildError(
            f"the package {package.path.name} is gone",
            expected=str(package.path),
            hint="run ./inv package again",
        ) from None
    return replace(package, path=path)
