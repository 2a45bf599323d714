"""Make packages that bring servers from a withdrawn release back to an older one, by apt.

apt installs higher versions only.  So each package that both releases have is made again from the
older release's file, under a version right above the withdrawn one.  With the metapackages, apt
installs the older kernel and module next to the withdrawn ones.  A script takes the withdrawn
kernel out of the boot menu; nothing is removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from debian.deb822 import Deb822

from kbuild.core import fs
from kbuild.core.errors import BuildError
from kbuild.core.model import Package
from kbuild.core.run import run
from kbuild.ship import versions
from kbuild.ship.release import Release

_SCRIPT = Path(__file__).with_name("withdraw.postinst")
_TIMEOUT_S = 600
# Between the withdrawn version and the rollback's number.
SUFFIX = "+rollback"


def packages(
    withdrawn: Release,
    older: Release,
    into: Path,
    *,
    number: int = 1,
    also: Sequence[Release] = (),
    keep: Collection[str] = (),
) -> tuple[Package, ...]:
    """Make the packages that lead from ``withdrawn`` to ``older``, in ``into``.

    ``number`` rises when servers may have an earlier rollback from ``withdrawn``.  ``also`` are
    other withdrawn releases that a server may have.  The image's metapackage lists the kernels of
    all in /usr/share/cplayground/withdrawn-<flavour>, one release on a line.  ``keep`` names
    packages that stay as they are, because a release that is not withdrawn has them too.
    The same arguments give the same bytes.  Raises BuildError if a package differs from its
    digest, or if dpkg-deb refuses it.
    """
    theirs = {one.name: one.version for one in withdrawn.packages}
    old = {one.name: one.version for one in older.packages}
    new = {
        name: f"{theirs[name]}{SUFFIX}{number}"
        for name in old.keys() & theirs.keys()
        if theirs[name] != old[name] and name not in keep
    }
    flavour = older.target.flavour, older.target.variant
    bad = sorted({one.kernel for one in (withdrawn, *also)} - {older.kernel})
    made = []
    for one in older.packages:
        if one.name not in new:
            continue
        with tempfile.TemporaryDirectory(prefix="cplayground-") as name:
            tree = Path(name) / "tree"
            _unpack(one, tree)
            epoch = int((tree / "DEBIAN/control").stat().st_mtime)
            _renumber(tree / "DEBIAN/control", one.name, old, new)
            if one.name == versions.image_meta(*flavour) and bad:
                listing = Path(f"usr/share/cplayground/withdrawn-{versions.flavour_name(*flavour)}")
                _withdraw(tree, listing, bad)
            path = into / f"{one.name}_{new[one.name]}_{one.architecture}.deb"
            run(
                ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, path],
                timeout_s=_TIMEOUT_S,
                env={"SOURCE_DATE_EPOCH": str(epoch)},
            )
        digest = fs.sha256_file(path)
        made.append(dataclasses.replace(one, version=new[one.name], path=path, sha256=digest))
    return tuple(made)


def _unpack(package: Package, tree: Path) -> None:
    """Unpack files and control files, with modes that do not depend on the caller's umask."""
    found = fs.sha256_file(package.path) if package.path.exists() else "no such file"
    if found != package.sha256:
        raise BuildError(
            f"{package.path.name} has changed since it was built",
            expected=package.sha256,
            found=found,
        )
    run(["dpkg-deb", "--raw-extract", package.path, tree], timeout_s=_TIMEOUT_S)
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _renumber(control: Path, name: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Give a package its new version, also where it depends on others that get one."""
    stanza = Deb822(control.read_text(encoding="utf-8"))
    stanza["Version"] = new[name]
    for field in ("Depends", "Pre-Depends", "Recommends", "Suggests"):
        for other, version in new.items():
            exact = rf"(?<![^\s,|]){re.escape(other)} \(= {re.escape(old[other])}\)"
            if field in stanza:
                stanza[field] = re.sub(exact, f"{other} (= {version})", stanza[field])
    fs.write_atomic(control, stanza.dump())


def _withdraw(tree: Path, listing: Path, kernels: Sequence[str]) -> None:
    """Add the list of withdrawn kernels, and the script that takes them out of the boot menu."""
    text = "".join(f"{kernel}\n" for kernel in kernels)
    fs.write_atomic(tree / listing, text)
    for directory in listing.parents:
        (tree / directory).chmod(0o755)
    sums = tree / "DEBIAN/md5sums"
    line = f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}  {listing}\n"
    fs.write_atomic(sums, (sums.read_text() if sums.exists() else "") + line)
    script = tree / "DEBIAN/postinst"
    if script.exists():
        raise BuildError("the image's metapackage has a postinst of its own", found=str(script))
    fs.write_atomic(script, _SCRIPT.read_bytes(), mode=0o755)
