"""Complete a command line: the shells' scripts in completion/ ask ``cplayground __complete``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from cplayground.errors import Error
from cplayground.kinds import KINDS
from cplayground.options import BY_NAME, COMMANDS, Option, options_of
from cplayground.snapshot import Snapshot

# The answer for a word that the shell completes itself, with the names of files.
FILES: Final = ":files"
# Names that need no quotes in a shell.  Others are left out: containers choose their names.
_SAFE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


def complete(words: Sequence[str]) -> list[str]:
    """Return what the last word can become, given the words before it and none of the name.

    Containers and processes are those of the module's file; without it there are none.
    """
    *before, word = words or [""]
    named, _, value = word.partition("=")
    if named.startswith("--") and "=" in word:
        before, prefix, word = [*before, named], f"{named}=", value
    else:
        prefix = ""
    command = next((one for one in before if one in BY_NAME), "")
    option = _option(before[-1]) if before else None
    if option is not None and option.metavar:
        found = _values(option, word)
        return found if found == [FILES] else _fitting(found, word, prefix)
    if word.startswith("-"):
        return _fitting(_option_names(command), word)
    if not command:
        return _fitting(BY_NAME, word)
    if command == "pipe":
        return _fitting(_pids_with_pipes(_snapshot()), word)
    return []


def _fitting(candidates: Iterable[str], word: str, prefix: str = "") -> list[str]:
    return [prefix + one for one in candidates if one.startswith(word)]


def _option(name: str) -> Option | None:
    every = (option for command in COMMANDS for option in options_of(command))
    return next((option for option in every if name in option.names), None)


def _option_names(command: str) -> list[str]:
    """Return the long names of the options; without a command those of ls."""
    own = [option.names[-1] for option in options_of(BY_NAME[command or "ls"])]
    return [*own, "--help", "--version"]


def _values(option: Option, word: str) -> list[str]:
    if option.choices:
        return list(option.choices)
    if option.metavar == "FILE":
        return [FILES]
    if option.key == "kind":
        listed = word[: word.rfind(",") + 1]
        return [listed + kind for kind in KINDS]
    if option.key == "container":
        return sorted({one.name for one in _snapshot().containers if _SAFE.fullmatch(one.name)})
    if option.key == "pid":
        return [str(process.global_pid) for process in _snapshot().processes]
    if option.key == "ns_pid":
        return [str(pid) for pid in sorted({process.pid for process in _snapshot().processes})]
    if option.key == "command":
        names = {process.command.text for process in _snapshot().processes}
        return sorted(name for name in names if _SAFE.fullmatch(name))
    return []


def _pids_with_pipes(snapshot: Snapshot) -> list[str]:
    ends = (end for pipe in snapshot.pipes() for end in (*pipe.readers, *pipe.writers))
    return [str(pid) for pid in sorted({end.process.global_pid for end in ends})]


def _snapshot() -> Snapshot:
    """Read the module's file; without it, or without the right to, there is nothing."""
    from cplayground.containers import named
    from cplayground.reading import read

    try:
        return named(read())
    except Error:
        return Snapshot((), ())
