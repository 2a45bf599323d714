"""Start other programs: the only way in which this project does so.

Arguments are a list, never a shell string.  The environment is an allow-list.  Standard input
is closed unless given.  Every call has a deadline; a program that exceeds it is ended together
with its children.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Self

from kbuild.core.errors import (
    BuildError,
    FullDiskError,
    KbuildError,
    KilledError,
    LostDependencyError,
    naming,
    room,
)
from kbuild.core.secrets import redact_bytes

logger = logging.getLogger(__name__)

# The variables that a child may inherit.  Any other (a user's KBUILD_*, CFLAGS, MAKEFLAGS,
# DEB_*) would make two machines build two different kernels.
_INHERITED = (
    "HOME",
    "PATH",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "XDG_CACHE_HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_TAIL_BYTES = 4096
# Messages about a full disk: those of the C locale, and apt's own.
_NO_ROOM = re.compile(
    rb"No space left on device|Disk quota exceeded|File too large|File size limit exceeded"
    rb"|You don't have enough free space|Wrote only \d+ of \d+ bytes"
)
# The words of gcc, of its linker, of make, of shells, of dpkg and of apt for a program that SIGKILL
# ended.
_KILLED = re.compile(
    r"fatal error: Killed signal terminated program|terminated with signal 9\b"
    r"|^make(\[\d+\])?: \*\*\* .*(\] Killed|\] Error 137)$|: line \d+: +\d+ Killed\b|^Killed$"
    r"|subprocess was killed by signal \(Killed\)|^E: Sub-process .* received signal 9\b",
    re.MULTILINE,
)
# With less free space than this, a failed program has met a full disk, whatever it says.
_FULL = 64 * 1024  # bytes
_GRACE_S = 5.0
_EMPTYING_S = 5.0
_ENDING = (signal.SIGTERM, signal.SIGHUP)

Arg = str | os.PathLike[str]


@dataclass(frozen=True)
class Completed:
    """The result of a finished program; ``returncode`` is negative for a signal."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


class Interrupted(KeyboardInterrupt):
    """A signal that ends a run like Ctrl-C: children end, and scratch files are removed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the block on SIGTERM and SIGHUP; in the main thread only.

    Only the first signal counts, because a second one must not disturb the cleanup.  A signal
    that is ignored on entry, as by nohup(1), stays ignored.
    """
    over = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal over
        if not over:
            over = True
            raise Interrupted(signum)

    caught = [one for one in _ENDING if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, end) for one in caught}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the allow-listed environment in the C.UTF-8 locale, updated with ``extra``."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    env["PATH"] = ":".join(path + [d for d in _SBIN if d not in path])
    env |= {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    return env | dict(extra or {})


def which(program: str) -> Path | None:
    """Find ``program`` as :func:`run` does, including the administrator's directories."""
    found = shutil.which(program, path=environment()["PATH"])
    return Path(found) if found else None


def need(program: str, *, cwd: Path | None = None) -> str:
    """Return ``program``; raises LostDependencyError if this machine does not have it."""
    there = Path(cwd or ".", program).exists() if "/" in program else which(program) is not None
    if not there:
        raise LostDependencyError(
            f"the program {program!r} is not on this machine",
            hint="run './inv doctor', which names the package",
        )
    return program


def describe_status(returncode: int) -> str:
    """Describe an exit status in words; name signals."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def killed(completed: Completed) -> bool:
    """Return whether a program that failed, or a child of it, was ended by SIGKILL."""
    return completed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) or (
        completed.returncode != 0
        and _KILLED.search(completed.stdout + completed.stderr) is not None
    )


def failure(
    completed: Completed,
    what: str,
    *,
    error: type[KbuildError] = BuildError,
    found: str | None = None,
    log: Path | None = None,
    hint: str | None = None,
) -> KbuildError:
    """Return the error of a program that failed: KilledError if SIGKILL ended it or a child."""
    if killed(completed):
        error, hint = KilledError, "give the machine more memory, or set a lower 'jobs'"
    return error(what, found=found, log=log, hint=hint)


def start(
    argv: Sequence[Arg],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: BinaryIO | int = subprocess.DEVNULL,
    stdout: BinaryIO | int | None = None,
    stderr: BinaryIO | int | None = None,
    pass_fds: Sequence[int] = (),
    die_with_parent: bool = True,
    privileges: Sequence[str] = (),
    largest_file: int | None = None,
    network: Path | None = None,
    secret: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a long-lived program in its own session; the caller ends it with :func:`stop`.

    ``die_with_parent`` adds setpriv(1), so that a killed pipeline leaves no QEMU or compiler
    behind.  ``privileges`` are further options of setpriv.  ``largest_file`` limits the size of
    each file written, in bytes.  ``network`` is the network namespace in which it runs.  With
    ``secret``, the log names only the program.  Raises LostDependencyError if it does not exist.
    """
    command = [os.fspath(a) for a in argv]
    if largest_file is not None:
        command = ["prlimit", f"--fsize={largest_file}", "--", *command]
    options = [*privileges, *(("--pdeathsig", "KILL") if die_with_parent else ())]
    if options:
        command = ["setpriv", *options, "--", *command]
    command = [*in_network(network), *command]
    # setpriv would report a missing program with an exit status of its own.
    program = need(os.fspath(argv[0]), cwd=cwd)
    logger.debug("run: %s", shlex.join(_shown(argv, secret)))
    try:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
            # Like the environment: the caller's umask must not show in the modes of results.
            umask=0o022,
        )
    except FileNotFoundError as error:
        raise LostDependencyError(
            f"cannot start {program!r}: {error.strerror}: {error.filename}",
            hint="run './inv doctor', which names the package",
        ) from error


def _shown(argv: Sequence[Arg], secret: bool) -> tuple[str, ...]:
    """Return a command as messages have it."""
    return tuple(os.fspath(one) for one in (argv[:1] if secret else argv))


def in_network(network: Path | None) -> tuple[str, ...]:
    """Return the words before a command that runs in a network namespace; none for None."""
    return () if network is None else ("nsenter", f"--net={network}", "--")


def stop(process: subprocess.Popen[bytes], *, grace_s: float = _GRACE_S) -> int:
    """End a program started by :func:`start` with its children, and return its status.

    SIGTERM goes to the whole session.  SIGKILL follows after ``grace_s`` seconds, or as soon as
    the program itself has ended.  When this returns, none of its processes writes any more.
    """
    if process.returncode is None:
        _signal_session(process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        # Reap it after the second signal: until then the kernel cannot reuse its number.
        while not _ended(process) and time.monotonic() < deadline:
            time.sleep(0.02)
        _signal_session(process, signal.SIGKILL)
        process.wait(timeout=grace_s)
        # A PID namespace ends after the program that made it.
        deadline = time.monotonic() + _EMPTYING_S
        while _works(process) and time.monotonic() < deadline:
            time.sleep(0.01)
    return process.returncode


def _signal_session(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _works(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a session has a process that has not ended; init(1) may be slow to reap."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == process.pid and state not in "ZX":
                return True
    return False


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(ChildProcessError):
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, process.pid, flags) is not None
    return True


class _Log:
    """Append a program's output to a file as it comes, without passwords.

    The output arrives in whole lines, so no password is cut in two.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Unbuffered, so that closing the file does not retry a failed write.
        self._stream = path.open("ab", buffering=0)

    def write(self, raw: bytes) -> None:
        rest = redact_bytes(raw)
        with naming(self._path):
            while rest:
                rest = rest[self._stream.write(rest) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def run(
    argv: Sequence[Arg],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    data: bytes | None = None,
    log: Path | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    error: type[KbuildError] = BuildError,
    hint: str | None = None,
    secret: bool = False,
) -> Completed:
    """Run a program to its end and return its output.

    ``data`` is its standard input.  With ``log``, both output streams are appended to that file,
    and ``stdout`` holds them merged.  ``on_line`` receives each line as it comes.
    With ``check``, a status other than 0 raises ``error`` with the tail of the output.
    A program that exceeds ``timeout_s`` seconds is ended with its children, and raises ``error``.
    A program that failed because a disk is full always raises FullDiskError.  With ``check``, one
    that failed because it or a child was killed by SIGKILL raises KilledError.
    With ``secret``, errors, logs and the result name only the program, not its arguments.
    """
    text = _shown(argv, secret)
    merged = log is not None or on_line is not None
    began = time.monotonic()
    out, err = bytearray(), bytearray()
    pending = bytearray()
    with contextlib.ExitStack() as stack:
        sink: _Log | None = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = stack.enter_context(_Log(log))
            sink.write(os.fsencode(f"$ {shlex.join(text)}\n"))
        process = start(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            secret=secret,
        )
        try:
            selector = stack.enter_context(selectors.DefaultSelector())
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, out)
            if process.stderr is not None:
                selector.register(process.stderr, selectors.EVENT_READ, err)
            if process.stdin is not None:
                os.set_blocking(process.stdin.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE, None)
            remaining = memoryview(data or b"")
            while selector.get_map():
                left_s = began + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                for key, _ in selector.select(left_s):
                    if key.data is None:
                        assert process.stdin is not None
                        try:
                            remaining = remaining[os.write(key.fd, remaining) :]
                        except BrokenPipeError:
                            remaining = remaining[:0]
                        if not remaining:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fileobj)
                        continue
                    key.data.extend(chunk)
                    if not merged:
                        continue
                    pending.extend(chunk)
                    *lines, rest = bytes(pending).split(b"\n")
                    pending[:] = rest
                    if sink is not None and lines:
                        sink.write(b"\n".join([*lines, b""]))
                    if on_line is not None:
                        for line in lines:
                            on_line(line.decode(errors="replace"))
            process.wait(timeout=max(0.1, began + timeout_s - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            stop(process)
            raise error(
                f"{shlex.join(text)} did not finish in {timeout_s:g} s and was ended",
                found=_tail(out, err),
                log=log,
                hint=hint,
            ) from None
        except BaseException:
            stop(process)
            raise
        finally:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            if sink is not None:
                sink.write(bytes(pending))
    if on_line is not None and pending:
        on_line(pending.decode(errors="replace"))
    completed = Completed(
        argv=text,
        returncode=process.returncode,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        seconds=time.monotonic() - began,
    )
    if completed.returncode != 0:
        _check_room(completed, cwd, bytes(out + err), check, log)
    if check and completed.returncode != 0:
        raise failure(
            completed,
            f"{shlex.join(text)} failed: {describe_status(completed.returncode)}",
            error=error,
            found=_tail(out, err),
            log=log,
            hint=hint,
        )
    return completed


def _check_room(
    completed: Completed, cwd: Path | None, said: bytes, check: bool, log: Path | None
) -> None:
    """Raise FullDiskError if a program failed because there was no room for a file."""
    # A command line names the places that it writes to, including the binds of a root.
    words = [word.rpartition("=")[2] for word in completed.argv]
    known = [os.fspath(one) for one in (cwd, log) if one]
    places = [*known, *words, os.environ.get("TMPDIR", "/tmp")]
    fullest = room(place for place in places if place.startswith("/"))[:1]
    full = bool(fullest) and fullest[0][0] < _FULL
    lines = [line for line in said.splitlines() if _NO_ROOM.search(line)]
    killed = completed.returncode in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)
    # A program that writes a file through a mapping gets SIGBUS (mmap(2)).
    if not (lines or killed or (full and (check or b"Bus error" in said))):
        return
    found = [line.decode(errors="replace").strip() for line in (lines or said.splitlines())[-3:]]
    found += [describe_status(-signal.SIGXFSZ)] if killed else []
    found += [f"{free / 1e6:.1f} MB free at {place}" for free, place in fullest]
    # In a root, the program's name follows bwrap's own arguments.
    own = completed.argv.index("--") + 1 if "--" in completed.argv[:-1] else 0
    raise FullDiskError(
        f"{Path(completed.argv[own]).name} found no room for a file",
        found="\n".join(found),
        log=log,
        hint="free some space with './inv clean --unused 30', or move build_dir or cache_dir to"
        " another disk; './inv doctor' shows the free space",
    )


def _tail(out: bytearray, err: bytearray) -> str | None:
    last = bytes(err or out)[-_TAIL_BYTES:].decode(errors="replace").strip()
    return "\n".join(last.splitlines()[-20:]) or None
