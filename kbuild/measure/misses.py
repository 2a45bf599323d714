"""Find out why files missed the compiler cache: compare a build with the one that filled it.

Next to each object, kbuild leaves a .cmd file with its command line and dependencies.  As long
as two builds exist, these files can be compared.  ccache itself only counts its misses.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs

SOURCE = "/mnt/source/"  # the tree's path in every root

_COMMAND = re.compile(r"^(?:saved)?cmd_\S+ := (.*)$", re.MULTILINE)
_MADE_FROM = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)
_DEPENDS = re.compile(r"^deps_\S+ := \\\n((?:.*\\\n)*.*)$", re.MULTILINE)
_OPTION = re.compile(r"\$\(wildcard include/config/(\S+?)(?:\.h)?\)")
_DEFINED = re.compile(r"^#define CONFIG_(\w+?)(_MODULE)? (.*)$", re.MULTILINE)
_NAMED_CAUSES = 5

# The reasons, in the order of the checks.
NEW = "not in the other build"
ITSELF = "changed itself"
HEADER = "a header changed"
OPTION = "an option changed"
COMMAND = "another command line"
SAME = "source, headers, options and command line are the same"
NO_OBJECT = "not an object of the kernel"


@dataclass(frozen=True)
class Build:
    """The directories of a finished kernel build."""

    source: Path
    output: Path


@dataclass(frozen=True)
class _Object:
    """The content of one .cmd file."""

    command: str
    files: tuple[str, ...]  # source and headers, the source first
    options: tuple[str, ...]


def why(missed: Iterable[str], before: Build, after: Build) -> dict[str, int]:
    """Count the reasons why ``after`` missed these files in the compiler cache of ``before``.

    Each file counts once, under its first reason.  The most frequent headers and options are
    named with their number of files; a file may include several of them.
    """
    old, new = _objects(before.output), _objects(after.output)
    digest_old, digest_new = _digests(before), _digests(after)
    settings_old, settings_new = _settings(before.output), _settings(after.output)
    changed_options = {
        name
        for name in settings_old.keys() | settings_new.keys()
        if settings_old.get(name) != settings_new.get(name)
    }
    reasons: Counter[str] = Counter()
    causes: dict[str, Counter[str]] = {HEADER: Counter(), OPTION: Counter()}
    for name in missed:
        found: dict[str, set[str]] = {}
        for path, one in new.get(name, {}).items():
            other = old.get(name, {}).get(path)
            if other is None:
                found.setdefault(NEW, set())
                continue
            first, *headers = one.files
            if digest_old(first) != digest_new(first):
                found.setdefault(ITSELF, set())
            if differing := {file for file in headers if digest_old(file) != digest_new(file)}:
                found.setdefault(HEADER, set()).update(differing)
            if differing := changed_options.intersection(one.options):
                found.setdefault(OPTION, set()).update(differing)
            if one.command != other.command:
                found.setdefault(COMMAND, set())
        nothing = SAME if name in new else NO_OBJECT
        order = (NEW, ITSELF, HEADER, OPTION, COMMAND)
        reason = next((one for one in order if one in found), nothing)
        reasons[reason] += 1
        if reason in causes:
            causes[reason].update(found[reason])
    return {_named(reason, causes.get(reason)): count for reason, count in reasons.most_common()}


def _named(reason: str, causes: Counter[str] | None) -> str:
    if not causes:
        return reason
    most = sorted(causes.items(), key=lambda pair: (-pair[1], pair[0]))[:_NAMED_CAUSES]
    named = ", ".join(f"{name.removeprefix(SOURCE)} {count}" for name, count in most)
    return f"{reason} ({named}{', ...' if len(causes) > _NAMED_CAUSES else ''})"


def _objects(output: Path) -> dict[str, dict[str, _Object]]:
    """Read every .cmd file below an output directory: source → object → content."""
    found: dict[str, dict[str, _Object]] = {}
    for directory, _, names in os.walk(output):
        for name in names:
            if not name.endswith(".cmd"):
                continue
            path = Path(directory, name)
            text = path.read_text(errors="replace")
            command, source = _COMMAND.search(text), _MADE_FROM.search(text)
            if command is None or source is None:
                continue
            depends = _DEPENDS.search(text)
            words = depends[1].replace("\\\n", "\n").split("\n") if depends else []
            files = [word.strip() for word in words if word.strip() and "$(" not in word]
            options = _OPTION.findall(depends[1]) if depends else []
            # The source may be listed again among the dependencies.
            listed = tuple(dict.fromkeys((source[1], *files)))
            # Linux 5.10 writes options in lower case, with a slash for an underscore.
            names_of = (option.replace("/", "_").upper() for option in options)
            one = _Object(command[1], listed, tuple(names_of))
            found.setdefault(source[1], {})[path.relative_to(output).as_posix()] = one
    return found


def _digests(build: Build) -> Callable[[str], str | None]:
    @functools.cache
    def digest(name: str) -> str | None:
        if name.startswith(SOURCE):
            path = build.source / name.removeprefix(SOURCE)
        elif name.startswith("/"):
            return None  # a file of the root, whose packages have versions of their own
        else:
            path = build.output / name
        return fs.sha256_file(path) if path.is_file() else None

    return digest


def _settings(output: Path) -> Mapping[str, str]:
    """Return the values of the options that were set, from autoconf.h."""
    path = output / "include/generated/autoconf.h"
    text = path.read_text() if path.is_file() else ""
    return {name: module + value for name, module, value in _DEFINED.findall(text)}
