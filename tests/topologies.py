"""Hypothesis strategies for topologies, which tests/guest/build_topology.c builds."""

from __future__ import annotations

from hypothesis import strategies as st

from kbuild.lab import procfile
from tests.topology import topology as t
from tests.topology.planning import SIGCHLD
from tests.topology.topology import Container, End, Op, Process, Rest, Signal, Topology

_FORGED = b"\n\n" + b"0" * procfile.ID_LENGTH + b"\t1\t1\t0\t0\tforged\n"

# U+0085, U+2028 and U+2029, and parts of them.
_SEPARATORS = (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")
_PARTS = st.lists(
    st.sampled_from([*_SEPARATORS, b"\xc2", b"\x85", b"\xe2", b"\x80", b"\xa8", b"\\", b"x"]),
    min_size=1,
    max_size=8,
).map(b"".join)

NAMES = st.one_of(
    st.sampled_from(
        [
            b"a",
            b"b",
            b"tab\there",
            b"line\nhere\n\n",
            b"back\\slash\\011",
            b"\xff\xfe\x80",
            b"\x01\x1b[31m\x7f",
            b"a (deleted)",
            b" ",
            _FORGED,
            *_SEPARATORS,
            b"ends\xe2\x80",
        ]
    ),
    _PARTS,
    # With EnterDirectory these lead to paths of any length.
    st.sampled_from([b"x" * 60, b"x" * 250, b"\n" * 255]),
    st.binary(min_size=1, max_size=20)
    .map(lambda name: name.replace(b"/", b"|").replace(b"\0", b"\r"))
    .filter(t.is_name),
)
# The kernel takes any bytes, and keeps 15 of them.
COMMANDS = st.one_of(
    st.sampled_from([b"", b"a\tb\nc\\d\x7f\x01\xff\xc3\xa9", b") S 1 ((", b"\n\n" + b"0" * 20]),
    _PARTS,
    st.binary(max_size=18).map(lambda name: name.replace(b"\0", b" ")),
)

_NUMBERS = st.integers(0, 30)
_FLAGS = st.builds(
    lambda access, bits: access | sum(bits),
    st.integers(0, 3),
    st.sets(
        st.sampled_from(
            [
                t.O_APPEND,
                t.O_ASYNC,
                t.O_CLOEXEC,
                t.O_DIRECT,
                t.O_NOATIME,
                t.O_NONBLOCK,
                t.O_SYNC - t.O_DSYNC,
                t.O_DSYNC,
                t.O_TRUNC,
            ]
        ),
        max_size=3,
    ),
)
# tmpfs and the table of a container's processes have no O_DIRECT.
_FILE_FLAGS = _FLAGS.map(lambda flags: flags & ~t.O_DIRECT)
_POSITIONS = st.one_of(
    st.integers(0, 10_000),
    st.sampled_from([1 << 31, (1 << 32) + 1, 1 << 40, (1 << 63) - 1, -(1 << 63), -4097, 1 << 62]),
)
_TARGETS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([127, 128, 255, 256, 1023, 1024, 65535, 65536, 65537, t.HIGHEST_FD]),
)
_SIGNALS = st.one_of(
    st.sampled_from([1, 2, 10, 12, 15, SIGCHLD, 23, 28, 31, 32, 33, 34, 63, 64]),
    st.integers(1, 64),
)
_BOOLEANS = st.booleans()

# A file at the end of a long path; independent draws of the two would rarely give one.
_DEEP = st.tuples(
    st.builds(t.EnterDirectory, _NUMBERS, st.integers(1, 18)),
    st.builds(t.Open, _NUMBERS, _FILE_FLAGS),
)
_SIMPLE: dict[str, st.SearchStrategy[Op]] = {
    "open": st.builds(t.Open, _NUMBERS, _FILE_FLAGS),
    "open path": st.builds(t.OpenPath, st.none() | _NUMBERS, _BOOLEANS),
    "open unnamed": st.builds(t.OpenUnnamed, _FILE_FLAGS),
    "open directory": st.builds(t.OpenDirectory, _BOOLEANS),
    "open device": st.builds(t.OpenDevice, _NUMBERS, _FLAGS),
    "open memory": st.builds(t.OpenMemory, _FLAGS),
    "close": st.builds(t.Close, _NUMBERS),
    "dup": st.builds(t.Duplicate, _NUMBERS, st.one_of(st.integers(1, 3), st.integers(28, 70))),
    "dup from": st.builds(t.DuplicateFrom, _NUMBERS, _TARGETS, _BOOLEANS),
    "dup onto": st.builds(t.DuplicateOnto, _NUMBERS, _TARGETS, _BOOLEANS),
    "cloexec": st.builds(t.SetCloexec, _NUMBERS, _BOOLEANS),
    "flags": st.builds(t.SetFlags, _NUMBERS, _FLAGS),
    "seek": st.builds(t.Seek, _NUMBERS, _POSITIONS),
    "write": st.builds(t.Write, _NUMBERS, st.integers(0, 4096)),
    "pipe": st.builds(t.Pipe, _FLAGS),
    "socket": st.builds(t.Socket, _NUMBERS, _BOOLEANS, _BOOLEANS, _BOOLEANS),
    "memfd": st.builds(t.Memfd, _NUMBERS, _BOOLEANS),
    "anonymous": st.builds(
        t.Anonymous,
        st.sampled_from(
            ("eventfd", "eventpoll", "timerfd", "signalfd", "inotify", "pidfd", "io_uring")
        ),
        _BOOLEANS,
        _BOOLEANS,
    ),
    "unlink": st.builds(t.Unlink, _NUMBERS),
    "rename": st.builds(t.Rename, _NUMBERS, _NUMBERS),
    "link": st.builds(t.Link, _NUMBERS, _NUMBERS),
    "enter": st.builds(
        t.EnterDirectory, _NUMBERS, st.one_of(st.integers(1, 2), st.integers(14, 20))
    ),
    "remove directory": st.builds(t.RemoveDirectory, _NUMBERS),
    "unshare files": st.just(t.UnshareFiles()),
    "close range": st.builds(
        t.CloseRange,
        st.integers(0, 20),
        st.integers(0, 200_000),
        st.sampled_from([0, t.CLOSE_RANGE_CLOEXEC, t.CLOSE_RANGE_UNSHARE, 6]),
    ),
    "take": st.builds(t.Take, _NUMBERS, _NUMBERS),
    "new group": st.just(t.NewGroup()),
    "join group": st.builds(t.JoinGroup, _NUMBERS),
    "new session": st.just(t.NewSession()),
    "name": st.builds(t.SetName, COMMANDS),
    "block": st.builds(t.Block, st.frozensets(_SIGNALS, max_size=6)),
    "subreaper": st.just(t.BecomeSubreaper()),
    "exec": st.just(t.Exec()),
}


def _ops(depth: int, most: int) -> st.SearchStrategy[tuple[Op, ...]]:
    """Draw operations; those that make processes and files are more frequent."""
    kinds = [*_SIMPLE, "open", "open", "memfd", "dup", "block", "deep", "deep"]
    by_kind: dict[str, st.SearchStrategy[Op | tuple[Op, ...]]] = _SIMPLE | {"deep": _DEEP}
    if depth:
        by_kind["spawn"] = st.builds(
            t.Spawn,
            processes(depth - 1),
            st.sampled_from((False, False, True)),
            _BOOLEANS,
            st.sampled_from((*(False,) * 7, True)),
        )
        by_kind["thread"] = st.builds(t.StartThread, _ops(depth - 1, 4))
        kinds += ["spawn"] * 9 + ["thread"] * 4
    one = st.sampled_from(kinds).flatmap(by_kind.__getitem__)
    return st.lists(one, max_size=most).map(
        lambda parts: tuple(
            op for part in parts for op in (part if isinstance(part, tuple) else (part,))
        )
    )


_ENDS = (*(End.HOLD,) * 5, End.ZOMBIE, End.REAPED, End.DEAD_LEADER)
# If the first process of a namespace ends, everything in it ends.
_FIRST_ENDS = (*(End.HOLD,) * 12, End.DEAD_LEADER, End.DEAD_LEADER, End.ZOMBIE)


def processes(
    depth: int, most: int = 8, ends: tuple[End, ...] = _ENDS
) -> st.SearchStrategy[Process]:
    """Draw a process with descendants down to ``depth`` generations."""
    return st.builds(
        Process,
        ops=_ops(depth, most),
        end=st.sampled_from(ends),
        rest=st.sampled_from((Rest.SLEEPING, Rest.SLEEPING, Rest.STOPPED, Rest.TRACED)),
        signals=st.lists(st.builds(Signal, _SIGNALS, _BOOLEANS), max_size=3).map(tuple),
    )


TOPOLOGIES = st.builds(
    Topology,
    names=st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    containers=st.lists(
        st.builds(Container, processes(3, 12, _FIRST_ENDS), st.none() | _NUMBERS),
        min_size=1,
        max_size=3,
    ).map(tuple),
)
