"""Run the command line: words in, text out, an exit status."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from cplayground import document, options, pipelines, tables, watching
from cplayground.errors import Error, UsageError
from cplayground.names import encodable, harmless
from cplayground.reading import PROCFILE, read
from cplayground.selecting import Filter, select
from cplayground.snapshot import Snapshot

if TYPE_CHECKING:
    from cplayground.findings import Finding

FOUND: Final = 1  # the exit status of `check` with an error
_SECONDS: Final = 2.0  # between two readings of `watch`
_LONGEST: Final = 86_400
# Lines that are written at once, so that a million lines are not a million system calls.
_AT_ONCE: Final = 1 << 16  # characters


class _Session(NamedTuple):
    """The arguments, the streams and the sources of a command."""

    given: Mapping[str, Any]
    style: tables.Style


def main(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run a command line without the program's name, and return its exit status.

    Raises BrokenPipeError for a reader of the output that has gone away.
    """
    try:
        if words[:1] == ["__complete"]:
            from cplayground.completing import complete

            _write(complete(words[1:]))
            return 0
        given = options.parse_arguments(words)
        style = style_of(sys.stdout, given.color, environment)
        status = _COMMANDS[given.command_name](_Session(vars(given), style))
        sys.stdout.flush()
    except SystemExit:  # of argparse, after --help and --version
        return 0
    except Error as error:
        _say(str(error), error.hint)
        return error.status
    except BrokenPipeError:
        raise
    except OSError as error:
        _say(f"{error.filename or 'reading or writing failed'}: {error.strerror}")
        return Error.status
    return status


def style_of(stdout: TextIO, color: str, environment: Mapping[str, str]) -> tables.Style:
    """Return how lines look on an output: colours and a width only on a terminal."""
    terminal = stdout.isatty()
    dumb = environment.get("TERM") == "dumb" or environment.get("NO_COLOR")
    return tables.Style(
        color=terminal and color == "auto" and not dumb,
        width=shutil.get_terminal_size().columns if terminal else 0,
        unicode=encodable("→", stdout.encoding or "utf-8") == "→",
    )


def _say(sentence: str, hint: str = "") -> None:
    """Tell a person what is not part of the output."""
    for line in (f"cplayground: {sentence}", *([f"  {hint}"] if hint else [])):
        text = encodable(harmless(line), sys.stderr.encoding or "utf-8")
        print(text, file=sys.stderr, flush=True)


def _write(lines: Iterable[str]) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    _write_pieces(f"{encodable(line, encoding)}\n" for line in lines)


def _write_pieces(pieces: Iterable[str]) -> None:
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _AT_ONCE:
            sys.stdout.write("".join(waiting))
            waiting, size = [], 0
    sys.stdout.write("".join(waiting))


# Sources and filters


def _source(session: _Session) -> str:
    """Return where the snapshot comes from: "module", "walk" or "file"."""
    if session.given["from"] is not None and session.given["walk"]:
        raise UsageError("--from and --walk cannot be combined")
    if session.given["from"] is not None:
        return "file"
    return "walk" if session.given["walk"] else "module"


def _read(session: _Session) -> Snapshot:
    """Read all, with the containers' names if the processes are those of this host now."""
    source = _source(session)
    if source == "file":
        return _kept(session.given["from"])
    snapshot = _walked() if source == "walk" else read(PROCFILE)
    from cplayground.containers import named

    return named(snapshot)


def _walked() -> Snapshot:
    """Walk, and say so if the view is a part: a user may look into his own containers only."""
    from cplayground.walking import survey, walk

    snapshot, hidden = survey()
    if hidden and not snapshot.processes:
        return walk()  # its error tells what is missing
    if hidden:
        _say(f"{len(hidden)} processes that you may not look into are left out", "run it as root")
    return snapshot


def _kept(name: str) -> Snapshot:
    """Read a text that was kept."""
    if name != "-":
        return read(name)
    from cplayground.parsing import parse

    if sys.stdin is None:
        raise UsageError("the standard input is closed")
    return parse(sys.stdin.buffer.read(), origin="standard input")


def _filter(given: Mapping[str, Any]) -> Filter:
    return Filter(
        containers=tuple(given["container"]),
        pids=tuple(given["pid"]),
        ns_pids=tuple(given["ns_pid"]),
        commands=tuple(given["command"]),
        paths=tuple(given["path"]),
        kinds=tuple(one for kinds in given["kind"] for one in kinds.split(",")),
    )


def _both(session: _Session) -> tuple[Snapshot, Snapshot]:
    """Read all, and choose the part that the filters leave; say so if there is nothing at all."""
    whole = _read(session)
    if not whole.processes and _source(session) != "file":
        _say("no container's process is there", "cplayground doctor tells why")
    return whole, select(whole, _filter(session.given))


# Commands


def _ls(session: _Session) -> int:
    whole, part = _both(session)
    _write(tables.ls(whole, part, session.style, long=session.given["long"]))
    return 0


def _ps(session: _Session) -> int:
    _whole, part = _both(session)
    _write(tables.ps(part, session.style))
    return 0


def _pipe(session: _Session) -> int:
    target = session.given["argument"]
    _write(pipelines.pipe(_read(session), target, session.style))
    return 0


def _shared(session: _Session) -> int:
    whole, part = _both(session)
    _write(tables.shared(whole, part, session.style, across=session.given["across"]))
    return 0


def _findings(session: _Session, whole: Snapshot, part: Snapshot) -> list[Finding]:
    """Check all of a snapshot, and return what concerns the processes of a part."""
    from cplayground.findings import check, look

    host = None if _source(session) == "file" else look(whole)
    chosen = {process.global_pid for process in part.processes}
    return [
        one
        for one in check(whole, host)
        if len(part.processes) == len(whole.processes)
        or not chosen.isdisjoint(
            holder.process.global_pid for holder in (*one.waiting, *one.missing_close)
        )
    ]


def _check(session: _Session) -> int:
    found = _findings(session, *_both(session))
    _write(tables.findings(found, session.style))
    bad = {"error", "warning"} if session.given["strict"] else {"error"}
    return FOUND if any(one.level in bad for one in found) else 0


def _watch(session: _Session) -> int:
    source = _source(session)
    if source == "file":
        raise UsageError("a text that was kept does not change: watch reads this host")
    seconds = _period(session.given["argument"])
    from cplayground.containers import named
    from cplayground.walking import walk

    reading = watching.with_names(walk if source == "walk" else lambda: read(PROCFILE), named)
    rounds = watching.readings(reading, _filter(session.given), seconds)
    for count, one in enumerate(rounds):
        if not count:
            _say(watching.cost(one, seconds, walk=source == "walk"))
        if session.given["json"]:
            head = () if count else (watching.head_json(seconds),)
            _write_pieces((*head, *watching.json_lines(one)))
        else:
            _write(watching.text(one, session.style))
        sys.stdout.flush()
    return 0


def _period(word: str | None) -> float:
    if word is None:
        return _SECONDS
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"{word} is not a number of seconds, more than 0 and at most {_LONGEST}")
    return seconds


def _json(session: _Session) -> int:
    whole, part = _both(session)
    form = document.lines if session.given["lines"] else document.whole
    _write_pieces(form(_source(session), whole, part))
    return 0


def _draw(session: _Session) -> int:
    from cplayground import drawing

    output, fold = session.given["output"], session.given["fold"]
    ending = "svg" if output in (None, "-") else Path(output).suffix[1:]
    forms = {"svg": drawing.svg, "html": drawing.html, "dot": drawing.dot}
    if ending not in forms:
        raise UsageError("the name after -o must end with .svg, .html or .dot")
    if fold is not None and fold < 1:
        raise UsageError("--fold takes a number from 1 on")
    if output is None and sys.stdout.isatty():
        raise UsageError("a picture is not for a terminal", hint="cplayground draw -o FILE.svg")
    whole, part = _both(session)
    if session.given["all"]:
        fold = None
    elif fold is None:
        fold = drawing.FOLD
    picture = forms[ending](part, _findings(session, whole, part), fold=fold)
    if output in (None, "-"):
        encoding = sys.stdout.encoding or "utf-8"
        _write_pieces((picture.encode(encoding, "xmlcharrefreplace").decode(encoding),))
    else:
        Path(output).write_text(picture, encoding="utf-8")
    return 0


def _doctor(session: _Session) -> int:
    """Print what is in the way of a reading; the status is the one that a reading has."""
    from cplayground.doctor import diagnose

    found = diagnose()
    try:
        snapshot, status = read(PROCFILE), 0
    except Error as error:
        snapshot, status = None, error.status
        if not found:
            raise
    _write(tables.findings(found, session.style))
    if snapshot is not None and not found:
        shown = f"{PROCFILE} shows {len(snapshot.processes)} processes"
        _write([f"Nothing is amiss: {shown}."])
    return status


_COMMANDS: Final = {
    "ls": _ls,
    "ps": _ps,
    "pipe": _pipe,
    "shared": _shared,
    "check": _check,
    "draw": _draw,
    "watch": _watch,
    "json": _json,
    "doctor": _doctor,
}
