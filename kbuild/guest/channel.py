"""The control channel: frames over a serial port to and from the guest's agent (agent.c).

All numbers of a frame are little-endian::

    magic a5 'c' 'p' 'g' | kind u8 | 0 u8 | length u16 | id u32 | crc32 of these 12 bytes
    payload, at most 32,768 bytes | crc32 of the payload

A receiver skips, byte by byte, everything that is not a frame with two good checksums.  So junk
on the line (a firmware's greeting, bytes lost over a snapshot) does not harm the frames around it.
Each request has an id of its own, and all frames of the request carry this id.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kbuild.core.errors import UserError

MAGIC = b"\xa5cpg"
MAX_PAYLOAD = 32768
# The size of the agent's table for a command's directory, arguments and environment.
MAX_STRINGS = 1024
# A command with more output than this is killed, unless the output is taken as it comes.
MAX_OUTPUT = 256 << 20
_HEAD = struct.Struct("<4sBBHI")
_HEADER = _HEAD.size + 4
_TRAILER = 4
PROTOCOL = 2


class Kind(Enum):
    """The kind of a frame; the values are those of the agent."""

    PING = "P"
    HELLO = "h"
    START = "S"
    INPUT = "I"
    CLOSE_INPUT = "C"
    SIGNAL = "K"
    RESIZE = "Z"
    STDOUT = "o"
    STDERR = "e"
    INPUT_TAKEN = "i"
    EXIT = "x"
    MARK = "M"
    MARKED = "m"
    OPEN_PORT = "V"
    PORT_OPENED = "v"
    POWER_OFF = "B"
    FAREWELL = "b"
    LOOP = "L"
    REFUSED = "r"


@dataclass(frozen=True)
class Frame:
    """One message, from the host or from the guest."""

    kind: Kind
    id: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return a frame as it goes over the line; raises ValueError for a payload that is too long."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(frame.payload)} bytes is over {MAX_PAYLOAD}")
    head = _HEAD.pack(MAGIC, ord(frame.kind.value), 0, len(frame.payload), frame.id)
    return b"".join(
        (
            head,
            zlib.crc32(head).to_bytes(4, "little"),
            frame.payload,
            zlib.crc32(frame.payload).to_bytes(4, "little"),
        )
    )


@dataclass
class Decoder:
    """Turn bytes into frames, and skip what lies between frames."""

    junk: int = 0  # bytes skipped so far
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes, and return the frames that they complete."""
        self._buffer += data
        frames: list[Frame] = []
        at = 0
        while True:
            found = self._buffer.find(MAGIC, at)
            if found < 0:
                # The last bytes may be the beginning of a magic.
                kept = max(at, len(self._buffer) - len(MAGIC) + 1)
                self.junk += kept - at
                at = kept
                break
            self.junk += found - at
            at = found
            if len(self._buffer) - at < _HEADER:
                break
            step = self._frame_at(at, frames)
            if step == 0:
                break
            if step < 0:
                self.junk += 1
                step = 1
            at += step
        del self._buffer[:at]
        return frames

    def _frame_at(self, at: int, frames: list[Frame]) -> int:
        """Return the frame's length, 0 if more bytes must come, -1 if this is no frame."""
        head = bytes(self._buffer[at : at + _HEAD.size])
        _, kind, _, length, number = _HEAD.unpack(head)
        if self._checksum(at + _HEAD.size) != zlib.crc32(head) or length > MAX_PAYLOAD:
            return -1
        end: int = at + _HEADER + length + _TRAILER
        if len(self._buffer) < end:
            return 0
        payload = bytes(self._buffer[at + _HEADER : end - _TRAILER])
        if self._checksum(end - _TRAILER) != zlib.crc32(payload):
            return -1
        try:
            frames.append(Frame(Kind(chr(kind)), number, payload))
        except ValueError:
            return -1
        return end - at

    def _checksum(self, at: int) -> int:
        return int.from_bytes(self._buffer[at : at + 4], "little")


class ChannelClosed(Exception):  # noqa: N818 - an event, not a mistake of the caller
    """The other end is gone because QEMU has ended."""


class ChannelTimeout(Exception):  # noqa: N818
    """The awaited frame did not come in time."""


class ChannelRefused(Exception):  # noqa: N818
    """The agent refused a request; the text is its reason."""


class ChannelGarbled(Exception):  # noqa: N818
    """A frame is whole, but our agent never sends such a frame; the text describes it."""


@dataclass
class Job:
    """A command in the guest, with what has come from it so far."""

    id: int
    expected: Kind | None = None  # the kind of the answer, for a request that has one
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    owed: int = 0  # input frames that the agent has not taken yet
    status: int | None = None  # set at the command's end
    timed_out: bool = False
    unkillable: bool = False
    flooded: bool = False  # it printed more than MAX_OUTPUT; the rest is not kept
    console_at: int = 0  # the console's size at the command's start
    answer: Frame | None = None  # to a request that has one answer
    refused: str | None = None

    @property
    def done(self) -> bool:
        """True if no more frames will come."""
        return self.status is not None or self.refused is not None


_TIMED_OUT, _UNKILLABLE = 1, 2
_WITH_PTY = 1
_EXIT = struct.Struct("<iI")
_NUMBER_BYTES = 4
_SIGNALS = 64
# The requests that have one answer, each with the kind of the answer.
_ANSWERS = {
    Kind.MARK: Kind.MARKED,
    Kind.OPEN_PORT: Kind.PORT_OPENED,
    Kind.POWER_OFF: Kind.FAREWELL,
}
_WATCH_EVERY_S = 1.0
_KILL_S = 1.0
# The end of each stream that is repeated when a guest is lost.
_LAST_BYTES = 4096


def start_payload(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    limit_s: float = 0,
    pty: bool = False,
) -> bytes:
    """Return the payload that starts a command; raises UserError for a command that does not fit.

    ``limit_s`` 0 means that the command has no time limit.
    """
    strings = [cwd, *argv, *(f"{name}={value}" for name, value in env.items())]
    if any("\0" in text for text in strings) or not argv:
        raise UserError(
            "a command for the guest needs at least one string, and no string may hold a NUL"
        )
    payload = struct.pack("<BI", _WITH_PTY if pty else 0, round(limit_s * 1000))
    payload += min(len(argv), 0xFFFF).to_bytes(2, "little")
    payload += b"".join(text.encode(errors="surrogateescape") + b"\0" for text in strings)
    if len(payload) > MAX_PAYLOAD or len(strings) > MAX_STRINGS:
        raise UserError(
            "the command for the guest is too long",
            expected=f"at most {MAX_PAYLOAD} bytes and {MAX_STRINGS} strings,"
            " directory and environment included",
            found=f"{len(payload)} bytes in {len(strings)} strings",
            hint="pass a script on standard input: --command 'sh -s' <script",
        )
    return payload


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back the signals that end a run, so that none of the bytes being read is lost."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Channel:
    """Requests over one or two sockets, for one thread.

    The first socket is the serial port, which is always there.  The agent opens the second one on
    request; it is faster, so all later requests use it.
    """

    def __init__(
        self,
        serial: socket.socket,
        bulk: socket.socket | None = None,
        *,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Call ``watch``, which may raise, at least once a second while the channel waits."""
        self._watch = watch
        self._sockets = {serial: Decoder()}
        self._serial = serial
        self._bulk = bulk
        self._out = serial
        self._next = 1
        self._jobs: dict[int, Job] = {}
        self.hello: Frame | None = None

    @property
    def junk(self) -> int:
        """The number of bytes that were no frames."""
        return sum(decoder.junk for decoder in self._sockets.values())

    @property
    def last_words(self) -> bytes:
        """The end of the output of all commands that are not forgotten, the oldest first."""
        jobs = self._jobs.values()
        return b"".join(job.stdout[-_LAST_BYTES:] + job.stderr[-_LAST_BYTES:] for job in jobs)

    def close(self) -> None:
        """Close both sockets."""
        for sock in (self._serial, self._bulk):
            if sock is not None:
                sock.close()

    def ping(self, timeout_s: float, *, every_s: float = 1.0) -> str:
        """Return the agent's greeting; asks every ``every_s`` seconds until it comes.

        It asks again because bytes that are sent before a guest is ready are lost.  It uses the
        serial port, which is always there.
        """
        end = time.monotonic() + timeout_s
        self.hello = None
        while True:
            self._send(self._serial, Frame(Kind.PING, 0), end)
            again = min(end, time.monotonic() + every_s)
            try:
                self._wait(lambda: self.hello is not None, again)
            except ChannelTimeout:
                if time.monotonic() >= end:
                    raise
                continue
            assert self.hello is not None
            return self.hello.payload.decode(errors="replace")

    def use_bulk(self, path: str, timeout_s: float) -> bool:
        """Ask the agent to open ``path`` as the second port, and return whether it could."""
        if self._bulk is None:
            return False
        answer = self.request(Kind.OPEN_PORT, path.encode(), timeout_s)
        if int.from_bytes(answer.payload, "little") != 0:
            return False
        self._sockets[self._bulk] = Decoder()
        self._out = self._bulk
        return True

    def request(self, kind: Kind, payload: bytes, timeout_s: float) -> Frame:
        """Send a request that has one answer, and return the answer."""
        job = self._new_job()
        job.expected = _ANSWERS[kind]
        end = time.monotonic() + timeout_s
        self._send(self._out, Frame(kind, job.id, payload), end)
        self._wait(lambda: job.answer is not None or job.done, end)
        del self._jobs[job.id]
        if job.answer is None:
            raise ChannelRefused(job.refused or "no answer")
        return job.answer

    def start(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        env: Mapping[str, str],
        cwd: str,
        pty: bool,
        timeout_s: float,
    ) -> Job:
        """Start a command; :func:`start_payload` describes the arguments."""
        payload = start_payload(argv, env=env, cwd=cwd, limit_s=limit_s, pty=pty)
        job = self._new_job()
        self._send(self._out, Frame(Kind.START, job.id, payload), time.monotonic() + timeout_s)
        return job

    def forget(self, job: Job) -> None:
        """Drop a job, and ignore its later frames."""
        self._jobs.pop(job.id, None)

    def hungry(self, job: Job) -> bool:
        """Return whether the agent would take more standard input now."""
        return job.owed == 0

    def write(self, job: Job, data: bytes, timeout_s: float) -> None:
        """Send standard input, each piece when the agent has taken the one before."""
        for at in range(0, len(data), MAX_PAYLOAD):
            end = time.monotonic() + timeout_s
            self._wait(lambda: job.owed == 0 or job.done, end)
            if job.done:
                return
            job.owed += 1
            self._send(self._out, Frame(Kind.INPUT, job.id, data[at : at + MAX_PAYLOAD]), end)

    def close_input(self, job: Job, timeout_s: float) -> None:
        """Close a command's standard input after the bytes that were written."""
        self._send(self._out, Frame(Kind.CLOSE_INPUT, job.id), time.monotonic() + timeout_s)

    def signal(self, job: Job, signum: int, timeout_s: float) -> None:
        """Send a signal to a command's process group."""
        self._send(
            self._out, Frame(Kind.SIGNAL, job.id, bytes([signum])), time.monotonic() + timeout_s
        )

    def resize(self, job: Job, rows: int, columns: int, timeout_s: float) -> None:
        """Set the size of a command's terminal."""
        payload = struct.pack("<HH", rows, columns)
        self._send(self._out, Frame(Kind.RESIZE, job.id, payload), time.monotonic() + timeout_s)

    def wait(self, job: Job, timeout_s: float, *, line: bool = False) -> None:
        """Wait for a command's end or, with ``line``, for a line of its output.

        Raises ChannelTimeout, and ChannelRefused if the agent did not start the command.
        """
        self._wait(lambda: job.done or (line and b"\n" in job.stdout), time.monotonic() + timeout_s)
        if job.refused is not None:
            raise ChannelRefused(job.refused)

    def pump(self, timeout_s: float, extra: int | None = None) -> bool:
        """Take the bytes that have come, after waiting for some for at most ``timeout_s``.

        A readable file descriptor ``extra`` ends the waiting, too.  Returns whether it is readable.
        """
        end = time.monotonic() + timeout_s
        with selectors.PollSelector() as selector:  # epoll knows no regular files
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ)
            if extra is not None:
                selector.register(extra, selectors.EVENT_READ)
            while True:
                left = max(0.0, end - time.monotonic())
                ready = [key.fileobj for key, _ in selector.select(min(left, _WATCH_EVERY_S))]
                self._watch()
                if ready or left == 0:
                    break
        # QEMU's end closes all sockets, and any of them may hold the last answer: read all first.
        with _undisturbed():
            came = [self._receive(sock) for sock in self._sockets if sock in ready]
        if not all(came):
            self._drain()
            raise ChannelClosed
        return extra in ready

    def _drain(self) -> None:
        """Take the last bytes of a QEMU that has ended."""
        for sock in self._sockets:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while self._receive(sock):
                    pass

    def _new_job(self) -> Job:
        job = Job(self._next)
        self._next += 1
        self._jobs[job.id] = job
        return job

    def _wait(self, happened: Callable[[], bool], end: float) -> None:
        while not happened():
            left = end - time.monotonic()
            if left <= 0:
                raise ChannelTimeout
            try:
                self.pump(left)
            except ChannelClosed:
                if not happened():
                    raise

    def _receive(self, sock: socket.socket) -> bool:
        try:
            data = sock.recv(1 << 20)
        except ConnectionError:
            data = b""
        for frame in self._sockets[sock].feed(data):
            self._dispatch(frame)
        return data != b""

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            self.hello = frame
            return
        job = self._jobs.get(frame.id)
        if job is None:
            return
        if frame.kind is Kind.STDOUT:
            self._keep(job, job.stdout, frame.payload)
        elif frame.kind is Kind.STDERR:
            self._keep(job, job.stderr, frame.payload)
        elif frame.kind is Kind.INPUT_TAKEN and job.owed:
            job.owed -= 1
        elif frame.kind is Kind.EXIT and len(frame.payload) == _EXIT.size:
            status, flags = _EXIT.unpack(frame.payload)
            if not -_SIGNALS <= status <= 0xFF:
                raise ChannelGarbled(f"a command ended with the status {status}")
            job.status = status
            job.timed_out |= bool(flags & _TIMED_OUT)
            job.unkillable = bool(flags & _UNKILLABLE)
        elif frame.kind is Kind.REFUSED:
            job.refused = frame.payload.decode(errors="replace")
        elif frame.kind is job.expected and (
            frame.kind is Kind.MARKED or len(frame.payload) == _NUMBER_BYTES
        ):
            job.answer = frame
        else:
            raise ChannelGarbled(
                f"a frame {frame.kind.name} of {len(frame.payload)} bytes that answers no request"
            )

    def _keep(self, job: Job, stream: bytearray, payload: bytes) -> None:
        if len(job.stdout) + len(job.stderr) + len(payload) <= MAX_OUTPUT and not job.flooded:
            stream += payload
        elif not job.flooded:
            job.flooded = True
            self.signal(job, signal.SIGKILL, _KILL_S)

    def _send(self, sock: socket.socket, frame: Frame, end: float) -> None:
        sock.settimeout(max(0.001, end - time.monotonic()))
        try:
            sock.sendall(encode(frame))
        except TimeoutError:
            raise ChannelTimeout from None
        except ConnectionError:
            self._drain()
            raise ChannelClosed from None
        finally:
            sock.settimeout(None)
