"""Why a stage runs: the manifest of its inputs, kept beside its result.

A stage whose manifest is unchanged, and whose outputs are still there, is skipped.  One
that runs says in a line which input changed.  A manifest is a flat mapping from a name
to a string, so that the reason is a difference that a person can read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.fs import write_json

# Changes when the meaning of a stamp does, so that old results are not taken for new ones.
_FORMAT = 1


@dataclass(frozen=True)
class Stamp:
    """A stage's last good run: its inputs, what it made (relative paths), and how long it took."""

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    seconds: float


def digest(inputs: Mapping[str, str]) -> str:
    """Return one SHA-256 for a manifest, 64 hex digits."""
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Stamp | None:
    """Read a stamp; one that is missing, foreign or damaged counts as none."""
    try:
        raw = json.loads(path.read_text())
        if raw["format"] != _FORMAT:
            return None
        return Stamp(dict(raw["inputs"]), tuple(raw["outputs"]), float(raw["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, inputs: Mapping[str, str], outputs: Iterable[Path], seconds: float) -> None:
    """Record a good run; ``outputs`` must lie in the stamp's directory or below it."""
    names = sorted(p.relative_to(path.parent).as_posix() for p in outputs)
    write_json(
        path,
        {"format": _FORMAT, "inputs": dict(inputs), "outputs": names, "seconds": round(seconds, 3)},
    )


def reason(path: Path, inputs: Mapping[str, str]) -> str | None:
    """Say in one line why the stage must run, or return None when it need not."""
    last = read(path)
    if last is None:
        return "it has not been done yet"
    for name in last.outputs:
        if not (path.parent / name).exists():
            return f"its output {name} is gone"
    changed = [
        f"{name} changed from {_short(last.inputs.get(name))} to {_short(inputs.get(name))}"
        for name in sorted(set(last.inputs) | set(inputs))
        if last.inputs.get(name) != inputs.get(name)
    ]
    if not changed:
        return None
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return changed[0] + more


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 24 else value[:12] + "…"
