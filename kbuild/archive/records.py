"""Keep the record and the evidence of each release in releases/<id>/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kbuild.archive import place
from kbuild.archive.release import Change, Record, State
from kbuild.core import fs
from kbuild.core.errors import EvidenceError, UserError
from kbuild.ship.manifest import Output

# Changes when an earlier version would misread a record.
FORMAT = 1
NAME = "release.json"
HOME = "releases"
_ID = re.compile(r"[a-z0-9][A-Za-z0-9.+~-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def home(root: Path, id: str) -> Path:
    """Return the directory of a release's record and evidence."""
    return root / HOME / id


def read_all(root: Path) -> dict[str, Record]:
    """Return every record by its release's id; raises as :func:`read` does."""
    return {id: read(root, id) for id in ids(root)}


def ids(root: Path) -> list[str]:
    """Return the ids of all releases; anything else that lies there is for verify-archive."""
    found = (path.name for path in (root / HOME).glob("*") if path.is_dir())
    return sorted(name for name in found if _ID.fullmatch(name))


def read(root: Path, id: str) -> Record:
    """Return the record of a release.

    Raises UserError for an unknown release, and for a record of a newer version of this project.
    Raises EvidenceError for a damaged record.
    """
    path = home(root, id) / NAME
    if not _ID.fullmatch(id) or not path.parent.is_dir():
        known = ", ".join(ids(root)) or "none yet"
        raise UserError(f"there is no release {id}", expected=known, found=id)
    try:
        raw = json.loads(path.read_bytes())
        found = int(raw["format"])
        if found > FORMAT:
            raise UserError(
                f"{path} was written by a newer version of this project",
                expected=f"format {FORMAT} or below",
                found=f"format {found}",
                hint=place.NEWER,
            )
        record = _parse(raw)
        if record.id != id:
            raise ValueError(f"it is the record of {record.id}")
    except FileNotFoundError:
        raise _damaged(path, "no such file") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    return record


def _damaged(path: Path, found: str) -> EvidenceError:
    return EvidenceError(
        f"{path} is damaged",
        expected="the record of that release",
        found=found,
        hint="copy it from a backup; './inv verify-archive' lists all damage",
    )


def write(root: Path, record: Record) -> None:
    """Write a record by rename; its directory exists (see :func:`create`)."""
    fs.write_json(home(root, record.id) / NAME, _raw(record))


def create(root: Path, record: Record, files: Mapping[str, Path]) -> None:
    """Write a record with the evidence that it names, all at once; ``files`` are by their names.

    Replaces the record and the evidence of an earlier attempt.
    """
    with fs.fresh_directory(home(root, record.id)) as fresh:
        for name, path in files.items():
            fs.write_atomic(fresh / name, path.read_bytes())
        fs.write_json(fresh / NAME, _raw(record))


def recover(root: Path) -> None:
    """Remove the scratch directories of killed writers; the caller holds the archive's lock.

    A record that was about to be replaced gets its name back (see fs.replace_directory).
    """
    for replaced in (root / HOME).glob(".*.old.*/content"):
        name = replaced.parent.name.removeprefix(".").rpartition(".old.")[0]
        if not (root / HOME / name).exists():
            fs.rename(replaced, root / HOME / name)
    for scratch in (root / HOME).glob(".*"):
        if scratch.is_dir():
            fs.remove_tree(scratch)
    for scratch in (root / HOME).glob("*/.*"):
        if not scratch.is_dir():
            scratch.unlink()


def _raw(record: Record) -> dict[str, Any]:
    return {"format": FORMAT, "id": record.id} | asdict(record)


def _parse(raw: dict[str, Any]) -> Record:
    fields = {name: value for name, value in raw.items() if name not in ("format", "id")}
    changes = ({**one, "state": State(one["state"])} for one in raw["history"])
    record = Record(
        **fields
        | {
            "packages": tuple(Output(**one) for one in raw["packages"]),
            "state": State(raw["state"]),
            "evidence": dict(raw["evidence"]),
            "rollback": tuple(Output(**one) for one in raw["rollback"]),
            "history": tuple(Change(**one) for one in changes),
        }
    )
    for one in (*record.packages, *record.rollback):
        # A record is data: its paths must not lead out of the pool.
        if not one.path.startswith("pool/") or ".." in Path(one.path).parts:
            raise ValueError(f"{one.path} is not in the pool")
        if not _SHA256.fullmatch(one.sha256):
            raise ValueError(f"{one.sha256} is not a SHA-256")
    if not all(Path(name).name == name for name in record.evidence):
        raise ValueError("a piece of evidence has a path")
    return record
