"""Parse /proc/cplayground strictly, by the grammar of docs/reference/procfile.md.

The parser takes bytes and returns frozen values.  Names stay bytes, because a file name may hold
any.  A text that the module does not write is refused with its line and byte column.  The caller
must know whether the module was loaded with fields=extended: no text has both forms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

ID_LENGTH = 64
# A comm holds 16 bytes with its terminating zero (TASK_COMM_LEN).
COMMAND_MAX = 15
# A path is shorter than PATH_MAX, its terminating zero included.
PATH_MAX = 4095
PATH_TOO_LONG = b"(path too long)"

_PID_MAX = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
_FD_MAX = 1 << 30  # above fs.nr_open's own limit
_POSITION_MAX = 1 << 63
_FLAGS_MAX = 1 << 32
_MASK_MAX = 1 << 32
# task_state_to_char(): TASK_REPORT's states, and the two of an idle kernel thread.
_STATES = frozenset(b"RSDTtXZPI")
_HEX = frozenset(b"0123456789abcdef")
_OCTAL = frozenset(b"01234567")
_DIGITS = frozenset(b"0123456789")
_BACKSLASH = b"\\"
# Control bytes, the backslash, and U+0085, U+2028 and U+2029, at which readers split lines.
_SPECIAL = re.compile(rb"[\x00-\x1f\x7f\\]|\xc2\x85|\xe2\x80[\xa8\xa9]")
# Their escaped form: a whole separator, and no zero byte.
_ESCAPED = re.compile(rb"\\(?!000)(?:0[0-3][0-7]|134|177)|\\302\\205|\\342\\200\\25[01]")


class ProcfileError(ValueError):
    """The text violates the format; ``line`` and ``column`` count from 1, columns in bytes."""

    def __init__(self, line: int, column: int, what: str) -> None:
        self.line = line
        self.column = column
        self.what = what
        super().__init__(f"line {line}, column {column}: {what}")


@dataclass(frozen=True)
class OpenFile:
    """A descriptor of a process."""

    fd: int
    cloexec: bool
    id: str  # 64 hex digits, equal for descriptors of one open file
    position: int  # bytes
    flags: int  # of open(2), without O_CLOEXEC
    path: bytes


@dataclass(frozen=True)
class Signals:
    """The fields that fields=extended adds, for the first thread; bit n is signal n, up to 31."""

    state: str  # as in /proc/PID/stat
    blocked: int
    pending: int  # for the process or for the thread


@dataclass(frozen=True)
class Process:
    """A record: a process outside the initial PID namespace, and its open files."""

    namespace: str  # 64 hex digits, equal for processes of one PID namespace
    pid: int  # in the initial namespace
    ns_pid: int
    ns_ppid: int  # 0: the parent is outside
    ns_pgid: int  # 0: the group is outside
    command: bytes
    files: tuple[OpenFile, ...] = field(default=())
    extended: Signals | None = None


def parse(text: bytes, *, extended: bool = False) -> tuple[Process, ...]:
    """Parse a whole procfile; ``extended`` tells that it was loaded with fields=extended.

    The lines must also be in the promised order: processes by ascending pid, descriptors by
    ascending number, and an empty line at the end of each record.  Raises ProcfileError.
    """
    *lines, rest = text.split(b"\n")
    if rest:
        raise ProcfileError(len(lines) + 1, len(rest) + 1, "the last line has no newline")
    processes: list[Process] = []
    header: Process | None = None
    files: list[OpenFile] = []
    for number, line in enumerate(lines, 1):
        if header is None:
            header = _header(line, number, extended)
            if processes and processes[-1].pid >= header.pid:
                raise ProcfileError(
                    number,
                    ID_LENGTH + 2,
                    f"process {header.pid} after process {processes[-1].pid}",
                )
        elif line:
            files.append(_file(line, number))
            if len(files) > 1 and files[-2].fd >= files[-1].fd:
                raise ProcfileError(
                    number, 1, f"descriptor {files[-1].fd} after descriptor {files[-2].fd}"
                )
        else:
            processes.append(replace(header, files=tuple(files)))
            header, files = None, []
    if header is not None:
        raise ProcfileError(len(lines) + 1, 1, "the last record has no empty line at its end")
    return tuple(processes)


def _header(line: bytes, number: int, extended: bool) -> Process:
    columns = _columns(line, number, 9 if extended else 6)
    (ns, c0), (pid, c1), (ns_pid, c2), (ppid, c3), (pgid, c4) = columns[:5]
    command, c5 = columns[-1]
    # From left to right, so that the first wrong column is reported.
    namespace = _id(ns, number, c0)
    pids = (
        _decimal(pid, number, c1, 1, _PID_MAX),
        _decimal(ns_pid, number, c2, 1, _PID_MAX),
        _decimal(ppid, number, c3, 0, _PID_MAX),
        _decimal(pgid, number, c4, 0, _PID_MAX),
    )
    signals = _signals(columns[5:8], number) if extended else None
    name = unescape(command, number, c5)
    if len(name) > COMMAND_MAX:
        raise ProcfileError(number, c5, f"a command of {len(name)} bytes, {COMMAND_MAX} at most")
    return Process(namespace, *pids, command=name, extended=signals)


def _signals(columns: list[tuple[bytes, int]], line: int) -> Signals:
    (state, c0), (blocked, c1), (pending, c2) = columns
    if len(state) != 1 or state[0] not in _STATES:
        raise ProcfileError(line, c0, f"{state!r} is not the letter of a state")
    masks = (
        _decimal(blocked, line, c1, 0, _MASK_MAX),
        _decimal(pending, line, c2, 0, _MASK_MAX),
    )
    for mask, column in zip(masks, (c1, c2), strict=True):
        if mask & 1:
            raise ProcfileError(line, column, f"bit 0 in {mask}: there is no signal 0")
    return Signals(state.decode(), *masks)


def _file(line: bytes, number: int) -> OpenFile:
    columns = _columns(line, number, 6)
    (fd, c0), (cloexec, c1), (identity, c2), (position, c3), (flags, c4), (path, c5) = columns
    # From left to right, so that the first wrong column is reported.
    descriptor = _decimal(fd, number, c0, 0, _FD_MAX)
    if cloexec not in (b"0", b"1"):
        raise ProcfileError(number, c1, f"close-on-exec is {cloexec!r}, not 0 or 1")
    file_id = _id(identity, number, c2)
    offset = _decimal(position, number, c3, -_POSITION_MAX, _POSITION_MAX)
    bits = _flags(flags, number, c4)
    name = unescape(path, number, c5)
    if not 0 < len(name) <= PATH_MAX:
        raise ProcfileError(number, c5, f"a path of {len(name)} bytes, 1 to {PATH_MAX} are allowed")
    return OpenFile(descriptor, cloexec == b"1", file_id, offset, bits, name)


def _columns(line: bytes, number: int, count: int) -> list[tuple[bytes, int]]:
    fields = line.split(b"\t")
    if len(fields) != count:
        raise ProcfileError(number, 1, f"{len(fields)} columns, not {count}")
    columns, start = [], 1
    for text in fields:
        columns.append((text, start))
        start += len(text) + 1
    return columns


def _id(text: bytes, line: int, column: int) -> str:
    for offset, byte in enumerate(text):
        if byte not in _HEX:
            raise ProcfileError(line, column + offset, f"{bytes((byte,))!r} in an id")
    if len(text) != ID_LENGTH:
        raise ProcfileError(line, column, f"an id of {len(text)} digits, not {ID_LENGTH}")
    return text.decode()


def _decimal(text: bytes, line: int, column: int, least: int, limit: int) -> int:
    digits = text[1:] if text[:1] == b"-" and least < 0 else text
    for offset, byte in enumerate(digits, len(text) - len(digits)):
        if byte not in _DIGITS:
            raise ProcfileError(line, column + offset, f"{bytes((byte,))!r} in a number")
    if not digits or (digits[:1] == b"0" and text != b"0"):
        raise ProcfileError(line, column, f"{text!r} is not a number without leading zeros")
    # A number with very many digits is refused without converting it.
    value = int(text) if len(text) <= 20 else limit
    if not least <= value < limit:
        raise ProcfileError(line, column, f"{text!r} is not in the range {least} to {limit - 1}")
    return value


def _flags(text: bytes, line: int, column: int) -> int:
    if text[:1] != b"0":
        raise ProcfileError(line, column, "flags without the leading 0 of an octal number")
    for offset, byte in enumerate(text):
        if byte not in _OCTAL:
            raise ProcfileError(line, column + offset, f"{bytes((byte,))!r} in an octal number")
    digits = text[1:]
    if not digits or (digits[:1] == b"0" and digits != b"0") or len(digits) > 11:
        raise ProcfileError(line, column, f"{text!r} is not one 0 and an octal number")
    value = int(digits, 8)
    if value >= _FLAGS_MAX:
        raise ProcfileError(line, column, f"{text!r} is more than 32 bits")
    return value


def unescape(text: bytes, line: int = 1, column: int = 1) -> bytes:
    """Return the name that the module escaped as ``text``.

    Raises ProcfileError; ``line`` and ``column`` are the position of the text.
    """
    name = bytearray()
    at = 0
    for special in _SPECIAL.finditer(text):
        start = special.start()
        if start < at:  # inside the escape of a separator, which was handled at its first byte
            continue
        if special[0] != _BACKSLASH:
            raise ProcfileError(line, column + start, f"{_called(special[0])} in a name")
        escaped = _ESCAPED.match(text, start)
        if escaped is None:
            digits = text[start + 1 : start + 4]
            if len(digits) != 3 or any(digit not in _OCTAL for digit in digits):
                what = "a backslash without three octal digits"
            else:
                what = f"\\{digits.decode()} would not be escaped"
            raise ProcfileError(line, column + start, what)
        name += text[at:start]
        name += bytes(int(digits, 8) for digits in escaped[0].split(_BACKSLASH)[1:])
        at = escaped.end()
    name += text[at:]
    return bytes(name)


def _called(special: bytes) -> str:
    if len(special) == 1:
        return f"control byte {special[0]:#04x}"
    return f"line separator U+{ord(special.decode()):04X}"
