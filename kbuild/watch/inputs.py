"""Digest what a release depends on, so that a verdict on it is not asked for twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kbuild.archive.release import Record
from kbuild.core import fs, recipe, stamp
from kbuild.core.model import Settings, Target

# The parts of the checkout that make or judge a release.
_PARTS = (
    *("cplayground", "debian", "dkms", "fragments", "guard", "kbuild", "kmod", "patches"),
    *("tests/gate", "tests/vm"),
)
# Rooms of kbuild that neither make nor judge one.
_OTHERS = ("measure", "report", "watch")


def of_release(
    target: Target,
    *,
    code: str,
    configured: str,
    version: str,
    modules: str,
    records: Iterable[Record],
) -> str:
    """Return the digest of all inputs of a release that are known before it is built.

    They are the package version, the digests of our ``code`` and of the ``configured`` signing,
    the target's configuration, and the older releases from which the gate's servers come.
    """
    return stamp.digest(
        {
            "version": version,
            "target": f"{target.suite} {target.name}",
            "modules": modules,
            "fragments": " ".join(fs.sha256_file(path) for path in target.fragments),
            "code": code,
            "configured": configured,
            "older": " ".join(sorted(one.id for one in records if one.published)),
        }
    )


def configured(settings: Settings) -> str:
    """Return the digest of the settings that decide how servers get and verify a release."""
    certificate = settings.mok_certificate
    there = certificate is not None and certificate.is_file()
    return stamp.digest(
        {
            "url": settings.archive_url,
            "certificate": fs.sha256_file(certificate) if certificate and there else "",
            "signs": f"{bool(settings.mok_key)} {bool(settings.mok_sign_command)}",
        }
    )


def code(project: Path) -> str:
    """Return the digest of the code that makes and judges releases."""
    files = sorted(path for part in _PARTS for path in _files(project / part))
    names = " ".join(path.relative_to(project).as_posix() for path in files)
    return stamp.digest({"names": names, "content": recipe.digest(*files)})


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        inside = path.relative_to(directory).parts
        other = directory.name == "kbuild" and inside[0] in _OTHERS
        if path.is_file() and "__pycache__" not in inside and not other:
            yield path
