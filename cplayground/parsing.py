"""Parse the text of /proc/cplayground strictly, by the grammar of docs/reference/procfile.md.

One regular expression matches the header of a record, and one all of its descriptors.  A record
that is refused is read again column by column, to tell the place of the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from cplayground.errors import RefusedTextError
from cplayground.names import unescaped
from cplayground.snapshot import Descriptor, Name, OpenFile, Process, Snapshot

_COMMAND_MAX: Final = 15  # TASK_COMM_LEN - 1
_PATH_MAX: Final = 4095  # PATH_MAX - 1
_PID_END: Final = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
_FD_END: Final = 1 << 30  # above the limit of fs.nr_open
_POSITION_END: Final = 1 << 63
_MASK_END: Final = 1 << 32

# The text is decoded as Latin-1, so that a character is a byte.  19 digits hold 2^63.
_DECIMAL = "0|[1-9][0-9]{0,18}"
_SIGNED = "0|-?[1-9][0-9]{0,18}"
_FLAGS = "0(?:0|[1-3][0-7]{10}|[1-7][0-7]{0,9})"
_ID = "[0-9a-f]{64}"
_STATE = "[RSDTtXZPI]"
# The escapes that the module writes: no zero byte, and a separator of lines as a whole.
_ESCAPE = r"\\(?!000)(?:0[0-3][0-7]|134|177)|\\302\\205|\\342\\200\\25[01]"
_NAME = rf"(?:[^\0-\x1f\x7f\\]|{_ESCAPE})*"
# Escapes are rare, and are checked where they occur.
_QUICK_NAME = r"[^\0-\x1f\x7f]*"

_HEADER = re.compile(
    rf"({_ID})\t({_DECIMAL})\t({_DECIMAL})\t({_DECIMAL})\t({_DECIMAL})"
    rf"(?:\t({_STATE})\t({_DECIMAL})\t({_DECIMAL}))?\t({_QUICK_NAME})\n"
)
_DESCRIPTOR = re.compile(
    rf"^({_DECIMAL})\t([01])\t({_ID})\t({_SIGNED})\t({_FLAGS})\t({_QUICK_NAME})\n", re.MULTILINE
)
_WHOLE_NAME = re.compile(_NAME)


class _WrongError(Exception):
    """The module does not write such a record; :func:`_refuse` finds the place."""


def parse(text: bytes, *, origin: str = "") -> Snapshot:
    """Parse a whole procfile; the first header tells whether it has the extended columns.

    The text must be one that the module writes, in the promised order.  U+0085, U+2028 and
    U+2029 may stand for themselves in a name, because older modules did not escape them.
    ``origin`` is where the text is from, for the message of an error.

    Raises RefusedTextError.
    """
    if text and not text.endswith(b"\n"):
        start = text.rfind(b"\n") + 1
        _raise("the last line has no newline", text, start, len(text) - start, origin)
    processes: list[Process] = []
    files: dict[str, OpenFile] = {}
    extended: bool | None = None
    start = last = 0
    while start < len(text):
        # Without an empty line the end is 1, and nothing matches.
        end = text.find(b"\n\n", start) + 2
        try:
            process = _record(text[start:end].decode("latin-1"), files)
            if process.global_pid <= last or extended not in (None, process.state is not None):
                raise _WrongError
        except _WrongError:
            _refuse(text, start, last, extended, origin)
        processes.append(process)
        last, extended = process.global_pid, process.state is not None
        start = end
    return Snapshot(tuple(processes), tuple(files.values()), bool(extended))


def _record(record: str, files: dict[str, OpenFile]) -> Process:
    header = _HEADER.match(record)
    if header is None:
        raise _WrongError
    lines = _DESCRIPTOR.findall(record, header.end())
    # Each match is one whole line.  The other two are the header and the empty line.
    if len(lines) != record.count("\n") - 2:
        raise _WrongError
    descriptors = []
    before = -1
    for fd_text, close_on_exec, id, position_text, flags_text, path_text in lines:
        fd, position, flags = int(fd_text), int(position_text), int(flags_text, 8)
        if not (before < fd < _FD_END and -_POSITION_END <= position < _POSITION_END):
            raise _WrongError
        before = fd
        path = _name(path_text)
        if not 0 < len(path) <= _PATH_MAX:
            raise _WrongError
        file = files.get(id)
        if file is None:
            file = files[id] = OpenFile(len(files) + 1, id, position, flags, path)
        descriptors.append(Descriptor(fd, close_on_exec == "1", file, position, flags, path))
    namespace, *decimals, state, blocked, pending, command = header.groups()
    global_pid, pid, ppid, pgid = map(int, decimals)
    name = _name(command)
    if not (global_pid and pid and max(global_pid, pid, ppid, pgid) < _PID_END):
        raise _WrongError
    if len(name) > _COMMAND_MAX:
        raise _WrongError
    process = Process(namespace, global_pid, pid, ppid, pgid, name, tuple(descriptors))
    if state is None:
        return process
    masks = int(blocked), int(pending)
    if not all(map(_is_mask, masks)):
        raise _WrongError
    return process._replace(state=state, blocked=masks[0], pending=masks[1])


def _is_mask(bits: int) -> bool:
    """Tell whether a number can be the signals up to 31; there is no signal 0."""
    return bits < _MASK_END and not bits & 1


def _name(text: str) -> Name:
    if "\\" not in text:
        return Name(text, "latin-1")
    if not _WHOLE_NAME.fullmatch(text):
        raise _WrongError
    return Name(unescaped(text.encode("latin-1")))


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
            break
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
