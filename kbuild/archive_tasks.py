"""The tasks on the archive, from promote to sign-archive, as text and as data."""

from __future__ import annotations

from kbuild.answer import Answer
from kbuild.archive import operations, verify
from kbuild.archive.release import Record
from kbuild.core import progress, table
from kbuild.core.errors import UserError
from kbuild.core.model import Settings


def promote(settings: Settings, id: str, percent: int) -> Answer:
    """Let a share of the servers upgrade to a staged release; raises UserError without an ID."""
    _check(id)
    if settings.dry:
        return Answer(text=f"would promote {id} to {percent} % in {settings.archive}")
    record = operations.promote(settings, id, percent)
    return Answer(
        data={"release": describe(record)}, summary=f"{operations.describe(record)}: {record.id}"
    )


def rollback(settings: Settings, id: str, reason: str) -> Answer:
    """Withdraw a release, and say where its servers go; raises UserError without an ID."""
    _check(id)
    if settings.dry:
        return Answer(text=f"would withdraw {id} in {settings.archive}")
    done = operations.rollback(settings, id, reason)
    older = done.older and done.older.id
    return Answer(
        data={"release": describe(done.record), "older": older, "notes": [*done.notes]},
        text="\n".join(done.notes),
        summary=f"withdrawn: {id}{f', back to {older}' if older else ''}",
    )


def releases(settings: Settings) -> Answer:
    """List the releases with their states."""
    found = operations.releases(settings)
    rows = [(one.id, operations.describe(one), _since(one)) for one in found]
    text = table.text(("release", "state", "since"), rows, unbroken=3) if rows else ""
    return Answer(
        data={"archive": settings.archive, "releases": [*map(describe, found)]},
        text=text or f"no release in {settings.archive}",
    )


def verify_archive(settings: Settings) -> Answer:
    """Read the whole archive, and list what is wrong in it."""
    if settings.dry:
        return Answer(text=f"would read {settings.archive}")
    found = verify.check(settings)
    size = progress.size(found.bytes)
    return Answer(
        data={
            "archive": found.root,
            "packages": found.packages,
            "bytes": found.bytes,
            "dists": list(found.dists),
            "releases": found.releases,
            "findings": list(found.findings),
        },
        summary=f"verified: {found.releases} releases, {found.packages} packages, {size}, and"
        f" {len(found.dists)} indexes are whole",
        error=verify.error(found),
    )


def _check(id: str) -> None:
    if not id:
        raise UserError("no release is named", hint="./inv releases lists their IDs")


def sign_archive(settings: Settings, *, withdraw: str = "") -> Answer:
    """Sign all indexes again, and say until when servers accept them.

    ``withdraw`` is the SHA-256 of a certificate for Secure Boot that servers need no more.
    """
    if settings.dry:
        return Answer(text=f"would sign the indexes in {settings.archive}")
    until = operations.resign(settings, withdrawn=withdraw.lower())
    names = ", ".join(until) or "nothing"
    return Answer(
        data={"archive": settings.archive, "until": {n: d.isoformat() for n, d in until.items()}},
        summary=f"signed: {names}"
        + (f", valid until {min(until.values()):%Y-%m-%d}" if until else ""),
    )


def _since(record: Record) -> str:
    return record.history[-1].when if record.history else ""


def describe(record: Record) -> dict[str, object]:
    """Return a record as docs/reference/json.md describes it."""
    names = ("id", "suite", "flavour", "variant", "kernel", "version", "state", "percent")
    fields = {name: getattr(record, name) for name in names}
    return fields | {"since": _since(record), "packages": [*record.packages]}
