"""Write the papers of a release: everything about its packages that is not a package.

They are the target's record, the .changes and .buildinfo files, the bill of materials, and the
provenance with its signature.  With a key for Secure Boot, the signatures of kernel and module and
the key's certificate are among them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kbuild.core import fs, stamp
from kbuild.core.errors import BuildError
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, manifest, mok, provenance, sbom

MANIFEST = "manifest.json"


def write(made: Made, *, sign: Callable[[bytes], bytes] | None = None) -> tuple[Path, ...]:
    """Write the papers of a target's packages, and return them, sorted by name.

    ``sign`` makes the detached signature of the provenance, as ``signing.sign_detached`` does;
    without it there is none.  Raises BuildError if the packages, their record and their
    .buildinfo files do not agree.
    """
    record = manifest.read(made.where.home / manifest.RECORD)
    if {one.sha256 for one in record.outputs} != {one.sha256 for one in made.packages}:
        raise BuildError("the record is not that of the packages", hint="run ./inv package again")
    records = deb.records(made.packages)
    packagings = [sbom.read_buildinfo(one) for one in records if one.suffix == ".buildinfo"]
    finished = max(one.finished for one in packagings)
    with fs.fresh_directory(made.where.version / "papers") as fresh:
        for path in records:
            fs.write_atomic(fresh / path.name, path.read_bytes())
        for path in mok.papers(made.where.signatures) if _is_signed(record) else ():
            fs.write_atomic(fresh / path.name, path.read_bytes())
        manifest.write(fresh / MANIFEST, record)
        fs.write_atomic(fresh / sbom.NAME, sbom.describe(record, packagings))
        started = min(_started(made), finished)
        statement = provenance.describe(record, started=started, finished=finished)
        provenance.write(fresh / provenance.NAME, statement)
        if sign is not None:
            fs.write_atomic(
                fresh / provenance.SIGNATURE, sign((fresh / provenance.NAME).read_bytes())
            )
    return tuple(sorted((made.where.version / "papers").iterdir()))


def _is_signed(record: manifest.Manifest) -> bool:
    return any(one.build and one.build.certificate for one in record.kernels)


def _started(made: Made) -> datetime:
    """Return when the kernel's build began, by its stamp."""
    mark = made.where.version / "kernel.json"
    last = stamp.read(mark)
    if last is None:
        raise BuildError(f"{mark} is damaged", hint="run ./inv package again")
    ended = datetime.fromtimestamp(mark.stat().st_mtime, UTC)
    return ended - timedelta(seconds=last.seconds)
