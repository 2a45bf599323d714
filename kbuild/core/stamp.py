"""Stamps: the recorded inputs and outputs of a result, which say whether it is still current.

A stage is skipped if its inputs are unchanged and its outputs are undamaged.  Otherwise one
line says which input changed, or which output is damaged.  Inputs are a flat mapping from names
to strings, so that a person can read the difference.

A stamp records each output (:mod:`kbuild.core.contents`): a file in the stamp itself, a directory
in a file next to it.  Outputs reach the disk before the stamp does, so a power cut leaves no
stamp of empty files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kbuild.core import contents, fs
from kbuild.core.contents import Difference, Entry

# Changes when the meaning of a stamp does, so that old results are not mistaken for new ones.
# Earlier stamps list only the names of their outputs.  Such a stamp is valid if its outputs exist
# and no file is empty.  It is then written anew, and nothing is compiled.  The versions that
# wrote such stamps can read ours.
_FORMAT = 1
_NAMED = 3  # differences that a reason names


@dataclass(frozen=True)
class Output:
    """The record of a file or a directory that a stage made."""

    entry: Entry | None = None  # of a file
    listing: str = ""  # SHA-256 of a directory's record
    look: str = ""  # contents.look() of a directory; "" to compare it file by file
    entries: int = 0  # in a directory


@dataclass(frozen=True)
class Stamp:
    """A stage's last good run: its inputs, its outputs (relative paths), and how long it took."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, Output | None]  # None in an earlier stamp
    seconds: float


@dataclass(frozen=True)
class Damage:
    """An output that differs from its record."""

    output: str
    differences: tuple[Difference, ...]
    entries: int  # recorded entries of a directory; 0 for a file

    def __str__(self) -> str:
        """Describe the damage in one line, with the first differences by name."""
        if not self.entries:
            gone = [one.what for one in self.differences] == ["gone"]
            damaged = f"is damaged: {'; '.join(map(str, self.differences))}"
            return f"{self.output} {'is gone' if gone else damaged}"
        named = ", ".join(map(str, self.differences[:_NAMED]))
        more = len(self.differences) - _NAMED
        return (
            f"{self.output} is damaged: {len(self.differences):,} of {self.entries:,} files: "
            f"{named}{f' and {more:,} more' if more > 0 else ''}"
        )


def digest(inputs: Mapping[str, str]) -> str:
    """Return one SHA-256 for a manifest, 64 hex digits."""
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Stamp | None:
    """Read a stamp; return None if it is missing, foreign or damaged."""
    return fs.read_json(path, _parse)


def _parse(raw: dict[str, Any]) -> Stamp:
    if raw["format"] != _FORMAT:
        raise ValueError(f"its format is {raw['format']}, not {_FORMAT}")
    outputs: dict[str, Output | None] = dict.fromkeys(map(str, raw["outputs"]))
    if isinstance(raw["outputs"], dict):
        outputs = {name: _output(one) for name, one in raw["outputs"].items()}
    return Stamp(dict(raw["inputs"]), outputs, float(raw["seconds"]))


def _output(raw: dict[str, Any]) -> Output:
    return Output(**raw | {"entry": Entry(**raw["entry"]) if raw["entry"] else None})


def write(
    path: Path,
    inputs: Mapping[str, str],
    outputs: Iterable[Path],
    seconds: float,
    *,
    sync: bool = True,
) -> None:
    """Record a good run; ``outputs`` must lie in the stamp's directory or below it.

    The outputs are synced first.  Without ``sync`` this is left to the
    :func:`kbuild.core.fs.fresh_directory` that holds them and the stamp.
    """
    made = {output.relative_to(path.parent).as_posix(): output for output in outputs}
    if sync:
        fs.sync(*made.values())
    recorded = {}
    for name, output in sorted(made.items()):
        entries = contents.record(output)
        recorded[name] = (
            Output(
                listing=contents.write(_listing(path, name), entries),
                look=contents.look(output),
                entries=len(entries),
            )
            if output.is_dir()
            else Output(entry=entries[""])
        )
    _write(path, Stamp(inputs, recorded, round(seconds, 3)))


def _write(path: Path, made: Stamp) -> None:
    fs.write_json(path, {"format": _FORMAT, **asdict(made)})


def _listing(path: Path, output: str) -> Path:
    return path.with_name(f"{path.stem}.{output.replace('/', '+')}.files")


def reason(path: Path, inputs: Mapping[str, str]) -> str | None:
    """Return one line that says why the stage must run, or None if it need not."""
    return _reason(path, read(path), inputs)[0]


def due(path: Path, inputs: Mapping[str, str]) -> str | None:
    """Return the same as :func:`reason`, and complete a valid stamp that says too little.

    Such a stamp is one of an earlier version, or of files that were copied without their times.
    """
    last = read(path)
    why, exact = _reason(path, last, inputs)
    if last and why is None and not exact:
        write(path, last.inputs, [path.parent / name for name in last.outputs], last.seconds)
    return why


def _reason(path: Path, last: Stamp | None, inputs: Mapping[str, str]) -> tuple[str | None, bool]:
    if last is None:
        return "its stamp is damaged" if path.exists() else "it has not been done yet", False
    changed = [
        f"{name} changed from {_short(last.inputs.get(name))} to {_short(inputs.get(name))}"
        for name in sorted(set(last.inputs) | set(inputs))
        if last.inputs.get(name) != inputs.get(name)
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return changed[0] + more, False
    exact = True
    for name, one in last.outputs.items():
        found, same = _compare(path, name, one, thorough=False)
        if found:
            return f"its output {found}", False
        exact = exact and same
    return None, exact


def damage(path: Path, *, thorough: bool = False) -> tuple[Damage, ...]:
    """Return the damaged outputs of a stage; none if there is no stamp.

    ``thorough`` reads every file.
    """
    last = read(path)
    if last is None:
        unread = Damage(path.name, (Difference("", "it is not a stamp"),), 0)
        return (unread,) if path.exists() else ()
    found = (_compare(path, name, one, thorough=thorough) for name, one in last.outputs.items())
    return tuple(one for one, _ in found if one)


def _compare(
    path: Path, name: str, recorded: Output | None, *, thorough: bool
) -> tuple[Damage | None, bool]:
    """Return the damage of an output, and whether its sizes and times were enough to tell."""
    output = path.parent / name
    try:
        if recorded is None:
            empty = output.is_file() and not output.stat().st_size
            what = "0 bytes" if empty else "" if output.exists() else "gone"
            return Damage(name, (Difference("", what),), 0) if what else None, False
        if recorded.entry:
            one = recorded.entry
            read_it = thorough or contents.is_small(one)
            found = contents.differences(output, {"": one}, thorough=read_it)
            same = not found and output.lstat().st_mtime_ns == one.mtime_ns
            return Damage(name, found, 0) if found else None, same
        if not thorough and contents.look(output) == recorded.look:
            return None, True
        listing = contents.read(_listing(path, name), recorded.listing)
        if listing is None:
            return Damage(name, (Difference("", "the record of its files is gone"),), 0), False
        found = contents.differences(output, listing, thorough=thorough)
        return Damage(name, found, recorded.entries) if found else None, False
    except (FileNotFoundError, NotADirectoryError):
        # Another run may just be replacing it.
        return Damage(name, (Difference("", "gone"),), 0), False


def distrust(path: Path, damaged: Iterable[Damage]) -> None:
    """Make the next run read the files whose size and time do not show the damage."""
    last = read(path)
    if last is None:
        return
    outputs = dict(last.outputs)
    for one in damaged:
        recorded = outputs.get(one.output)
        if recorded is None:
            continue
        names = {difference.name for difference in one.differences}
        if recorded.entry:
            entry = contents.distrusted({"": recorded.entry}, names)[""]
            outputs[one.output] = Output(entry=entry)
            continue
        sha256 = recorded.listing
        listing = contents.read(_listing(path, one.output), sha256)
        if listing is not None:
            sha256 = contents.write(_listing(path, one.output), contents.distrusted(listing, names))
        outputs[one.output] = Output(listing=sha256, entries=recorded.entries)
    _write(path, Stamp(last.inputs, outputs, last.seconds))


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 24 else value[:12] + "…"
