"""Parse the text of /proc/cplayground strictly, by the grammar of docs/reference/procfile.md.

One regular expression matches the header of a record, and one all of its descriptors.  A record
that is refused is read again column by column, to tell the place of the error.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

from cplayground.errors import RefusedTextError
from cplayground.snapshot import Descriptor, Name, OpenFile, Process, Snapshot

_COMMAND_MAX: Final = 15  # TASK_COMM_LEN - 1
_PATH_MAX: Final = 4095  # PATH_MAX - 1
_PID_END: Final = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
_FD_END: Final = 1 << 30  # above the limit of fs.nr_open
_POSITION_END: Final = 1 << 63
_MASK_END: Final = 1 << 32
_HEADER_MAX: Final = 256  # bytes; the longest one that is right has less
_LARGE: Final = 4 << 20  # bytes of a text, about 40,000 lines
_PART: Final = 1 << 16  # bytes of a record that are in memory in another form

# The text is decoded as Latin-1, so that a character is a byte.  19 digits hold 2^63.
_DECIMAL = "0|[1-9][0-9]{0,18}"
_SIGNED = "0|-?[1-9][0-9]{0,18}"
_FLAGS = "0(?:0|[1-3][0-7]{10}|[1-7][0-7]{0,9})"  # 32 bits
_ID = "[0-9a-f]{64}"
_STATE = "[RSDTtXZPI]"
# The escapes that the module writes: no zero byte, and a separator of lines as a whole.
_ESCAPE = r"\\(?!000)(?:0[0-3][0-7]|134|177)|\\302\\205|\\342\\200\\25[01]"
_NAME = rf"[ -\[\]-~\x80-\xff]*(?:(?:{_ESCAPE})[ -\[\]-~\x80-\xff]*)*"

# Digits of ids and escapes in names are left out here, because there are faster ways.
_HEADER = re.compile(
    rf"(.{{64}})\t({_DECIMAL})\t({_DECIMAL})\t({_DECIMAL})\t({_DECIMAL})"
    rf"(?:\t({_STATE})\t({_DECIMAL})\t({_DECIMAL}))?\t([ -~\x80-\xff]*)\n"
)
_DESCRIPTOR = re.compile(
    rf"^({_DECIMAL})\t([01])\t(.{{64}})\t({_SIGNED})\t({_FLAGS})\t([ -~\x80-\xff]+)\n", re.MULTILINE
)
_NO_DIGIT = re.compile(r"[\0-/:-`g-\xff]")  # of a hexadecimal number
_WHOLE_NAME = re.compile(_NAME)


# The types' own constructors are functions of Python, which take three times as long.
_new = tuple.__new__


class _WrongError(Exception):
    """The module does not write such a record; :func:`_refuse` finds the place."""


def parse(text: bytes, *, origin: str = "") -> Snapshot:
    """Parse a whole procfile; the first header tells whether it has the extended columns.

    The text must be one that the module writes, in the promised order.  U+0085, U+2028 and
    U+2029 may stand for themselves in a name, because older modules did not escape them.
    ``origin`` is where the text is from, for the message of an error.  During the call for a
    text of more than 4 MiB, Python's search for cycles is off in all threads (gc.disable()).

    Raises RefusedTextError.
    """
    if text and not text.endswith(b"\n"):
        start = text.rfind(b"\n") + 1
        _raise("the last line has no newline", text, start, len(text) - start, origin)
    processes: list[Process] = []
    files: dict[str, OpenFile] = {}
    extended: bool | None = None
    start = last = 0
    with _no_collections() if len(text) > _LARGE else nullcontext():
        while start < len(text):
            # Without an empty line the end is 1, which no header fits into.
            end = text.find(b"\n\n", start) + 2
            try:
                process = _record(text, start, end, files)
                if process.global_pid <= last or extended not in (None, process.state is not None):
                    raise _WrongError
            except _WrongError:
                _refuse(text, start, last, extended, origin)
            processes.append(process)
            last, extended = process.global_pid, process.state is not None
            start = end
    return Snapshot(tuple(processes), tuple(files.values()), bool(extended))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Put off the search for cycles, which a snapshot does not have.

    With a million lines, looking through all that was made takes 60 % of the time; with 20,000 it
    takes none.  It is on again after an error too.  If another thread calls gc.disable()
    meanwhile, its wish is lost: Python has no collector for one thread.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _record(text: bytes, start: int, end: int, files: dict[str, OpenFile]) -> Process:
    line = text[start : min(end, start + _HEADER_MAX)].decode("latin-1")
    header = _HEADER.match(line)
    if header is None:
        raise _WrongError
    namespace, *decimals, state, blocked, pending, command = header.groups()
    global_pid, pid, ppid, pgid = map(int, decimals)
    name = _name(command)
    if (
        _NO_DIGIT.search(namespace)
        or not (global_pid and pid and max(global_pid, pid, ppid, pgid) < _PID_END)
        or len(name) > _COMMAND_MAX
    ):
        raise _WrongError
    descriptors = _descriptors(text, start + header.end(), end - 1, files)
    process = Process(namespace, global_pid, pid, ppid, pgid, name, descriptors)
    if state is None:
        return process
    masks = int(blocked), int(pending)
    if not all(map(_is_mask, masks)):
        raise _WrongError
    return process._replace(state=state, blocked=masks[0], pending=masks[1])


def _descriptors(
    text: bytes, start: int, end: int, files: dict[str, OpenFile]
) -> tuple[Descriptor, ...]:
    descriptors = []
    before = -1
    at = start
    while at < end:
        stop = end if end - at <= _PART else text.rfind(b"\n", at, at + _PART) + 1
        part = text[at:stop].decode("latin-1")
        lines = _DESCRIPTOR.findall(part)
        # Each match is one whole line.
        if not lines or len(lines) != part.count("\n"):
            raise _WrongError
        escaped = "\\" in part
        new_ids = []
        for fd_text, close_on_exec, id, position_text, flags_text, path_text in lines:
            fd = int(fd_text)
            if fd <= before:
                raise _WrongError
            before = fd
            position = 0 if position_text == "0" else _position(position_text)
            flags = _flags(flags_text)
            path = _name(path_text) if escaped else Name(path_text, "latin-1")
            file = files.get(id)
            if file is None:
                new_ids.append(id)
                file = files[id] = _new(OpenFile, (len(files) + 1, id, position, flags, path))
            descriptors.append(
                _new(Descriptor, (fd, close_on_exec == "1", file, position, flags, path))
            )
        if _NO_DIGIT.search("".join(new_ids)):
            raise _WrongError
        at = stop
    long = end - start > _PATH_MAX and any(len(one.path) > _PATH_MAX for one in descriptors)
    if long or before >= _FD_END:
        raise _WrongError
    return tuple(descriptors)


@lru_cache(maxsize=256)
def _flags(text: str) -> int:
    """Return flags; open files have few different ones, which then are one object in memory."""
    return int(text, 8)


def _position(text: str) -> int:
    position = int(text)
    if not -_POSITION_END <= position < _POSITION_END:
        raise _WrongError
    return position


def _name(text: str) -> Name:
    if "\\" not in text:
        return Name(text, "latin-1")
    if not _WHOLE_NAME.fullmatch(text):
        raise _WrongError
    # Octal escapes are the only ones here, and all other bytes stand for themselves.
    return Name(text.encode("latin-1").decode("unicode_escape"), "latin-1")


def _is_mask(bits: int) -> bool:
    """Tell whether a number can be the signals up to 31; there is no signal 0."""
    return bits < _MASK_END and not bits & 1


class _Column(NamedTuple):
    """A column of a line, to find the place of an error."""

    noun: str
    beginning: str  # of a text in which no byte is wrong: an error is at the first other byte
    form: str
    allowed: Callable[[str], bool] = bool  # a text of this form


def _pid(noun: str, least: int) -> _Column:
    return _Column(noun, "[0-9]*", _DECIMAL, lambda text: least <= int(text) < _PID_END)


def _mask(noun: str) -> _Column:
    return _Column(noun, "[0-9]*", _DECIMAL, lambda text: _is_mask(int(text)))


_COMMAND = _Column("a command", _NAME, _NAME, lambda text: len(_name(text)) <= _COMMAND_MAX)
_PIDS = (
    _Column("a namespace id", "[0-9a-f]*", _ID),
    _pid("a global pid", 1),
    _pid("a pid", 1),
    _pid("a ppid", 0),
    _pid("a pgid", 0),
)
_BASIC = (*_PIDS, _COMMAND)
_EXTENDED = (
    *_PIDS,
    _Column("a state", ".*", _STATE),
    _mask("a mask of blocked signals"),
    _mask("a mask of pending signals"),
    _COMMAND,
)
_OPENED = (
    _Column("a descriptor", "[0-9]*", _DECIMAL, lambda text: int(text) < _FD_END),
    _Column("a close-on-exec", ".*", "[01]"),
    _Column("an open file id", "[0-9a-f]*", _ID),
    _Column(
        "a position",
        "-?[0-9]*",
        _SIGNED,
        lambda text: -_POSITION_END <= int(text) < _POSITION_END,
    ),
    _Column("flags", "(?:0[0-7]*)?", _FLAGS),
    _Column("a path", _NAME, _NAME, lambda text: 0 < len(_name(text)) <= _PATH_MAX),
)


def _refuse(text: bytes, start: int, last: int, extended: bool | None, origin: str) -> NoReturn:
    """Raise the first error of the record that begins at ``start``, after the pid ``last``."""
    columns = None
    before = -1
    while start < len(text):
        end = text.index(b"\n", start)
        cells = text[start:end].decode("latin-1").split("\t")
        if columns is None:
            if extended is None:
                extended = len(cells) == len(_EXTENDED)
            columns, before, key = (_EXTENDED if extended else _BASIC), last, 1
        elif cells == [""]:
            raise AssertionError("a record without an error was refused")
        offset, message = _error(cells, columns)
        if not message and int(cells[key]) <= before:
            offset = sum(len(cell) + 1 for cell in cells[:key])
            message = f"{cells[key]} after {before}"
        if message:
            _raise(message, text, start, offset, origin)
        if columns is not _OPENED:
            columns, before, key = _OPENED, -1, 0
        else:
            before = int(cells[0])
        start = end + 1
    _raise("the last record has no empty line at its end", text, start, 0, origin)


def _error(cells: list[str], columns: tuple[_Column, ...]) -> tuple[int, str]:
    """Return the place and the name of the first error of a line, or ``(0, "")``."""
    if len(cells) != len(columns):
        return 0, f"{len(cells)} columns, not {len(columns)}"
    start = 0
    for cell, column in zip(cells, columns):
        beginning = re.match(column.beginning, cell, re.DOTALL)
        right = beginning.end() if beginning else 0
        if right < len(cell):
            return start + right, f"{cell[right]!r} in {column.noun}"
        if not re.fullmatch(column.form, cell) or not column.allowed(cell):
            return start, f"{cell[:40]!r} is not {column.noun}"
        start += len(cell) + 1
    return 0, ""


def _raise(message: str, text: bytes, start: int, offset: int, origin: str) -> NoReturn:
    line = text.count(b"\n", 0, start) + 1
    raise RefusedTextError(message, line=line, column=offset + 1, origin=origin)
