"""The tasks ``keys.*``: the archive's keys and the key for Secure Boot, as text and as data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from kbuild.answer import Answer
from kbuild.core import fs
from kbuild.core.model import Settings
from kbuild.options import place
from kbuild.ship import mok, signing
from kbuild.ship.signing import Key


def make(settings: Settings, *, secure_boot: bool = False) -> Answer:
    """Make the archive's first key, or the key for Secure Boot."""
    if secure_boot:
        return _make_mok(settings)
    if settings.dry:
        return Answer(text=f"would make a key in {settings.keys}")
    key = signing.make_key(settings)
    return Answer(
        data={"key": _data(key), "mok": None},
        text=f"{key}\nkeep a copy of {settings.keys}: a lost key cannot be made again",
        summary=f"made: key {key.fingerprint}",
    )


def _make_mok(settings: Settings) -> Answer:
    key, certificate = mok.places(settings)
    if settings.dry:
        return Answer(text=f"would make {key} and {certificate}")
    key, certificate, made = mok.make(settings)
    lines = [
        str(made),
        f"keep a copy of {key}: a lost key cannot be made again, and each server knows only this",
    ]
    if (settings.mok_key, settings.mok_certificate) != (key, certificate):
        lines += ["to sign with it, add to invoke.yaml:", f"mok_key: {key}"]
        lines += [f"mok_certificate: {certificate}"]
    return Answer(
        data={
            "key": None,
            "mok": {
                "path": key,
                "certificate": certificate,
                "name": made.name,
                "expires": made.expires.isoformat(),
                "sha256": made.digest,
            },
        },
        text="\n".join(lines),
        summary=f"made: {key}",
    )


def export(settings: Settings, given: str | None) -> Answer:
    """Write the public keys that servers must know to a file, or return them as text."""
    output = place("output", given, Path.cwd()) if given else None
    if settings.dry and output is not None:
        return Answer(text=f"would write {output}")
    chosen = signing.signers(settings)
    keyring = signing.keyring(settings, armor=output is None or output.suffix == ".asc")
    data = {"keys": [*map(_data, chosen)], "output": output, "armored": None}
    if output is None:
        text = keyring.decode()
        return Answer(data=data | {"armored": text}, text=text)
    fs.write_atomic(output, keyring)
    return Answer(data=data, text=_text(chosen), summary=f"exported: {output}")


def rotate(settings: Settings, *, finish: bool) -> Answer:
    """Make a new key, which signs together with the one before; or retire the one before."""
    if settings.dry:
        what = "retire the older key" if finish else "make a key"
        return Answer(text=f"would {what} in {settings.keys}")
    if finish:
        signing.finish(settings)
    else:
        signing.rotate(settings)
    found = signing.keys(settings)
    return Answer(
        data={"keys": [*map(_data, found)]},
        text=_text(found),
        summary=f"{'retired the older key' if finish else 'rotated'}: "
        f"key {found[-1].fingerprint} signs",
    )


def show(settings: Settings) -> Answer:
    """List the keys with their roles."""
    found = signing.keys(settings)
    none = f"no key in {settings.keys}; ./inv keys.make makes one"
    return Answer(data={"keys": [*map(_data, found)]}, text=_text(found) or none)


def _text(found: Sequence[Key]) -> str:
    return "\n".join(map(str, found))


def _data(key: Key) -> dict[str, object]:
    """Return a key as plain values, as docs/reference/json.md describes it."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in vars(key).items()
    }
